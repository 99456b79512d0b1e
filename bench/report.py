"""What every benchmark ends with: a table on the terminal and bench/results/<name>-<device>.json."""

import datetime
import functools
import json
import os
import platform
import subprocess
from pathlib import Path

HERE = Path(__file__).resolve().parent


def cpu(threads):
    """The processor's name and how many threads were used."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {threads} threads"


def noted(note):
    """The note with what else the machine had to do."""
    return "; ".join(filter(None, [note, f"load average {os.getloadavg()[0]:.1f}"]))


def row(what, unit, ours, peer, peer_value, device, note=""):
    """One result. `ratio` above 1 means that we are faster (or smaller); units are those of a cost, never of a speed."""
    date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%MZ")
    result = {"what": what, "unit": unit, "ours": ours, "peer": peer, "peer_value": peer_value,
              "ratio": round(peer_value / ours, 3), "device": device, "commit": commit(), "date": date}  # fmt: skip
    return result | ({"note": note} if note else {})


@functools.cache
def commit():
    """BENCH_COMMIT says it where the repository's history is not."""
    describe = ["git", "describe", "--always", "--dirty"]
    return os.environ.get("BENCH_COMMIT") or subprocess.run(describe, cwd=HERE, capture_output=True, text=True, check=True).stdout.strip()


def show(rows):
    """Prints the table."""
    width = max(len(r["what"]) for r in rows)
    print(f"{'what':<{width}}  {'ours':>10}  {'peer':>10}  {'ratio':>6}  unit")
    for r in rows:
        print(f"{r['what']:<{width}}  {r['ours']:>10.4g}  {r['peer_value']:>10.4g}  {r['ratio']:>6.2f}  {r['unit']}, {r['peer']}")


def report(name, device_kind, rows):
    """Prints the table and writes the file."""
    show(rows)
    file = HERE / "results" / f"{name}-{device_kind}.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(rows, indent=2) + "\n")
    print(f"written to {file.relative_to(HERE.parent)}")
