"""How soon a newcomer sees an image: `atelier demo --serve`, and what its page asks of the host.

    python bench/first_image.py [--profile dev] [--note TEXT]

first_image: from the line that names the page until the page's first image is whole: a job of the form's defaults is handed in, followed to its end by its
events, and its image is fetched. Median of three starts; its peer is the five seconds that the project allows on two cores.
"""

import argparse
import http.client
import json
import os
import statistics
import subprocess
import tempfile
import time
from urllib.parse import urlsplit

from host import PATIENCE_S, ROOT, TOKEN, artifacts
from report import cpu, noted, report, row

RUNS = 3
ALLOWED_S = 5.0
HEADERS = {"content-type": "application/json", "authorization": f"Bearer {TOKEN}"}


def asked(page, method, path, body=None):
    connection = http.client.HTTPConnection(page.hostname, page.port, timeout=PATIENCE_S)
    connection.request(method, path, None if body is None else json.dumps(body), HEADERS)
    response = connection.getresponse()
    assert response.status in (200, 202), (path, response.status, response.read())
    return response


def first_image(program):
    """Seconds."""
    with tempfile.TemporaryDirectory() as directory:
        command = [program, "demo", "--serve", "--out", directory]
        demo = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        try:
            line = next(line for line in demo.stdout if "the page to try it" in line)
            begun = time.perf_counter()
            page = urlsplit(line.split()[-1])
            asked(page, "POST", "/generate", {"job_id": "first", "prompt": "a red mug on the beach"}).read()
            for event in asked(page, "GET", "/jobs/first/events"):
                if event.startswith((b"event: complete", b"event: failed")):
                    break
            image = asked(page, "GET", "/jobs/first/images/0").read()
            assert image.startswith(b"\x89PNG"), image[:200]
            return time.perf_counter() - begun
        finally:
            demo.kill()
            demo.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="bench", help="cargo profile that the program is built in")
    parser.add_argument("--note", default="", help="what a reader of the results must know about this run")
    options = parser.parse_args()
    program, _ = artifacts(options.profile)
    seconds = statistics.median(first_image(program) for _ in range(RUNS))
    device, note = cpu(len(os.sched_getaffinity(0))), noted(options.note)
    report("first_image", "cpu", [row("first_image", "seconds from the page's address to its first image", seconds, "what is allowed", ALLOWED_S, device, note)])


if __name__ == "__main__":
    main()
