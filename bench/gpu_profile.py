"""Where a guided UNet step's time goes on a GPU: our kernels by time, launches, and what lies between them.

Measured with NVIDIA's `nsys`, or `ncu` where that is missing; without both it is left out. Loading, prompt and decoding are in every
run of the program, so what one more step adds to an image is a step.
"""

import csv
import io
import os
import shutil
import signal
import subprocess
import tempfile
import time
from functools import partial
from pathlib import Path

from diffusers import UNet2DConditionModel
from engine import PEER, compare

SHORT, LONG = 1, 2
SHOWN = 12


def rows(run):
    tool = next((name for name in ("nsys", "ncu") if shutil.which(name)), None)
    if tool is None:
        print("profile: left out, neither nsys nor ncu is on the PATH")
        return
    directory = run.stable_diffusion
    side = UNet2DConditionModel.load_config(directory / "unet")["sample_size"] * 8
    short, long = (TOOLS[tool]([run.engine, directory], f"generate {side} {steps} 1\n", run.deadline) for steps in (SHORT, LONG))
    step = {name: tuple((more - less) / (LONG - SHORT) for more, less in zip(long[name], short[name], strict=True)) for name in long}
    launches, busy = (sum(both) for both in zip(*step.values(), strict=True))
    line = f"unet {side} 2"
    with run.ours(run.engine, directory) as ours, run.peer("sd", directory) as peer:
        mine, their = compare(partial(ours.time, line), partial(peer.time, line), 10, 3)
        theirs_launched, theirs_busy = peer.time(f"launches {side} 2"), peer.time(f"busy {side} 2")
        what = f"a guided UNet step, {side}x{side}, batch 1; ours in {ours.computes_in}, by {tool}"
        beside = f"{PEER}, {peer.computes_in}, by torch.profiler"
    yield run.row(f"profile_launches: kernels in {what}", "launches", launches, beside, theirs_launched)
    yield run.row(f"profile_busy: time in the kernels of {what}", "seconds", busy, beside, theirs_busy)
    yield run.row(f"profile_gaps: time outside of the kernels of {what}", "seconds", gap(mine, busy), beside, gap(their, theirs_busy))
    for name, (count, seconds) in sorted(step.items(), key=lambda kernel: -kernel[1][1])[:SHOWN]:
        if seconds > 0:
            yield run.row(f"profile_kernel: {count:.0f} x {name}", "seconds", seconds, "all kernels of the step", busy)


def gap(whole, busy):
    """A step without the profiler, less its kernels; a nanosecond where they overlap."""
    return max(whole - busy, 1e-9)


def profiled(command, line, deadline):
    """What it prints, given `line`."""
    left = None if deadline is None else max(deadline - time.monotonic(), 1)
    with subprocess.Popen(
        list(map(str, command)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            printed, _ = process.communicate(line, left)
        except subprocess.TimeoutExpired as expired:
            # With the program that it looks at.
            os.killpg(process.pid, signal.SIGKILL)
            raise TimeoutError(f"no time left for {command[0]}") from expired
    if process.returncode:
        raise RuntimeError(f"{command[0]} ended with status {process.returncode}: {printed[-500:]}")
    return printed


def nsys(command, line, deadline):
    """Launches and seconds by kernel."""
    with tempfile.TemporaryDirectory() as directory:
        trace = f"{directory}/trace"
        profiled(["nsys", "profile", "--trace", "cuda", "--output", trace, *command], line, deadline)
        stats = ["nsys", "stats", "--report", "cuda_gpu_kern_sum", "--format", "csv", "--output", "-", f"{trace}.nsys-rep"]
        table = profiled(stats, "", deadline)
    found = Kernels()
    for row in table_from(table, "Time (%)"):
        found.add(row["Name"], int(row["Instances"]), float(row["Total Time (ns)"]) / 1e9)
    return found


def ncu(command, line, deadline):
    """The same; every kernel is measured by itself, so that it takes longer than it would among the others."""
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory) / "log.csv"
        measured = ["--metrics", "gpu__time_duration.sum", "--clock-control", "none", "--cache-control", "none"]
        options = [*measured, "--csv", "--print-units", "base", "--log-file", log]
        profiled(["ncu", *options, *command], line, deadline)
        table = log.read_text()
    found = Kernels()
    for row in table_from(table, '"ID"'):
        found.add(row["Kernel Name"], 1, float(row["Metric Value"].replace(",", "")) / 1e9)
    return found


class Kernels(dict):
    """(launches, seconds) by a kernel's name; none of what is not there."""

    def __missing__(self, _name):
        return 0, 0.0

    def add(self, name, launches, seconds):
        name = name.replace("(anonymous namespace)::", "").split("(")[0].removeprefix("void ")
        self[name] = (self[name][0] + launches, self[name][1] + seconds)


def table_from(text, first_column):
    """The rows of a CSV table that has other lines before it."""
    lines = text.splitlines()
    start = next((number for number, line in enumerate(lines) if line.startswith(first_column)), None)
    if start is None:
        raise RuntimeError(f"the profiler gave no table: {text[-500:]}")
    return csv.DictReader(io.StringIO("\n".join(line for line in lines[start:] if line.strip())))


TOOLS = {"nsys": nsys, "ncu": ncu}
