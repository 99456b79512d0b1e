"""The client for programs that await."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from types import TracebackType

import anyio
import httpx

from . import calls
from .calls import Call, EditBody, GenerateBody, Image, InferBody, Submitted, TryOnBody
from .client import JOBS, MODELS, POLL_S, USER_AGENT, completed, lost_stream
from .errors import ApiError, BusyError, HostUnreachableError, UnavailableError, WaitTimeoutError, error_of
from .models import Cancelling, Job, Readiness, ServedModel
from .retries import Retry
from .sse import EventParser, JobEvent


class AsyncClient:
    """`Client`, with the same methods, for asyncio and trio."""

    def __init__(
        self,
        base_url: str,
        token: str | None = None,
        *,
        timeout_s: float = 60.0,
        retry: Retry | None = None,
        http: httpx.AsyncClient | None = None,
    ) -> None:
        """`base_url`: such as https://host.example:8080. `http`: a client of yours, for proxies and certificates; you close it."""
        self._base = base_url.rstrip("/")
        self._headers = {"user-agent": USER_AGENT} | calls.authorization(token)
        self._timeout = httpx.Timeout(timeout_s)
        self._retry = retry or Retry()
        self._http = http or httpx.AsyncClient()
        self._owns_http = http is None

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Closes the connections, unless they are those of a client that was given."""
        if self._owns_http:
            await self._http.aclose()

    async def generate(
        self, job: GenerateBody, *, idempotency_key: str | None = None, traceparent: str | None = None
    ) -> Submitted:
        """Hands in a job that generates from text. The same job again is the same job."""
        return calls.submitted(await self._send(calls.submit("generate", job, idempotency_key, traceparent)))

    async def edit(self, job: EditBody, *, idempotency_key: str | None = None, traceparent: str | None = None) -> Submitted:
        """Hands in an edit: `EditForm` brings its images along, `Edit` has their addresses."""
        return calls.submitted(await self._send(calls.submit("edit", job, idempotency_key, traceparent)))

    async def tryon(self, job: TryOnBody, *, idempotency_key: str | None = None, traceparent: str | None = None) -> Submitted:
        """Hands in a try-on: `TryOnForm` brings its images along, `TryOn` and `TryOnFormJson` have their addresses."""
        return calls.submitted(await self._send(calls.submit("tryon", job, idempotency_key, traceparent)))

    async def infer(self, job: InferBody, *, timeout_s: float | None = 600.0, traceparent: str | None = None) -> Image:
        """Generates now, and gives the first image. A caller who goes away cancels the job, of which no webhook tells."""
        return calls.received_image(await self._send(calls.infer(job, timeout_s, traceparent)))

    async def job(self, job_id: str) -> Job:
        """How a job is."""
        return Job.model_validate_json((await self._send(calls.job(job_id))).content)

    async def jobs(self) -> list[Job]:
        """The 100 newest jobs of this host, without their results."""
        return JOBS.validate_json((await self._send(Call("GET", "jobs"))).content)["jobs"]

    async def image(self, job_id: str, index: int = 0) -> Image:
        """Image `index`, from 0, of a complete job."""
        return calls.received_image(await self._send(calls.image(job_id, index)))

    async def cancel(self, job_id: str) -> Cancelling:
        """Cancels a job. Raises AlreadyEndedError, with the result, where there is nothing to cancel."""
        return Cancelling.model_validate_json((await self._send(calls.cancel(job_id))).content)

    async def models(self) -> list[ServedModel]:
        """The models that are served, with what a job may ask of each."""
        return MODELS.validate_json((await self._send(Call("GET", "models"))).content)["models"]

    async def ready(self) -> Readiness:
        """Whether every model is ready; where not, `reason` says why."""
        try:
            return Readiness.model_validate_json((await self._send(Call("GET", "test"))).content)
        except UnavailableError as error:
            return Readiness.model_validate(error.body)

    async def events(self, job_id: str, *, last_event_id: str | None = None) -> AsyncGenerator[JobEvent, None]:
        """What happens to a job, until it has ended, over lost connections and restarts of the host.

        `last_event_id`: of the last event that you have; only what is new comes.
        """
        attempt = 0
        last = last_event_id
        while True:
            parser = EventParser()
            cause: Exception | None = None
            request = self._request(calls.events(job_id, last, calls.SILENCE_S))
            try:
                response = await self._http.send(request, stream=True)
                async with aclosing(response):
                    if response.status_code == 204:
                        return
                    if not response.is_success:
                        await response.aread()
                        raise error_of(response)
                    async for chunk in response.aiter_bytes():
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
            await anyio.sleep(pause)

    async def wait(self, job_id: str, *, timeout_s: float | None = None) -> Job:
        """The job when it is complete. Raises JobFailedError, JobCancelledError or WaitTimeoutError."""
        with anyio.move_on_after(timeout_s):
            return completed(await self._ended(job_id))
        raise WaitTimeoutError(f"{job_id} has not ended in time; it goes on")

    async def _ended(self, job_id: str) -> Job:
        try:
            async with aclosing(self.events(job_id)) as events:
                async for event in events:
                    if event.is_end:
                        return event.job
        except BusyError:
            # As many follow jobs there as may.
            pass
        while (job := await self.job(job_id)).state not in ("complete", "failed", "cancelled"):
            await anyio.sleep(POLL_S)
        return job

    def _request(self, call: Call) -> httpx.Request:
        headers = self._headers | call.headers
        url = f"{self._base}/{call.path}"
        return self._http.build_request(call.method, url, headers=headers, timeout=call.timeout or self._timeout, **call.body)

    async def _send(self, call: Call) -> httpx.Response:
        attempt = 0
        while True:
            try:
                response = await self._http.send(self._request(call))
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
            await anyio.sleep(pause)
