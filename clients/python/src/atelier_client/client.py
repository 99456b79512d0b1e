"""The client for programs that block."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from types import TracebackType

import httpx
from pydantic import TypeAdapter

from . import calls
from .calls import Call, EditBody, GenerateBody, Image, InferBody, Submitted, TryOnBody
from .errors import (
    ApiError,
    AtelierError,
    BusyError,
    HostUnreachableError,
    JobCancelledError,
    JobFailedError,
    UnavailableError,
    WaitTimeoutError,
    error_of,
)
from .models import Cancelling, Job, Readiness, ServedModel
from .retries import Retry
from .sse import EventParser, JobEvent

USER_AGENT = "atelier-client-python/0.1.0"
POLL_S = 5.0
JOBS: TypeAdapter[dict[str, list[Job]]] = TypeAdapter(dict[str, list[Job]])
MODELS: TypeAdapter[dict[str, list[ServedModel]]] = TypeAdapter(dict[str, list[ServedModel]])


class Client:
    """A host, as its callers see it. It may be used by several threads, and closes its connections as a context manager."""

    def __init__(
        self,
        base_url: str,
        token: str | None = None,
        *,
        timeout_s: float = 60.0,
        retry: Retry | None = None,
        http: httpx.Client | None = None,
    ) -> None:
        """`base_url`: such as https://host.example:8080. `http`: a client of yours, for proxies and certificates; you close it."""
        self._base = base_url.rstrip("/")
        self._headers = {"user-agent": USER_AGENT} | calls.authorization(token)
        self._timeout = httpx.Timeout(timeout_s)
        self._retry = retry or Retry()
        self._http = http or httpx.Client()
        self._owns_http = http is None

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections, unless they are those of a client that was given."""
        if self._owns_http:
            self._http.close()

    def generate(
        self, job: GenerateBody, *, idempotency_key: str | None = None, traceparent: str | None = None
    ) -> Submitted:
        """Hands in a job that generates from text. The same job again is the same job."""
        return calls.submitted(self._send(calls.submit("generate", job, idempotency_key, traceparent)))

    def edit(self, job: EditBody, *, idempotency_key: str | None = None, traceparent: str | None = None) -> Submitted:
        """Hands in an edit: `EditForm` brings its images along, `Edit` has their addresses."""
        return calls.submitted(self._send(calls.submit("edit", job, idempotency_key, traceparent)))

    def tryon(self, job: TryOnBody, *, idempotency_key: str | None = None, traceparent: str | None = None) -> Submitted:
        """Hands in a try-on: `TryOnForm` brings its images along, `TryOn` and `TryOnFormJson` have their addresses."""
        return calls.submitted(self._send(calls.submit("tryon", job, idempotency_key, traceparent)))

    def infer(self, job: InferBody, *, timeout_s: float | None = 600.0, traceparent: str | None = None) -> Image:
        """Generates now, and gives the first image. A caller who goes away cancels the job, of which no webhook tells."""
        return calls.received_image(self._send(calls.infer(job, timeout_s, traceparent)))

    def job(self, job_id: str) -> Job:
        """How a job is."""
        return Job.model_validate_json(self._send(calls.job(job_id)).content)

    def jobs(self) -> list[Job]:
        """The 100 newest jobs of this host, without their results."""
        return JOBS.validate_json(self._send(Call("GET", "jobs")).content)["jobs"]

    def image(self, job_id: str, index: int = 0) -> Image:
        """Image `index`, from 0, of a complete job."""
        return calls.received_image(self._send(calls.image(job_id, index)))

    def cancel(self, job_id: str) -> Cancelling:
        """Cancels a job. Raises AlreadyEndedError, with the result, where there is nothing to cancel."""
        return Cancelling.model_validate_json(self._send(calls.cancel(job_id)).content)

    def models(self) -> list[ServedModel]:
        """The models that are served, with what a job may ask of each."""
        return MODELS.validate_json(self._send(Call("GET", "models")).content)["models"]

    def ready(self) -> Readiness:
        """Whether every model is ready; where not, `reason` says why."""
        try:
            return Readiness.model_validate_json(self._send(Call("GET", "test")).content)
        except UnavailableError as error:
            return Readiness.model_validate(error.body)

    def events(self, job_id: str, *, last_event_id: str | None = None) -> Iterator[JobEvent]:
        """What happens to a job, until it has ended, over lost connections and restarts of the host.

        `last_event_id`: of the last event that you have; only what is new comes.
        """
        return self._events(job_id, last_event_id, None)

    def wait(self, job_id: str, *, timeout_s: float | None = None) -> Job:
        """The job when it is complete. Raises JobFailedError, JobCancelledError, or WaitTimeoutError up to ten seconds late."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        try:
            for event in self._events(job_id, None, deadline):
                if event.is_end:
                    return completed(event.job)
        except BusyError:
            # As many follow jobs there as may.
            pass
        while (job := self.job(job_id)).state not in ("complete", "failed", "cancelled"):
            time.sleep(min(POLL_S, remaining(job_id, deadline)))
        return completed(job)

    def _events(self, job_id: str, last: str | None, deadline: float | None) -> Iterator[JobEvent]:
        attempt = 0
        while True:
            parser = EventParser()
            cause: Exception | None = None
            call = calls.events(job_id, last, min(calls.SILENCE_S, remaining(job_id, deadline)))
            try:
                response = self._http.send(self._request(call), stream=True)
                with closing(response):
                    if response.status_code == 204:
                        return
                    if not response.is_success:
                        response.read()
                        raise error_of(response)
                    for chunk in response.iter_bytes():
                        remaining(job_id, deadline)
                        for event in parser.feed(chunk):
                            attempt, last = 0, event.id
                            yield event
                            if event.is_end:
                                return
            except (httpx.TransportError, ApiError) as error:
                cause = error
            pause = self._retry.before_reconnect(cause, attempt, has_begun=last is not None)
            if pause is None:
                raise lost_stream(self._base, job_id, cause) from cause
            attempt += 1
            time.sleep(min(pause, remaining(job_id, deadline)))

    def _request(self, call: Call) -> httpx.Request:
        headers = self._headers | call.headers
        url = f"{self._base}/{call.path}"
        return self._http.build_request(call.method, url, headers=headers, timeout=call.timeout or self._timeout, **call.body)

    def _send(self, call: Call) -> httpx.Response:
        attempt = 0
        while True:
            try:
                response = self._http.send(self._request(call))
            except httpx.TransportError as lost:
                pause = self._retry.after_loss(lost, attempt, is_repeatable=call.is_repeatable)
                if pause is None:
                    raise HostUnreachableError(f"{self._base} does not answer: {lost or type(lost).__name__}") from lost
            else:
                if response.is_success:
                    return response
                error = error_of(response)
                pause = self._retry.after_answer(error, attempt)
                if pause is None:
                    raise error
            attempt += 1
            time.sleep(pause)


def completed(job: Job) -> Job:
    """A job that has ended, if it has ended well."""
    if job.state == "complete":
        return job
    raise JobCancelledError(job) if job.state == "cancelled" else JobFailedError(job)


def remaining(job_id: str, deadline: float | None) -> float:
    """Seconds until a deadline. Raises WaitTimeoutError where none are left."""
    left = calls.SILENCE_S if deadline is None else deadline - time.monotonic()
    if left <= 0:
        raise WaitTimeoutError(f"{job_id} has not ended in time; it goes on")
    return left


def lost_stream(base: str, job_id: str, cause: Exception | None) -> AtelierError:
    """What its reader is told when a stream is not opened again."""
    if isinstance(cause, ApiError):
        return cause
    return HostUnreachableError(f"{base} ends the stream of {job_id}: {cause or 'it says nothing'}")
