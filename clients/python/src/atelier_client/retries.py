"""When a request is sent again: where the host asks for it, and where a repetition is the same job.

- 429, 503 and 409 `in_progress` with `Retry-After`: the host has taken nothing, and says when to come again.
- No answer: a job is known by its `job_id`, so handing it in twice is one job, and what only reads may be read again.
- Nothing else: the host's other answers stay the same.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import httpx

from .errors import ApiError

# The host never sees such a request.
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


@dataclass(frozen=True)
class Retry:
    """How patient a client is. `Retry(max_retries=0)` never repeats anything."""

    max_retries: int = 4
    # Seconds; a host that asks for more than that is not waited for.
    max_pause_s: float = 60.0
    # In a row, of a stream of events that has begun.
    max_reconnects: int = 30

    def after_answer(self, error: ApiError, attempt: int) -> float | None:
        """Seconds until the next try; none: there is none. `attempt`: tries before this one."""
        pause = error.retry_after_s
        if attempt >= self.max_retries or pause is None or pause > self.max_pause_s:
            return None
        return pause if error.status in (429, 503) or error.code == "in_progress" else None

    def after_loss(self, error: httpx.TransportError, attempt: int, *, is_repeatable: bool) -> float | None:
        """As `after_answer`, where no answer came."""
        if attempt >= self.max_retries or not (is_repeatable or isinstance(error, _NOT_SENT)):
            return None
        return self.backoff_s(attempt)

    def before_reconnect(self, cause: Exception | None, attempt: int, *, has_begun: bool) -> float | None:
        """As `after_answer`, of a stream of events that broke off, or that was refused when it was opened."""
        if not isinstance(cause, ApiError):
            return self.backoff_s(attempt) if attempt < (self.max_reconnects if has_begun else self.max_retries) else None
        # As many follow jobs there as may: the host says to ask for the job instead.
        if not has_begun:
            return None if cause.status == 429 else self.after_answer(cause, attempt)
        # While a host starts anew, what stands before it may answer.
        if attempt >= self.max_reconnects or cause.status not in (429, 502, 503, 504):
            return None
        return min(max(self.backoff_s(attempt), cause.retry_after_s or 0.0), self.max_pause_s)

    def backoff_s(self, attempt: int) -> float:
        """From half a second on, doubled up to four; a part of it by chance, so that many clients do not come at once."""
        return min(0.5 * 2.0 ** min(attempt, 3), self.max_pause_s) * random.uniform(0.75, 1.25)
