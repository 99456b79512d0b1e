#!/usr/bin/env python3
"""A device that breaks under a host: its handler ends with exit code 75, the job goes back, and the next handler completes it.

    python3 tests/cuda/fatal.py ATELIER DEVICE

The bucket is the demo's own. The device fails once: SIMCUDA_FAIL_ONCE names a file that says whether it has.
"""
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

# Launches of a handler before its device breaks: after the warm-up (one step), within the job's ten steps.
WARM_UP_LAUNCHES = 450
LIMIT_S = 240


def fail(why, log):
    sys.exit(f"{why}\n" + "\n".join(log.read_text().splitlines()[-30:]))


def wait_for(what, question, log):
    """The first answer that is not None."""
    ends = time.monotonic() + LIMIT_S
    while time.monotonic() < ends:
        try:
            answer = question()
            if answer is not None:
                return answer
        except (urllib.error.URLError, ConnectionError, OSError):
            pass
        time.sleep(0.1)
    fail(f"no {what} within {LIMIT_S} s", log)


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


class Host:
    """`atelier host` and what it is asked by HTTP."""

    def __init__(self, port, token):
        self.address, self.token = f"http://127.0.0.1:{port}", token

    def ask(self, path, job=None):
        headers = {"X-Internal-Auth": self.token, "content-type": "application/json"}
        request = urllib.request.Request(self.address + path, json.dumps(job).encode() if job else None, headers)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.read().decode()

    def state(self, job):
        return json.loads(self.ask(f"/jobs/{job}"))["state"]


def exports_of(demo, log):
    """What `atelier demo --serve` says another shell has to export."""
    found = {}
    for line in demo.stdout:
        log.open("a").write(line)
        word, _, assignment = line.strip().partition(" ")
        if word == "export":
            name, _, value = assignment.partition("=")
            found[name] = value
        if "SIGNING_SECRET" in line:
            return found
    fail("the demo did not say what to export", log)


def restarts(host):
    """How often the host has started a handler again, by cause."""
    lines = [line for line in host.ask("/metrics").splitlines() if line.startswith("atelier_handler_restarts_total{")]
    return {line.split('cause="')[1].split('"')[0]: float(line.rsplit(" ", 1)[1]) for line in lines}


def check(atelier, environment, work, log):
    port = free_port()
    simulated = ["SIMCUDA_CACHE", "SIMCUDA_FAIL_AFTER", "SIMCUDA_FAIL_ONCE"]
    environment |= {
        "ATELIER__SERVER__PORT": str(port), "ATELIER__SERVER__ADDRESS": "127.0.0.1",
        "ATELIER__SOURCES__SPOOL__DIRECTORY": str(work / "spool"), "ATELIER__HOST__INITIAL_BACKOFF_MS": "100",
        "ATELIER__HOST__HANDLER__ENVIRONMENT": json.dumps(simulated),
        # What the classifier launches is not counted here.
        "ATELIER__SAFETY__MODE": "off",
        "SIMCUDA_FAIL_AFTER": str(WARM_UP_LAUNCHES), "SIMCUDA_FAIL_ONCE": str(work / "failed"),
    }
    process = subprocess.Popen([atelier, "host", "--handlers", "1"], env=environment, cwd=work, stdout=log.open("a"), stderr=subprocess.STDOUT)
    host = Host(port, environment["INTERNAL_API_TOKEN"])
    try:
        wait_for("host", lambda: host.ask("/test"), log)
        if (work / "failed").exists():
            fail("the device broke while the model was loaded: raise WARM_UP_LAUNCHES", log)
        host.ask("/generate", {"job_id": "broken", "prompt": "a red mug on the beach", "steps": 10})
        end = wait_for("end of the job", lambda: (state := host.state("broken")) in ("complete", "failed") and state or None, log)
        if not (work / "failed").exists():
            fail("the device never broke: lower WARM_UP_LAUNCHES", log)
        if end != "complete" or restarts(host) != {"fatal_device": 1.0}:
            fail(f"the job ended as {end}; restarts: {restarts(host)}, expected one for fatal_device (exit code 75)", log)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def main(atelier, device):
    atelier = str(pathlib.Path(atelier).resolve())
    with tempfile.TemporaryDirectory() as work:
        work = pathlib.Path(work)
        log = work / "log"
        environment = os.environ | {"LD_LIBRARY_PATH": f"{pathlib.Path(device).resolve()}/lib"}
        # Nothing is computed for the demo: its servers are what is wanted.
        demo = subprocess.Popen([atelier, "demo", "--serve", "--no-host", "--out", str(work / "out")], env=environment | {"SIMCUDA_MODE": "dry"}, cwd=work,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            check(atelier, environment | exports_of(demo, log), work, log)
        finally:
            demo.send_signal(signal.SIGINT)
            demo.wait(60)
    print("a handler ended with 75, and the next one completed its job")


if __name__ == "__main__":
    main(*sys.argv[1:])
