"""Receives webhooks, verifies them and drops repetitions: python receiver.py [PORT [ADDRESS]], with the standard library alone.

Reads WEBHOOK_SIGNING_SECRET. Let atelier send here with BACKEND_API_URL=http://127.0.0.1:PORT.
"""

import base64, hashlib, hmac, time
import collections
import http.server
import json
import os
import sys

SECRET = os.environ["WEBHOOK_SIGNING_SECRET"]
MAX_BODY_BYTES = 1 << 20
MAX_SEEN = 100_000
# Ids that were handled. Keep them in your database, for as long as your queue keeps messages.
seen: collections.OrderedDict[str, None] = collections.OrderedDict()


def verify(secret: str, headers: dict, body: bytes, tolerance_s: int = 300) -> None:
    """Raises ValueError unless `body` was signed with `secret` (whsec_...) within the tolerance."""
    stamp = headers["webhook-timestamp"]
    if abs(time.time() - int(stamp)) > tolerance_s:
        raise ValueError("too old, or from the future")
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signed = f"{headers['webhook-id']}.{stamp}.".encode() + body
    expected = "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    # There may be several, while a key is changed.
    if not any(hmac.compare_digest(expected, given) for given in headers["webhook-signature"].split(" ")):
        raise ValueError("the signature does not match")


def handle(event: dict) -> None:
    """Your code. Put slow work into a queue of your own: the sender waits for the answer."""
    details = event.get("image_urls") or event.get("error") or f"{event.get('progress')} %"
    print(event["type"], event["job_id"], details, flush=True)


class Receiver(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        length = int(self.headers.get("content-length", 0))
        if not 0 <= length <= MAX_BODY_BYTES:
            return self.answer(413)
        body = self.rfile.read(length)
        try:
            verify(SECRET, self.headers, body)
        # A header is missing, or is no number.
        except (ValueError, TypeError, AttributeError) as error:
            self.log_error("refused: %s", error)
            return self.answer(401)
        webhook_id = self.headers["webhook-id"]
        if webhook_id not in seen:
            handle(json.loads(body))
            # Only now: what failed comes again.
            seen[webhook_id] = None
            if len(seen) > MAX_SEEN:
                seen.popitem(last=False)
        return self.answer(204)

    do_PATCH = do_POST

    def answer(self, status: int) -> None:
        self.send_response(status)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_request(self, *_):
        pass


if __name__ == "__main__":
    # One request after the other, so that a repetition never overtakes the first.
    port, address = (sys.argv[1:] + ["9000", "127.0.0.1"][len(sys.argv) - 1 :])[:2]
    server = http.server.HTTPServer((address, int(port)), Receiver)
    print(f"listening on http://{address}:{server.server_port}", flush=True)
    server.serve_forever()
