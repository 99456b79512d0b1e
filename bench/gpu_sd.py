"""Stable Diffusion 1.5 at its own sizes against diffusers, eager and compiled: cold start, memory, and times taken in turns."""

from functools import partial

from diffusers import UNet2DConditionModel
from engine import PEER, compare
from gpu_run import Memory

WARM_UP = 2


def works(side):
    """(name, what it is, the line that both sides are given, runs); what torch.compile takes longest for comes last."""
    image = f"{side}x{side}, guidance 7.5"
    yield "sd15_step_b1", f"guided UNet step, {side}x{side}, batch 1", f"unet {side} 2", 20
    yield "vae_decode", f"one decode, {side}x{side}", f"decode {side}", 10
    yield "text_encode", "one prompt, 77 tokens", "encode", 10
    yield "sd15_20_steps", f"an image, 20 steps, {image}", f"generate {side} 20 1", 3
    yield "sd15_50_steps", f"an image, 50 steps, {image}", f"generate {side} 50 1", 3
    yield "sd15_step_b4", f"guided UNet step, {side}x{side}, batch 4", f"unet {side} 8", 10
    yield "sd15_20_steps_b4", f"4 images, 20 steps, {image}", f"generate {side} 20 4", 2
    yield "sd15_50_steps_b4", f"4 images, 50 steps, {image}", f"generate {side} 50 4", 2


def alone(run, start, side):
    """Of a process that has the device for itself: seconds until it is ready and until the first image, peaks in MiB."""
    with Memory(run.device) as memory, start() as child:
        memory.process_id = child.process.pid
        first = child.ready_seconds + child.time(f"generate {side} 20 1")
        one = memory.peak_mib()
        child.time(f"generate {side} 20 4")
        return child.computes_in, (child.ready_seconds, first, one, memory.peak_mib())


def rows(run):
    directory = run.stable_diffusion
    side = UNet2DConditionModel.load_config(directory / "unet")["sample_size"] * 8
    (ours_in, ours), (theirs_in, theirs) = (
        alone(run, start, side) for start in (partial(run.ours, run.engine, directory), partial(run.peer, "sd", directory))
    )
    whats = [
        ("cold_start_ready: process start to ready for work, files in the page cache", "seconds"),
        ("cold_start_first_image: process start to the first image, 20 steps", "seconds"),
        ("peak_memory_b1: process start to the first image", "MiB"),
        ("peak_memory_b4: 4 images at once", "MiB"),
    ]
    for (what, unit), mine, their in zip(whats, ours, theirs, strict=True):
        yield run.row(f"{what}; ours in {ours_in}", unit, mine, f"{PEER}, {theirs_in}, alone", their)
    for way in ("eager",) if run.rehearse else ("eager", "compiled"):
        with run.ours(run.engine, directory) as engine, run.peer("sd", directory, way) as peer:
            for name, what, line, runs in works(side):
                counted, warm_up = (1, 0) if run.rehearse else (runs, WARM_UP)
                mine, their = compare(partial(engine.time, line), partial(peer.time, line), counted, warm_up)
                yield run.row(f"{name}: {what}; ours in {engine.computes_in}", "seconds", mine, f"{PEER}, {peer.computes_in}", their)
