"""A step of your own as a service: asks a moderator, and refuses what it does not allow. Needs requests.

    MODERATOR_URL=https://... STEP_TOKEN=... rules.py [PORT]

The moderator gets what docs/safety.md says. While it is away this answers 503: the job waits, and costs no attempt.
"""

import hmac
import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import requests

MODERATOR_URL = os.environ["MODERATOR_URL"]
TOKEN = os.environ["STEP_TOKEN"]


def judge(asked):
    """The status and the body of an answer."""
    job = asked["job"]
    question = {
        "stage": "image",
        "job_id": job["job_id"],
        "task": job["task"],
        "prompt": job["prompt"],
        "negative_prompt": job["negative_prompt"],
        "images": [{name: image[name] for name in ("field", "content_type", "data")} for image in asked["images"]],
    }
    try:
        response = requests.post(MODERATOR_URL, json=question, timeout=10)
        response.raise_for_status()
        said = response.json()
        if said["allowed"] is True:
            return 200, {"unchanged": True}
        return 200, {"refused": "the moderator found " + ", ".join(said.get("categories") or ["something"])}
    except (requests.RequestException, ValueError, KeyError, TypeError) as error:
        print(f"the moderator gave no answer: {error}", file=sys.stderr, flush=True)
        return 503, {"error": "the moderator gave no answer"}


class Rules(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        if hmac.compare_digest(self.headers.get("authorization", ""), f"Bearer {TOKEN}"):
            status, said = judge(json.loads(body))
        else:
            status, said = 401, {"error": "another token"}
        answer = json.dumps(said).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)


server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1]) if len(sys.argv) > 1 else 8090), Rules)
print(f"listening on http://127.0.0.1:{server.server_port}", flush=True)
server.serve_forever()
