"""What the parts of bench/gpu.py share: where they run, by when they must have ended, and how much memory is taken meanwhile."""

import dataclasses
import functools
import os
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import diffusers
import torch
import transformers
from engine import ROOT, TINY, Child, full_size
from report import cpu, row

POLL_SECONDS = 0.02
MIB = 1 << 20


def quiet():
    """No bars and no advice among the results."""
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()


@dataclasses.dataclass
class Run:
    engine: str
    edit: str
    rehearse: bool
    note: str
    deadline: float | None = None
    kept: ExitStack = dataclasses.field(default_factory=ExitStack)

    @property
    def device(self):
        return "cpu" if self.rehearse else "cuda"

    @functools.cached_property
    def name(self):
        """The processor, and what drives it."""
        if self.rehearse:
            return cpu(os.cpu_count())
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
        driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
        return f"{torch.cuda.get_device_name()}, driver {driver}, torch's CUDA {torch.version.cuda}"

    @functools.cached_property
    def stable_diffusion(self):
        """A directory with Stable Diffusion 1.5 at its own sizes, random weights; the bundled model in a rehearsal."""
        if self.rehearse:
            return TINY
        directory = Path(self.kept.enter_context(tempfile.TemporaryDirectory()))
        full_size(directory)
        return directory

    def ours(self, binary, directory, **options):
        return Child([binary, directory, *(f"{name}={value}" for name, value in options.items())], self.deadline)

    def peer(self, family, directory, way="eager"):
        return Child([sys.executable, ROOT / "bench/gpu_peer.py", family, directory, self.device, way], self.deadline)

    def row(self, what, unit, ours, peer, peer_value):
        return row(what, unit, ours, peer, peer_value, self.name, self.note)


class Memory:
    """Samples how much of the device's memory is taken, beyond what was when this began; of a CPU's, what one process takes."""

    def __init__(self, device):
        self.device, self.process_id, self.peak = device, None, 0
        self.before = self.taken()
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self.sample, daemon=True)

    def taken(self):
        if self.device == "cuda":
            free, total = torch.cuda.mem_get_info()
            return total - free
        status = Path(f"/proc/{self.process_id}/status")
        text = status.read_text() if status.exists() else ""
        return int(text.split("VmRSS:")[1].split()[0]) * 1024 if "VmRSS:" in text else 0

    def sample(self):
        while not self.stopped.is_set():
            self.peak = max(self.peak, self.taken() - self.before)
            time.sleep(POLL_SECONDS)

    def now_mib(self):
        return (self.taken() - self.before) / MIB

    def peak_mib(self):
        """The most since this was asked last."""
        peak, self.peak = self.peak, 0
        return max(peak / MIB, self.now_mib())

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stopped.set()
        self.thread.join()
