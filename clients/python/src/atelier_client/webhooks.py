"""Webhooks: which of them the host has sent, and what they say. docs/webhooks.md has the rules."""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from .errors import UnknownWebhookError, WebhookVerificationError
from .models import WebhookComplete, WebhookFailed, WebhookProgress

WebhookEvent = WebhookProgress | WebhookComplete | WebhookFailed
_EVENT: TypeAdapter[WebhookEvent] = TypeAdapter(Annotated[WebhookEvent, Field(discriminator="type")])


@dataclass(frozen=True)
class Webhook:
    """A webhook that the host has sent."""

    # The same for every repetition: drop one that you have seen.
    id: str
    # Seconds since 1970, when it was sent.
    timestamp: int
    event: WebhookEvent


class WebhookVerifier:
    """Verifies webhooks by Standard Webhooks (`webhook-id`, `webhook-timestamp`, `webhook-signature`)."""

    def __init__(self, secrets: str | Sequence[str], *, tolerance_s: float = 300) -> None:
        """`secrets`: `whsec_...`, as the host has it; several while one is replaced by another.

        Raises ValueError where one is no such secret, or the tolerance is no number of seconds.
        """
        # What is not a number would let any age pass.
        if not tolerance_s >= 0:
            raise ValueError(f"tolerance_s must be 0 or more seconds, got {tolerance_s}")
        self._keys = [_key(secret) for secret in ([secrets] if isinstance(secrets, str) else secrets)]
        if not self._keys:
            raise ValueError("there is no secret: give at least one")
        self._tolerance_s = tolerance_s

    def verify(self, body: bytes, headers: Mapping[str, str]) -> Webhook:
        """The webhook with this raw body, as it came, before anything has parsed it.

        Raises WebhookVerificationError unless it is signed with one of the secrets, within the tolerance; UnknownWebhookError where
        it is, and is nothing that this version knows.
        """
        given = {name.lower(): value for name, value in headers.items()}
        webhook_id, stamp, signatures = (
            _header(given, name) for name in ("webhook-id", "webhook-timestamp", "webhook-signature")
        )
        if not (stamp.isascii() and stamp.isdigit() and len(stamp) < 16):
            raise WebhookVerificationError("webhook-timestamp is no number of seconds")
        timestamp = int(stamp)
        if abs(time.time() - timestamp) > self._tolerance_s:
            raise WebhookVerificationError("it is too old, or from the future")
        signed = f"{webhook_id}.{stamp}.".encode(errors="replace") + body
        offered = [signature.encode(errors="replace") for signature in signatures.split(" ")]
        # Every pair is compared, each in constant time: how long it takes says nothing.
        matches = [hmac.compare_digest(_signature(key, signed), one) for key in self._keys for one in offered]
        if not any(matches):
            raise WebhookVerificationError("the signature does not match")
        try:
            event = _EVENT.validate_json(body)
        except ValidationError as error:
            raise UnknownWebhookError(f"it is signed, and nothing that this client knows: {error}") from error
        return Webhook(id=webhook_id, timestamp=timestamp, event=event)


def _key(secret: str) -> bytes:
    try:
        key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except ValueError:
        key = b""
    # A secret itself never stands in a message.
    if not secret.startswith("whsec_") or not 24 <= len(key) <= 64:
        raise ValueError("a secret is whsec_ and the base64 form of 24 to 64 bytes")
    return key


def _signature(key: bytes, signed: bytes) -> bytes:
    return b"v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest())


def _header(headers: Mapping[str, str], name: str) -> str:
    value = headers.get(name)
    if not value:
        raise WebhookVerificationError(f"it has no {name}")
    return value
