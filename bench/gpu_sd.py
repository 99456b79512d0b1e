"""Stable Diffusion 1.5 at its own sizes against diffusers, eager and compiled: cold start, memory, and times taken in turns."""

from functools import partial

from diffusers import UNet2DConditionModel
from engine import PEER, compare
from gpu_run import Memory

WARM_UP = 2


def works(side):
    """(name, what it is, the line that both sides are given, runs); what torch.compile takes longest for comes last."""
    picture = f"{side}x{side}, guidance 7.5"
    yield "sd15_step_b1", f"guided UNet step, {side}x{side}, batch 1", f"unet {side} 2", 20
    yield "vae_decode", f"one decode, {side}x{side}", f"decode {side}", 10
    yield "text_encode", "one prompt, 77 tokens", "encode", 10
    yield "sd15_20_steps", f"a picture, 20 steps, {picture}", f"paint {side} 20 1", 3
    yield "sd15_50_steps", f"a picture, 50 steps, {picture}", f"paint {side} 50 1", 3
    yield "sd15_step_b4", f"guided UNet step, {side}x{side}, batch 4", f"unet {side} 8", 10
    yield "sd15_20_steps_b4", f"4 pictures, 20 steps, {picture}", f"paint {side} 20 4", 2
    yield "sd15_50_steps_b4", f"4 pictures, 50 steps, {picture}", f"paint {side} 50 4", 2


def alone(run, start, side):
    """Of a process that has the device for itself: seconds until it is ready and until the first picture, peaks in MiB."""
    with Memory(run.device) as memory, start() as child:
        memory.process_id = child.process.pid
        first = child.ready_seconds + child.time(f"paint {side} 20 1")
        one = memory.peak_mib()
        child.time(f"paint {side} 20 4")
        return child.computes_in, (child.ready_seconds, first, one, memory.peak_mib())


def rows(run):
    folder = run.stable_diffusion
    side = UNet2DConditionModel.load_config(folder / "unet")["sample_size"] * 8
    (ours_in, ours), (theirs_in, theirs) = (
        alone(run, start, side) for start in (partial(run.ours, run.engine, folder), partial(run.peer, "sd", folder))
    )
    whats = [
        ("cold_start_ready: process start to ready for work, files in the page cache", "seconds"),
        ("cold_start_first_picture: process start to the first picture, 20 steps", "seconds"),
        ("peak_memory_b1: process start to the first picture", "MiB"),
        ("peak_memory_b4: 4 pictures at once", "MiB"),
    ]
    for (what, unit), mine, their in zip(whats, ours, theirs, strict=True):
        yield run.row(f"{what}; ours in {ours_in}", unit, mine, f"{PEER}, {theirs_in}, alone", their)
    for way in ("eager",) if run.rehearse else ("eager", "compiled"):
        with run.ours(run.engine, folder) as engine, run.peer("sd", folder, way) as peer:
            for name, what, line, runs in works(side):
                counted, warm_up = (1, 0) if run.rehearse else (runs, WARM_UP)
                mine, their = compare(partial(engine.time, line), partial(peer.time, line), counted, warm_up)
                yield run.row(f"{name}: {what}; ours in {engine.computes_in}", "seconds", mine, f"{PEER}, {peer.computes_in}", their)
