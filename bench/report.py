"""What every benchmark ends with: a table on the terminal and bench/results/<name>-<device>.json."""

import datetime
import json
import platform
import subprocess
from pathlib import Path

HERE = Path(__file__).resolve().parent


def cpu(threads):
    """The processor's name and how many threads were used."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {threads} threads"


def row(what, unit, ours, peer, peer_value, device, note=""):
    """One result. `ratio` above 1 means that we are faster (or smaller); units are those of a cost, never of a speed."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=HERE, capture_output=True, text=True, check=True
    ).stdout.strip()
    date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%MZ")
    result = {"what": what, "unit": unit, "ours": ours, "peer": peer, "peer_value": peer_value,
              "ratio": round(peer_value / ours, 3), "device": device, "commit": commit, "date": date}  # fmt: skip
    return result | ({"note": note} if note else {})


def report(name, device_kind, rows):
    """Prints the table and writes the file."""
    width = max(len(r["what"]) for r in rows)
    print(f"{'what':<{width}}  {'ours':>10}  {'peer':>10}  {'ratio':>6}  unit")
    for r in rows:
        print(f"{r['what']:<{width}}  {r['ours']:>10.4g}  {r['peer_value']:>10.4g}  {r['ratio']:>6.2f}  {r['unit']}, {r['peer']}")
    file = HERE / "results" / f"{name}-{device_kind}.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(rows, indent=2) + "\n")
    print(f"written to {file.relative_to(HERE.parent)}")
