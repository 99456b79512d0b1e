"""What those who follow jobs cost a host: `GET /jobs/{id}/events`, held open by many at once.

    python bench/listeners.py [--profile dev] [--note TEXT]

A host with one handler and the bundled model generates long jobs all the while, on the CPU, so that every core is busy.

- listeners_health_p99: answers of /health with 200 listeners at jobs that run and wait; its peer is the contract's limit.
- listeners_memory: resident memory of the host's process with 1,000 listeners, less than without, for each; its peer is what this project allows.
"""

import argparse
import asyncio
import http.client
import json
import os
import resource
import signal
import statistics
import tempfile
import time
from pathlib import Path

from host import PATIENCE_S, TOKEN, Caller, Notifications, answers, artifacts, free_port, start
from report import cpu, noted, report, row

JOBS, STEPS = 20, 150
LISTENERS, MANY = 200, 1_000
ANSWERS = 400
CONTRACT_MS, ALLOWED_KIB = 50.0, 64.0


async def listen(port, job_id, arrived):
    """Follows a job until it is cancelled; `arrived` counts events."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET /jobs/{job_id}/events HTTP/1.1\r\nhost: localhost\r\nx-internal-auth: {TOKEN}\r\n\r\n".encode())
    try:
        status = await reader.readline()
        assert b" 200 " in status, status
        arrived["listening"] += 1
        while line := await reader.readline():
            arrived["events"] += line.startswith(b"event:")
    finally:
        writer.close()


async def listening(port, jobs, count):
    """So many listeners, spread over the jobs, once all of them are heard."""
    arrived = {"listening": 0, "events": 0}
    tasks = [asyncio.create_task(listen(port, jobs[n % len(jobs)], arrived)) for n in range(count)]
    deadline = time.monotonic() + PATIENCE_S
    while arrived["listening"] < count:
        for task in tasks:
            if task.done():
                task.result()
        assert time.monotonic() < deadline, arrived
        await asyncio.sleep(0.05)
    return tasks, arrived


async def leave(tasks):
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def health_times(port):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    times = []
    for _ in range(ANSWERS):
        begun = time.perf_counter()
        connection.request("GET", "/health")
        response = connection.getresponse()
        response.read()
        times.append((time.perf_counter() - begun) * 1000)
        assert response.status == 200, response.status
        time.sleep(0.01)
    return times


def resident_kib(pid):
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0])


async def measure(port, pid, jobs):
    tasks, arrived = await listening(port, jobs, LISTENERS)
    times = await asyncio.to_thread(health_times, port)
    assert arrived["events"] > LISTENERS, f"{arrived}: every listener hears of its job, and of more than that"
    await leave(tasks)
    # The last that waits: it says little meanwhile.
    before = resident_kib(pid)
    tasks, _ = await listening(port, jobs[-1:], MANY)
    each = (resident_kib(pid) - before) / MANY
    await leave(tasks)
    return statistics.quantiles(times, n=100)[98], each


def hand_in(caller, job_id):
    """A job that takes its time; its webhook is of no interest."""
    body = {"job_id": job_id, "prompt": "a red mug on the beach", "width": 256, "height": 256, "steps": STEPS}
    headers = {"content-type": "application/json", "x-internal-auth": TOKEN}
    caller.connection.request("POST", "/generate", json.dumps(body), headers)
    response = caller.connection.getresponse()
    answer = response.read()
    assert response.status == 202, (response.status, answer)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="bench", help="cargo profile that the host is built in")
    parser.add_argument("--note", default="", help="what a reader of the results must know about this run")
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (MANY + LISTENERS + 256, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    program, servers = artifacts(options.profile)
    notifications, port = Notifications(servers), free_port()
    environment = os.environ | notifications.environment | {"RUST_LOG": "warn"}
    with tempfile.TemporaryDirectory() as directory, open(Path(directory) / "log", "w+") as log:
        ours = {"ATELIER__SOURCES__SPOOL__DIRECTORY": f"{directory}/spool", "ATELIER__SERVER__ADDRESS": "127.0.0.1",
                # Half of them may follow jobs.
                "ATELIER__HOST__HTTP__MAX_CONNECTIONS": str(4 * MANY)}  # fmt: skip
        command = [program, "--config", "src/demo/config.yaml", "host", "--port", str(port), "--handlers", "1"]
        host = start(command, environment | ours, log)
        try:
            caller = Caller(notifications, port, "/generate")
            answers(port)
            jobs = [f"long-{n}" for n in range(JOBS)]
            for job_id in jobs:
                hand_in(caller, job_id)
            p99, each = asyncio.run(measure(port, host.pid, jobs))
        except BaseException:
            log.seek(0)
            print(log.read()[-5000:])
            raise
        finally:
            host.send_signal(signal.SIGKILL)
            host.wait(PATIENCE_S)
            notifications.process.stdin.close()
    device, note = cpu(len(os.sched_getaffinity(0))), noted(options.note)
    report("listeners", "cpu", [
        row("listeners_health_p99", f"ms, {LISTENERS} listeners, jobs running on every core", p99, "the contract's limit", CONTRACT_MS, device, note),
        row("listeners_memory", f"KiB for each of {MANY:,} listeners", each, "what this project allows", ALLOWED_KIB, device, note),
    ])  # fmt: skip


if __name__ == "__main__":
    main()
