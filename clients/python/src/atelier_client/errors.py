"""What can go wrong, each in the host's own words where the host has said something."""

from __future__ import annotations

import json
from typing import Any, Literal

import httpx

from .models import AlreadyEnded, Job, Problem, Result

# Characters of an answer that is not the host's, such as a gateway's page.
_MAX_FOREIGN_TEXT = 200


class AtelierError(Exception):
    """All errors of this package."""


class ApiError(AtelierError):
    """The host has refused: `code` is a stable word, `message` says what is allowed or to be done, `field` is at fault."""

    def __init__(self, response: httpx.Response) -> None:
        self.status: int = response.status_code
        self.code: str = "unknown"
        self.message: str = ""
        self.field: str | None = None
        # Of `content_blocked`: one word, such as nude.
        self.category: str | None = None
        # Seconds; only where the host says that the same request may come again.
        self.retry_after_s: float | None = _retry_after_s(response)
        # The line of the host's log that belongs to it.
        self.request_id: str | None = response.headers.get("x-request-id")
        self.body: Any = None
        try:
            self.body = json.loads(response.content)
            error = Problem.model_validate(self.body).error
        except ValueError:
            text = response.content.decode(errors="replace").strip()
            self.message = text[:_MAX_FOREIGN_TEXT] or response.reason_phrase
        else:
            self.code, self.message = error.code, error.message
            self.field, self.category = error.field, error.category
        place = f"{self.field}: " if self.field else ""
        super().__init__(f"{self.status} {self.code}: {place}{self.message}")


class InvalidRequestError(ApiError):
    """400: the field `field` is wrong."""


class UnauthorizedError(ApiError):
    """401: the token is missing or wrong."""


class NotFoundError(ApiError):
    """404: this host knows no such job, or has no such image."""


class ConflictError(ApiError):
    """409: the `job_id` or the idempotency key stands for another request; or there is no image yet."""


class InProgressError(ConflictError):
    """409 `in_progress`: the same request is under way."""


class AlreadyEndedError(ConflictError):
    """409 `already_ended`: there is nothing to cancel. `result` is there where the job is complete."""

    def __init__(self, response: httpx.Response) -> None:
        super().__init__(response)
        ended = AlreadyEnded.model_validate(self.body)
        self.state: Literal["queued", "running", "complete", "failed", "cancelled"] = ended.state
        self.result: Result | None = ended.result


class CancelledError(ApiError):
    """410: the job of an `infer` was cancelled."""


class TooLargeError(ApiError):
    """413: the body or an image is too large; the message says the limit."""


class NotGeneratedError(ApiError):
    """422: the job of an `infer` cannot be generated, such as for an input that is not there."""


class BusyError(ApiError):
    """429: nothing more may wait."""


class UnavailableError(ApiError):
    """503: the model, the queue or the store is not ready, or the host shuts down."""


class HostUnreachableError(AtelierError):
    """No answer came: `__cause__` has httpx's own error."""


class JobFailedError(AtelierError):
    """A job that was waited for has failed."""

    def __init__(self, job: Job) -> None:
        self.job = job
        error = job.error
        self.code: str = error.code if error else job.state
        self.message: str = error.message if error else f"the job is {job.state}"
        self.field: str | None = error.field if error else None
        super().__init__(f"{job.job_id}: {self.code}: {self.message}")


class JobCancelledError(JobFailedError):
    """A job that was waited for was cancelled."""


class WaitTimeoutError(AtelierError):
    """A job has not ended in the time that its caller gave it; it goes on."""


class WebhookVerificationError(AtelierError):
    """A webhook is not what the host has sent, or is too old: answer it with 401."""


class UnknownWebhookError(AtelierError):
    """A webhook is what the host has sent, and of a kind that this version does not know: answer it with 2xx, or it comes again."""


_BY_STATUS: dict[int, type[ApiError]] = {
    400: InvalidRequestError,
    401: UnauthorizedError,
    404: NotFoundError,
    409: ConflictError,
    410: CancelledError,
    413: TooLargeError,
    422: NotGeneratedError,
    429: BusyError,
    503: UnavailableError,
}
_BY_CODE: dict[str, type[ConflictError]] = {"in_progress": InProgressError, "already_ended": AlreadyEndedError}


def error_of(response: httpx.Response) -> ApiError:
    """The error of an answer whose body was read."""
    error = _BY_STATUS.get(response.status_code, ApiError)(response)
    more_exact = _BY_CODE.get(error.code) if isinstance(error, ConflictError) else None
    return more_exact(response) if more_exact else error


def _retry_after_s(response: httpx.Response) -> float | None:
    text = response.headers.get("retry-after", "")
    return float(text) if text.isascii() and text.isdigit() else None
