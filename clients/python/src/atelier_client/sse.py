"""Server-sent events of a job."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from .models import Job

EventName = Literal["sending", "accepted", "started", "step", "waiting", "complete", "failed", "cancelled"]
_NAMES = {name: name for name in get_args(EventName)}
_ENDS = ("complete", "failed", "cancelled")


@dataclass(frozen=True)
class JobEvent:
    """One thing that happened to a job."""

    # What a later `events(..., last_event_id=...)` goes on from.
    id: str
    name: EventName
    # As `job()` answers at this moment.
    job: Job

    @property
    def is_end(self) -> bool:
        """Nothing comes after it."""
        return self.name in _ENDS


class EventParser:
    """Takes a stream's bytes as they come, and gives the events that are complete."""

    def __init__(self) -> None:
        self._buffer = b""
        self._fields: dict[str, str] = {}

    def feed(self, chunk: bytes) -> Iterator[JobEvent]:
        # Only the line ends of the format: `str.splitlines` knows more, which may stand within a message.
        *lines, self._buffer = (self._buffer + chunk).split(b"\n")
        for line in lines:
            text = line.removesuffix(b"\r").decode()
            if text:
                self._take(text)
                continue
            event, self._fields = self._event(), {}
            if event:
                yield event

    def _take(self, line: str) -> None:
        # A line that begins with a colon is a comment: it says that the host is there.
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data" and "data" in self._fields:
            value = f"{self._fields['data']}\n{value}"
        self._fields[name] = value

    def _event(self) -> JobEvent | None:
        name = _NAMES.get(self._fields.get("event", ""))
        data = self._fields.get("data")
        if name is None or data is None:
            return None
        return JobEvent(id=self._fields.get("id", ""), name=name, job=Job.model_validate_json(data))
