"""Our Python verifier on what a host has sent. usage: webhooks.py FILE, which has {"secret", "sent": [{"headers", "body"}]}"""

import base64
import hashlib
import hmac
import json
import pathlib
import sys
import time
from collections.abc import Mapping

from atelier_client import AtelierError, UnknownWebhookError, WebhookVerificationError, WebhookVerifier, models

asked = json.loads(pathlib.Path(sys.argv[1]).read_text())
SECRET: str = asked["secret"]
OTHER = "whsec_" + base64.b64encode(b"another secret of 32 characters.").decode()


def refused(
    verifier: WebhookVerifier,
    body: bytes,
    headers: Mapping[str, str],
    says: str,
    kind: type[AtelierError] = WebhookVerificationError,
) -> None:
    try:
        webhook = verifier.verify(body, headers)
    except kind as error:
        assert says in str(error) and SECRET not in str(error), error
    else:
        raise AssertionError(f"accepted: {webhook}")


def signed(body: bytes, stamp: int, secret: str = SECRET) -> dict[str, str]:
    key = base64.b64decode(secret.removeprefix("whsec_"))
    digest = hmac.new(key, f"id-1.{stamp}.".encode() + body, hashlib.sha256).digest()
    signature = "v1," + base64.b64encode(digest).decode()
    return {"webhook-id": "id-1", "webhook-timestamp": str(stamp), "webhook-signature": signature}


own = WebhookVerifier(SECRET)
other = WebhookVerifier(OTHER)
seen: dict[str, list[str]] = {"inference.progress": [], "inference.complete": [], "inference.failed": []}
for one in asked["sent"]:
    headers, body = one["headers"], one["body"].encode()
    webhook = own.verify(body, headers)
    event = webhook.event
    assert webhook.id == headers["webhook-id"] and abs(webhook.timestamp - time.time()) < 300
    seen[event.type].append(event.job_id or "")
    if isinstance(event, models.WebhookComplete):
        assert event.image_urls[0] == event.images[0].url and event.metadata["user_id"] == "Ada – Zoë", event
    elif isinstance(event, models.WebhookFailed):
        assert event.error.code == "cancelled", event
    else:
        assert 0 <= event.progress <= 90, event

    # While a secret is replaced, both count, on either side.
    assert WebhookVerifier([OTHER, SECRET]).verify(body, headers) == webhook
    two = f"v1,{base64.b64encode(bytes(32)).decode()} {headers['webhook-signature']}"
    assert own.verify(body, headers | {"webhook-signature": two}) == webhook
    assert own.verify(body, {name.title(): value for name, value in headers.items()}) == webhook
    # Anything else in it, and it is not the host's.
    refused(other, body, headers, "signature")
    refused(own, body.replace(b"inference", b"Inference"), headers, "signature")
    refused(own, body + b" ", headers, "signature")
    refused(own, b"", headers, "signature")
    refused(own, body, headers | {"webhook-id": "id-1"}, "signature")
    refused(own, body, headers | {"webhook-timestamp": str(webhook.timestamp + 1)}, "signature")
    refused(own, body, headers | {"webhook-timestamp": "1700000000"}, "too old")
    refused(own, body, headers | {"webhook-timestamp": "9" * 5000}, "no number")
    refused(own, body, headers | {"webhook-timestamp": "soon"}, "no number")
    refused(own, body, headers | {"webhook-signature": headers["webhook-signature"].replace("v1,", "v2,")}, "signature")
    refused(own, body, headers | {"webhook-signature": "v1,– –"}, "signature")
    for name in headers:
        refused(own, body, {key: value for key, value in headers.items() if key != name}, name)

assert all(seen.values()), seen
# Signed as it should be, and sent again by someone who has heard it.
progress = b'{"type":"inference.progress","job_id":"a","progress":25,"metadata":{}}'
now = int(time.time())
assert own.verify(progress, signed(progress, now)).event.job_id == "a"
refused(own, progress, signed(progress, now - 310), "too old")
refused(own, progress, signed(progress, now + 310), "future")
assert WebhookVerifier(SECRET, tolerance_s=600).verify(progress, signed(progress, now - 310)).timestamp == now - 310
for unknown in (b"{}", b'{"type":"inference.archived"}', b"{", progress[:-1] + b',"progress":-1}'):
    refused(own, unknown, signed(unknown, now), "nothing that this client knows", UnknownWebhookError)
for wrong_s in (float("nan"), -1):
    try:
        WebhookVerifier(SECRET, tolerance_s=wrong_s)
    except ValueError as error:
        assert "tolerance_s must be 0 or more" in str(error)
    else:
        raise AssertionError(f"{wrong_s} is taken for a tolerance")
for wrong in ("", SECRET.removeprefix("whsec_"), "whsec_c2hvcnQ=", "whsec_ – "):
    try:
        WebhookVerifier(wrong)
    except ValueError as error:
        assert "whsec_ and the base64 form" in str(error) and (not wrong or wrong not in str(error))
    else:
        raise AssertionError(f"{wrong!r} is taken for a secret")
print("all of it")
