"""What a host costs: `atelier host` against `cargo lambda watch`, the same function, the same jobs, the same servers.

    python bench/host.py [--profile dev] [--cargo-lambda PROGRAM] [--note TEXT]      needs cargo-lambda (PyPI)

The function is our handler with an engine that generates nothing: record looked up, 64x64 image of noise encoded, image and
record put into S3, webhooks signed and posted. One process of it is under each host; jobs alternate.

- host_p50, host_p99: from the order until its answer is read to the end, one job at a time. Ours: POST /infer, which also
  fetches the image from S3 and hands it over. The peer: POST /lambda-url/..., which answers what the function replied; there
  it sends its webhooks before it replies, under our host they go out afterwards.
- host_told_p50, host_throughput: from the order until the webhook `complete` has come, one job at a time, and with 4 callers
  at once. Ours: POST /generate, by way of the queue: the job is on the disk (fsync) before the caller hears 202. The peer has
  no queue: the order is lost with the process.
- health_p99, metrics_p99: answers while jobs run and the handler is killed over and over; their peer is the contract's limit.
"""

import argparse
import http.client
import json
import os
import queue
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from report import cpu, noted, report, row

ROOT = Path(__file__).resolve().parent.parent
TOKEN = "demo-token-demo-token-demo-token"
JOBS, WARM_UP = 400, 20
CALLERS, BLOCKS, JOBS_A_BLOCK = 4, 6, 100
PATIENCE_S = 60


class Notifications:
    """The servers that both sides use; knows when a job was reported as complete."""

    def __init__(self, program):
        self.process = subprocess.Popen([program], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.environment = json.loads(self.process.stdout.readline())
        self.waiting = {}
        threading.Thread(target=self.follow, daemon=True).start()

    def follow(self):
        for line in self.process.stdout:
            self.waiting[line.strip()].put(time.perf_counter())

    def expect(self, job_id):
        self.waiting[job_id] = queue.SimpleQueue()
        return self.waiting[job_id]


class Caller:
    """One kept connection to a host."""

    def __init__(self, notifications, port, path):
        self.notifications, self.path = notifications, path
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)

    def order(self, job_id):
        """Hands a job in and reads the answer; the webhook's time comes out of the queue that is returned."""
        body = json.dumps({"job_id": job_id, "prompt": "nothing", "width": 64, "height": 64}).encode()
        told = self.notifications.expect(job_id)
        headers = {"content-type": "application/json", "x-internal-auth": TOKEN}
        self.connection.request("POST", self.path, body, headers)
        response = self.connection.getresponse()
        answer = response.read()
        assert response.status in (200, 202), (response.status, answer)
        return told

    def run(self, job_id):
        """Milliseconds until the answer, and until the webhook."""
        start = time.perf_counter()
        told = self.order(job_id)
        answered = time.perf_counter()
        return (answered - start) * 1000, (told.get(timeout=PATIENCE_S) - start) * 1000


def artifacts(profile):
    """The binary, and what bench/host.rs becomes."""
    build = ["cargo", "build", "--bin", "atelier", "--bench", "host", "--profile", profile, "--message-format", "json"]
    lines = subprocess.run(build, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
    built = {m["target"]["name"]: m["executable"] for m in map(json.loads, lines) if m.get("executable")}
    return built["atelier"], built["host"]


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def start(command, environment, log):
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


def answers(port):
    """Waits until somebody listens there."""
    deadline = time.monotonic() + PATIENCE_S
    while socket.socket().connect_ex(("127.0.0.1", port)):
        assert time.monotonic() < deadline, f"nobody listens at port {port}"
        time.sleep(0.05)


def wait_until_ready(caller):
    """Until the first job goes through."""
    deadline = time.monotonic() + PATIENCE_S
    for attempt in range(1_000_000):
        try:
            return caller.run(f"ready-{caller.path.strip('/').replace('/', '-')}-{attempt}")
        except (AssertionError, OSError):
            caller.connection.close()
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def throughput(notifications, port, path, name):
    """Milliseconds a job, with several callers at once, each of whom waits for his webhook."""
    callers = queue.SimpleQueue()
    for _ in range(CALLERS):
        callers.put(Caller(notifications, port, path))

    def run(n):
        caller = callers.get()
        caller.run(f"{name}-{n}")
        callers.put(caller)

    start_time = time.perf_counter()
    with ThreadPoolExecutor(CALLERS) as pool:
        list(pool.map(run, range(JOBS_A_BLOCK)))
    return (time.perf_counter() - start_time) * 1000 / JOBS_A_BLOCK


def measure(notifications, our_port, peer_port):
    """All times in ms, by row and side."""
    infer, generate = Caller(notifications, our_port, "/infer"), Caller(notifications, our_port, "/generate")
    peer = Caller(notifications, peer_port, "/lambda-url/atelier/generate")
    for caller in (infer, peer):
        wait_until_ready(caller)
    turns = []
    for n in range(WARM_UP + JOBS):
        turns.append([caller.run(f"{name}-{n}") for name, caller in (("infer", infer), ("peer", peer), ("generate", generate))])
    ours, theirs, queued = zip(*turns[WARM_UP:], strict=True)
    blocks = [(throughput(notifications, our_port, "/generate", f"ours-{n}"),
               throughput(notifications, peer_port, peer.path, f"theirs-{n}")) for n in range(BLOCKS)]  # fmt: skip
    answers = [[answered for answered, _ in side] for side in (ours, theirs)]
    told = [[told for _, told in side] for side in (queued, theirs)]
    return {
        "host_p50": [statistics.median(side) for side in answers],
        "host_p99": [statistics.quantiles(side, n=100)[98] for side in answers],
        "host_told_p50": [statistics.median(side) for side in told],
        "host_throughput": [statistics.median(side) for side in zip(*blocks, strict=True)],
    }


def children(pid):
    """The processes that this one has started."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for thread in threads for child in (thread / "children").read_text().split()]


def kill_over_and_over(host, stop):
    """Kills the host's handler a moment after each start."""
    while not stop.wait(0.3):
        for child in children(host):
            os.kill(child, signal.SIGKILL)


def under_fire(notifications, port, host):
    """p99 in ms of /health and /metrics while jobs wait or run and their handler is killed."""
    stop = threading.Event()
    killer = threading.Thread(target=kill_over_and_over, args=(host, stop))
    generate = Caller(notifications, port, "/generate")
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    times = {"/health": [], "/metrics": []}
    told = [generate.order(f"fire-{n}") for n in range(50)]
    killer.start()
    for _ in range(JOBS):
        for path, seen in times.items():
            start_time = time.perf_counter()
            connection.request("GET", path)
            response = connection.getresponse()
            response.read()
            seen.append((time.perf_counter() - start_time) * 1000)
            assert response.status == 200, (path, response.status)
        time.sleep(0.01)
    stop.set()
    killer.join()
    for job in told:
        job.get(timeout=PATIENCE_S)
    return {f"{path[1:]}_p99": statistics.quantiles(seen, n=100)[98] for path, seen in times.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="bench", help="cargo profile that ours and the function are built in")
    parser.add_argument("--cargo-lambda", default=Path(sys.executable).parent / "cargo-lambda", help="the peer's program")
    parser.add_argument("--note", default="", help="what a reader of the results must know about this run")
    options = parser.parse_args()
    program, function = artifacts(options.profile)
    version = subprocess.run([options.cargo_lambda, "lambda", "--version"], capture_output=True, text=True, check=True).stdout
    notifications = Notifications(function)
    our_port, peer_port = free_port(), free_port()
    environment = os.environ | notifications.environment | {"RUST_LOG": "warn", "AWS_LAMBDA_FUNCTION_NAME": "atelier"}
    address = ["-A", "127.0.0.1", "-P", str(peer_port)]
    with tempfile.TemporaryDirectory() as directory, open(Path(directory) / "log", "w+") as log:
        ours = {"ATELIER__SOURCES__SPOOL__DIRECTORY": f"{directory}/spool", "ATELIER__SERVER__ADDRESS": "127.0.0.1",
                "ATELIER__RUNTIME__MAX_ATTEMPTS": "1000", "ATELIER__HOST__INITIAL_BACKOFF_MS": "50",
                "ATELIER__HOST__MAX_BACKOFF_MS": "200"}  # fmt: skip
        command = [program, "--config", "src/demo/config.yaml", "host", "--port", str(our_port), "--handlers", "1", "--", function]
        under_peer = {"AWS_LAMBDA_RUNTIME_API": f"http://127.0.0.1:{peer_port}/.rt/atelier", "AWS_LAMBDA_FUNCTION_VERSION": "1",
                      "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "4096"}  # fmt: skip
        watch = [options.cargo_lambda, "lambda", "watch", "--only-lambda-apis", "--ignore-changes", "--quiet", *address]
        processes = [start(watch, environment, log), start(command, environment | ours, log)]
        answers(peer_port)
        processes.append(start([function], environment | under_peer, log))
        try:
            times = measure(notifications, our_port, peer_port)
            fire = under_fire(notifications, our_port, processes[1].pid)
        except BaseException:
            log.seek(0)
            print(log.read(), file=sys.stderr)
            raise
        finally:
            for process in processes:
                process.send_signal(signal.SIGTERM)
            for process in processes:
                process.wait(PATIENCE_S)
            notifications.process.stdin.close()
    threads = len(os.sched_getaffinity(0))
    note = noted(options.note)
    peer = f"cargo lambda watch, {version.split()[1]}"
    unit = {"host_throughput": f"ms a job, {CALLERS} callers at once, until the webhook", "host_told_p50": "ms until the webhook"}
    rows = [row(what, unit.get(what, "ms until the answer"), mine, peer, theirs, cpu(threads), note)
            for what, (mine, theirs) in times.items()]  # fmt: skip
    rows += [row(what, "ms, jobs running and their handler killed every 0.3 s", mine, "the contract's limit", 50.0, cpu(threads), note)
             for what, mine in fire.items()]  # fmt: skip
    report("host", "cpu", rows)


if __name__ == "__main__":
    main()
