"""The requests of the API and what their answers mean, for both clients: nothing here sends anything."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import quote

import httpx
from pydantic import BaseModel

from .models import (
    Accepted,
    AlreadyComplete,
    Edit,
    EditForm,
    Generate,
    InferForm,
    InferFormJson,
    Result,
    TryOn,
    TryOnForm,
    TryOnFormJson,
)

# A mapping is sent as it is: for fields that this client does not know yet, and other spellings of a scheduler.
GenerateBody = Generate | Mapping[str, Any]
EditBody = Edit | EditForm | Mapping[str, Any]
TryOnBody = TryOn | TryOnForm | TryOnFormJson | Mapping[str, Any]
InferBody = Generate | TryOn | Edit | InferForm | InferFormJson | Mapping[str, Any]

# A stream of events says something every ten seconds.
SILENCE_S = 45.0
_FORMS = (EditForm, TryOnForm, InferForm)
_TASKS: dict[type[BaseModel], str] = {TryOn: "tryon", Edit: "edit"}
_IMAGE_TYPES = ((b"\x89PNG\r\n\x1a\n", "image/png"), (b"\xff\xd8\xff", "image/jpeg"), (b"RIFF", "image/webp"))


def authorization(token: str | None) -> dict[str, str]:
    """The header of a token. Raises ValueError for one that no header can carry, and does not show it."""
    if not token:
        return {}
    if not all(" " <= character <= "~" for character in token):
        raise ValueError("the token must be of printable ASCII characters, without line ends")
    return {"authorization": f"Bearer {token}"}


@dataclass(frozen=True)
class Submitted:
    """A job that the host has taken, or had already."""

    job_id: str
    status: Literal["accepted", "complete"]
    message: str
    # Of a job that is complete already.
    result: Result | None
    # The request came again under its idempotency key.
    is_replayed: bool


@dataclass(frozen=True)
class Image:
    """A file with an image, as the host has stored it."""

    content: bytes
    # Such as image/png.
    content_type: str
    # The next two: of `infer`.
    job_id: str | None = None
    inference_time_ms: int | None = None


@dataclass(frozen=True)
class Call:
    """A request, as often as it has to be sent."""

    method: str
    path: str
    headers: dict[str, str] = field(default_factory=dict)
    # What httpx makes the body of.
    body: dict[str, Any] = field(default_factory=dict)
    timeout: httpx.Timeout | None = None
    # Where no answer came it may be sent again.
    is_repeatable: bool = True


def submit(path: str, job: BaseModel | Mapping[str, Any], idempotency_key: str | None, traceparent: str | None) -> Call:
    headers = {"idempotency-key": idempotency_key, "traceparent": traceparent}
    given = {name: value for name, value in headers.items() if value is not None}
    return Call("POST", path, given, _body(job, names_task=False))


def infer(job: BaseModel | Mapping[str, Any], timeout_s: float | None, traceparent: str | None) -> Call:
    headers = {} if traceparent is None else {"traceparent": traceparent}
    # Only the answer may take that long. A lost connection cancels the job: whether to begin anew is the caller's to say.
    timeout = httpx.Timeout(60.0, read=timeout_s)
    return Call("POST", "infer", headers, _body(job, names_task=True), timeout, is_repeatable=False)


def job(job_id: str) -> Call:
    return Call("GET", f"jobs/{quote(job_id, safe='')}")


def image(job_id: str, index: int) -> Call:
    return Call("GET", f"jobs/{quote(job_id, safe='')}/images/{index}")


def cancel(job_id: str) -> Call:
    # After a lost answer the repetition would say that the job has ended, and not why.
    return Call("DELETE", f"jobs/{quote(job_id, safe='')}", is_repeatable=False)


def events(job_id: str, last_event_id: str | None, silence_s: float) -> Call:
    headers = {"accept": "text/event-stream"} | ({"last-event-id": last_event_id} if last_event_id else {})
    timeout = httpx.Timeout(min(10.0, silence_s), read=silence_s)
    return Call("GET", f"jobs/{quote(job_id, safe='')}/events", headers, timeout=timeout)


def submitted(response: httpx.Response) -> Submitted:
    is_replayed = response.headers.get("idempotent-replayed") == "true"
    if response.status_code == 200:
        complete = AlreadyComplete.model_validate_json(response.content)
        return Submitted(complete.job_id, complete.status, complete.message, complete.result, is_replayed)
    accepted = Accepted.model_validate_json(response.content)
    return Submitted(accepted.job_id, accepted.status, accepted.message, None, is_replayed)


def received_image(response: httpx.Response) -> Image:
    headers = response.headers
    took = headers.get("x-inference-time-ms")
    kind = headers.get("content-type", "application/octet-stream")
    return Image(response.content, kind, headers.get("x-job-id"), None if took is None else int(took))


def _body(job: BaseModel | Mapping[str, Any], *, names_task: bool) -> dict[str, Any]:
    if isinstance(job, _FORMS):
        return _form(job)
    if not isinstance(job, BaseModel):
        return {"json": dict(job)}
    # What its caller has left out is left out: the model's manifest knows better.
    message = job.model_dump(mode="json", exclude_unset=True)
    if names_task and message.get("task") is None and type(job) in _TASKS:
        message["task"] = _TASKS[type(job)]
    return {"json": message}


def _form(form: BaseModel) -> dict[str, Any]:
    texts: dict[str, str] = {}
    files: list[tuple[str, tuple[str, bytes, str]]] = []
    for name in form.model_fields_set:
        value = getattr(form, name)
        images = value if isinstance(value, list) else [value]
        if value is None:
            continue
        if isinstance(images[0], bytes):
            files += [(name, (f"{name}-{index}", image, _image_type(image))) for index, image in enumerate(images)]
        elif isinstance(value, BaseModel):
            texts[name] = json.dumps(value.model_dump(mode="json", exclude_unset=True))
        else:
            texts[name] = str(value)
    return {"data": texts, "files": files}


def _image_type(content: bytes) -> str:
    return next((kind for start, kind in _IMAGE_TYPES if content.startswith(start)), "application/octet-stream")
