"""Sends a job to `atelier host` and waits for its images: pip install requests, then python http_requests.py "a red mug on the beach".

Reads ATELIER_URL (http://localhost:8080) and INTERNAL_API_TOKEN. Webhooks report the same without polling: see ../receive.
"""

import os
import sys
import time
import uuid

import requests

url = os.environ.get("ATELIER_URL", "http://localhost:8080")
session = requests.Session()
session.headers["X-Internal-Auth"] = os.environ["INTERNAL_API_TOKEN"]
# The id is yours. Send the same id and the same request again after a failure: nothing is generated twice.
job = {"job_id": f"example-{uuid.uuid4()}", "prompt": sys.argv[1], "steps": 20, "seed": 42}


def answered(method: str, path: str, **body) -> dict:
    """The answer to a request; waits where the host says when to come again."""
    while True:
        answer = session.request(method, url + path, timeout=30, **body)
        if answer.status_code in (429, 503) and "Retry-After" in answer.headers:
            time.sleep(float(answer.headers["Retry-After"]))
            continue
        if not answer.ok:
            sys.exit(f"{answer.status_code}: {answer.text}")
        return answer.json()


answered("POST", "/generate", json=job)
while True:
    status = answered("GET", f"/jobs/{job['job_id']}")
    if status["state"] in ("complete", "failed", "cancelled"):
        break
    print(f"{status['state']}, {status['progress']} %", file=sys.stderr)
    time.sleep(0.5)
if status["state"] != "complete":
    sys.exit(f"{job['job_id']}: {status}")
print(*status["result"]["image_urls"], sep="\n")
