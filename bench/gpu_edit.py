"""Qwen-Image-Edit-2511 at its own sizes, random weights, in bf16 and 8 bits, against diffusers in bf16 with the same files.

One side after the other, because a card may not hold both; the peer is measured between our two.
"""

import statistics
import tempfile
from pathlib import Path

from engine import PEER
from gpu_run import Memory
from gpu_weights import BLOCKS, POOL, affordable_blocks, all_but_the_transformer, eight_bit, pools, roomiest, transformer_of, whole

TEXT_TOKENS = 450
REFERENCE_PX = 1024
SIZES = {"720p": (720, 1280), "1024px": (1024, 1024)}
WARM_UP, RUNS = 1, 3
STEPS = 4
SMALLER = 8
"""All sides in a rehearsal."""


def works(rehearse):
    """(name, what it is, the line that both sides are given, whether it goes by the number of blocks)."""
    smaller = SMALLER if rehearse else 1
    reference = REFERENCE_PX // smaller
    for size, sides in SIZES.items():
        width, height = (side // smaller // 16 * 16 for side in sides)
        for count in (1, 2):
            what = f"one look of the transformer, {width}x{height}, {count} of {reference}x{reference} beside it, {TEXT_TOKENS} text tokens"
            yield f"edit_step_{size}_{count}ref", what, f"look {width} {height} {count} {reference} {TEXT_TOKENS}", True
    yield "edit_vae_decode", f"one decode, {width}x{height}", f"decode {width} {height}", False
    for count in (1, 2):
        what = f"words and {count} images to an image, {width}x{height}, {STEPS} steps, no guidance"
        yield f"edit_{STEPS}_steps_{count}ref", what, f"edit {width} {height} {count} {STEPS}", False


def measured(run, start):
    """Of a process that has the device for itself: what it computes in, medians by the name of the work, and MiB."""
    warm_up, runs = (0, 1) if run.rehearse else (WARM_UP, RUNS)
    with Memory(run.device) as memory, start() as child:
        memory.process_id = child.process.pid
        found = {}
        for name, _, line, _ in works(run.rehearse):
            found[name] = statistics.median([child.time(line) for _ in range(warm_up + runs)][warm_up:])
            found.setdefault("edit_resident", memory.now_mib())
            # The other side may be too late for a row.
            print(f"{child.computes_in}: {name} {found[name]:.4g} s", flush=True)
        return child.computes_in, found | {"edit_peak_memory": memory.peak_mib()}


def pairs(run, kept, mine, theirs, blocks):
    """`kept`: the format of our weights."""
    (ours_in, ours), (peer_in, peer) = mine, theirs
    fewer = blocks < BLOCKS and not run.rehearse
    for name, what, _, by_blocks in works(run.rehearse):
        scale = BLOCKS / blocks if fewer and by_blocks else 1
        told = (f", of {blocks} blocks, times {scale:.2f}" if by_blocks else f", {blocks} of {BLOCKS} blocks") if fewer else ""
        seconds = (ours[name] * scale, f"{PEER}, {peer_in}", peer[name] * scale)
        yield run.row(f"{name}_{kept}: {what}{told}; ours in {ours_in}", "seconds", *seconds)
    told = f", {blocks} of {BLOCKS} blocks" if fewer else ""
    for name, what in (("edit_resident", "transformer and autoencoder after the first look"), ("edit_peak_memory", "all of it, at most")):
        yield run.row(f"{name}_{kept}: {what}{told}; ours in {ours_in}", "MiB", ours[name], f"{PEER}, {peer_in}", peer[name])


def rows(run):
    pool = pools(1 << 16 if run.rehearse else POOL)
    place = roomiest()
    with tempfile.TemporaryDirectory(dir=place) as directory:
        directory = Path(directory)
        speed = all_but_the_transformer(directory, run.rehearse, pool)
        blocks = 2 if run.rehearse else affordable_blocks(place, speed)
        transformer = transformer_of(run.rehearse, blocks)
        whole(directory, transformer, pool)
        print(f"edit: {blocks} blocks in {place}, {speed / 1e9:.1f} GB/s", flush=True)
        ours = measured(run, lambda: run.ours(run.edit, directory))
        theirs = measured(run, lambda: run.peer("edit", directory))
        yield from pairs(run, "bf16", ours, theirs, blocks)
        # There is no room for both.
        for shard in (directory / "transformer").glob("*.safetensors"):
            shard.unlink()
        eight_bit(directory / "eight-bit.safetensors", transformer, pool)
        ours = measured(run, lambda: run.ours(run.edit, directory, transformer=directory / "eight-bit.safetensors"))
        yield from pairs(run, "fp8", ours, theirs, blocks)
