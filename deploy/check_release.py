"""Runs the sample events through an image's binary under two Runtime APIs, and measures it: check_release.py IMAGE VENV."""

import http.server
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
IMAGE, VENV = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()
BINARY = IMAGE / "bin/atelier"
RUNS = 5
# What Lambda reports to a function of itself.
FUNCTION = {
    "AWS_LAMBDA_FUNCTION_NAME": "atelier",
    "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
    "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "4096",
}


def free_port():
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        return holder.getsockname()[1]


def servers(directory):
    """`atelier demo --serve`: a bucket and a webhook receiver. What it has generated itself is taken away again."""
    command = [BINARY, "demo", "--serve", "--no-host", "--out", directory]
    demo = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    exports = {}
    for line in demo.stdout:
        if line.strip().startswith("export "):
            name, value = line.strip().removeprefix("export ").split("=", 1)
            exports[name] = value
        if "SIGNING_SECRET" in line:
            break
    threading.Thread(target=lambda: [None for _ in demo.stdout], daemon=True).start()
    bucket = Path(directory) / "s3" / exports["ATELIER__STORE__BUCKET"]
    shutil.rmtree(bucket / "generations")
    return demo, exports, bucket


def post(url, event, deadline):
    body = json.dumps(event).encode()
    while True:
        try:
            with urllib.request.urlopen(urllib.request.Request(url, body), timeout=300) as answer:
                return json.load(answer)
        except (ConnectionError, urllib.error.URLError) as error:
            if time.monotonic() > deadline or isinstance(error, urllib.error.HTTPError):
                raise
            time.sleep(0.05)


def settled(name, reply):
    if name.startswith("sqs-"):
        return reply == {"batchItemFailures": []}
    if name.startswith("http-"):
        return reply["statusCode"] == 200
    return "errorMessage" not in (reply or {})


def run_events(what, start, url, environment, bucket):
    """Each sample under a host of its own for each model: a function serves one."""
    names = sorted(path.name for path in (ROOT / "events").glob("*.json"))
    for model, chosen in (
        ("tiny-sd", [name for name in names if "tryon" not in name]),
        ("tiny-edit", [name for name in names if "tryon" in name]),
    ):
        variables = environment | {"ATELIER_MODEL": model, "ATELIER__MODEL__DIRECTORY": str(ROOT / "models")}
        host = subprocess.Popen(start, cwd=ROOT, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            for name in chosen:
                reply = post(url, json.loads((ROOT / "events" / name).read_text()), time.monotonic() + 300)
                if not settled(name, reply):
                    sys.exit(f"{what}: {name}: {json.dumps(reply)[:500]}")
        finally:
            host.terminate()
            host.wait()
    records = len(list(bucket.glob("generations/*/result.json")))
    if records < len(names):
        sys.exit(f"{what}: {len(names)} events, and only {records} records in the bucket")
    print(f"{what}: {len(names)} events, {records} jobs stored", flush=True)
    shutil.rmtree(bucket / "generations")


class FirstNext(http.server.BaseHTTPRequestHandler):
    """A Runtime API that notes when it is first asked for an event, and never has one."""

    def do_GET(self):
        self.server.asked.set()
        self.server.over.wait()

    def log_message(self, *_):
        pass


def start_ms(environment):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), FirstNext) as server:
        server.daemon_threads, server.asked, server.over = True, threading.Event(), threading.Event()
        threading.Thread(target=server.serve_forever, daemon=True).start()
        api = {"AWS_LAMBDA_RUNTIME_API": f"127.0.0.1:{server.server_port}"}
        began = time.monotonic()
        function = subprocess.Popen(
            [BINARY], cwd=IMAGE / "srv", env=environment | FUNCTION | api, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        asked = server.asked.wait(120)
        took = (time.monotonic() - began) * 1000
        function.kill()
        function.wait()
        server.over.set()
        server.shutdown()
    if not asked:
        sys.exit("the function never asked for an event")
    return took


with tempfile.TemporaryDirectory() as directory:
    demo, exports, bucket = servers(directory)
    try:
        environment = {"PATH": f"{VENV}/bin:{os.environ['PATH']}", "HOME": os.environ["HOME"]} | exports
        port, api = free_port(), free_port()
        emulator = [VENV / "bin/aws-lambda-rie", "--runtime-interface-emulator-address", f"127.0.0.1:{port}"]
        emulator += ["--runtime-api-address", f"127.0.0.1:{api}", BINARY]
        url = f"http://127.0.0.1:{port}/2015-03-31/functions/function/invocations"
        run_events("Runtime Interface Emulator", emulator, url, environment, bucket)

        port = free_port()
        watch = [VENV / "bin/cargo-lambda", "lambda", "watch", "--release", "--ignore-changes", "-A", "127.0.0.1", "-P", str(port)]
        url = f"http://127.0.0.1:{port}/2015-03-31/functions/atelier/invocations"
        run_events("cargo lambda watch --release", watch, url, environment, bucket)

        print(f"binary: {BINARY.stat().st_size / 2**20:.1f} MiB")
        for what, warm in (("loaded and warm", "true"), ("loaded, without the warm-up", "false")):
            variables = environment | {"ATELIER__WORKFLOW__ADVANCED__WARMUP_ON_STARTUP": warm}
            times = [start_ms(variables) for _ in range(RUNS)]
            print(f"start to first /next, tiny-sd {what}: {statistics.median(times):.0f} ms (median of {RUNS}, at most {max(times):.0f})")
    finally:
        demo.kill()
        demo.wait()
