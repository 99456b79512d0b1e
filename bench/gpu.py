"""Stable Diffusion 1.5 at its own sizes on a GPU, against diffusers on the same GPU, eager and compiled: same weights, same steps, in turns.

    python bench/gpu.py --binary ENGINE [--rehearse]    bench/gpu.sh calls it; needs torch, diffusers, transformers

Random weights, made there. The peer computes in f16, in the order of channels that its own guide advises; what ours computes in stands in
the rows. --rehearse: the bundled model on a CPU, so that the script can be tried where there is no GPU; nothing is written.
"""

import argparse
import functools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from engine import PEER, TINY, Ours, full_size, timed
from report import cpu, report, row

PROMPT = "a red apple on a table"
# What the engine keeps and computes on a GPU.
OURS = "ours in f32"


class Peer:
    """diffusers on the device, as users run it."""

    def __init__(self, folder, device, compiled):
        self.device = device
        self.dtype = torch.float16 if device == "cuda" else torch.float32
        self.pipeline = StableDiffusionPipeline.from_pretrained(str(folder), torch_dtype=self.dtype, safety_checker=None).to(device)
        self.pipeline.set_progress_bar_config(disable=True)
        self.name = f"{PEER}, {str(self.dtype).removeprefix('torch.')}, {'torch.compile max-autotune' if compiled else 'eager'}"
        if compiled:
            for name in ("unet", "vae"):
                module = getattr(self.pipeline, name).to(memory_format=torch.channels_last)
                setattr(self.pipeline, name, module)
            self.pipeline.unet = torch.compile(self.pipeline.unet, mode="max-autotune", fullgraph=True)
            self.pipeline.vae.decode = torch.compile(self.pipeline.vae.decode, mode="max-autotune", fullgraph=True)
        self.side = self.pipeline.unet.config.sample_size * self.pipeline.vae_scale_factor

    def paint(self, steps, images=1):
        generator = torch.Generator(self.device).manual_seed(42)
        self.pipeline(PROMPT, negative_prompt="", num_inference_steps=steps, guidance_scale=7.5, width=self.side, height=self.side,
                      num_images_per_prompt=images, generator=generator, output_type="np")  # fmt: skip

    def unet(self, rows):
        latents = torch.randn(rows, 4, self.side // 8, self.side // 8, device=self.device, dtype=self.dtype)
        text = torch.randn(rows, 77, self.pipeline.unet.config.cross_attention_dim, device=self.device, dtype=self.dtype)
        return lambda: self.pipeline.unet(latents, 500, text, return_dict=False)

    def decode(self):
        latents = torch.randn(1, 4, self.side // 8, self.side // 8, device=self.device, dtype=self.dtype)
        return lambda: self.pipeline.vae.decode(latents, return_dict=False)

    def seconds(self, work):
        def finished():
            work()
            if self.device == "cuda":
                torch.cuda.synchronize()

        return timed(finished)


def in_turns(ours, line, peer, work, runs):
    """Medians of our seconds and the peer's, after two runs of each that do not count."""
    pairs = [(ours.time(line), peer.seconds(work)) for _ in range(runs + 2)][2:]
    return [statistics.median(times) for times in zip(*pairs, strict=True)]


def works(peer):
    side = peer.side
    yield "sd15_step_b1", f"guided UNet step, {side}x{side}, batch 1", f"unet {side} 2", peer.unet(2), 20
    yield "sd15_step_b4", f"guided UNet step, {side}x{side}, batch 4", f"unet {side} 8", peer.unet(8), 10
    yield "vae_decode", f"one decode, {side}x{side}", f"decode {side}", peer.decode(), 10
    for steps in (20, 50):
        what = f"a picture, {side}x{side}, {steps} steps, guidance 7.5"
        yield f"sd15_{steps}_steps", what, f"paint {side} {steps} 1", functools.partial(peer.paint, steps), 3


def cold_start(binary, folder, side):
    """Seconds from our process's start until it is ready, and until the first picture."""
    start = time.perf_counter()
    ours = Ours(None, folder, binary=binary)
    ours.time(f"paint {side} 20 1")
    return ours.ready_seconds, time.perf_counter() - start


def rows(binary, folder, device, compile_too, note):
    name = torch.cuda.get_device_name() if device == "cuda" else cpu(os.cpu_count())
    side = Peer(folder, device, compiled=False).side
    _, ours = cold_start(binary, folder, side)
    theirs = timed(lambda: subprocess.run([sys.executable, __file__, "--first-picture", str(folder), device], check=True))
    what = f"cold_start_first_picture: process start to the first picture of 20 steps; {OURS}"
    yield row(what, "seconds", ours, f"{PEER}, a process of its own, eager", theirs, name, note)
    engine = Ours(None, folder, binary=binary)
    for compiled in (False, True) if compile_too else (False,):
        peer = Peer(folder, device, compiled)
        for key, what, line, work, runs in works(peer):
            mine, theirs = in_turns(engine, line, peer, work, runs)
            yield row(f"{key}: {what}; {OURS}", "seconds", mine, peer.name, theirs, name, note)
        del peer


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", help="bench/engine.rs, built for this machine")
    parser.add_argument("--rehearse", action="store_true", help="the bundled model on a CPU; nothing is written")
    parser.add_argument("--note", default="", help="what a reader of the results must know about this run")
    parser.add_argument("--first-picture", nargs=2, metavar=("FOLDER", "DEVICE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.first_picture:
        Peer(*options.first_picture, compiled=False).paint(20)
    elif options.rehearse:
        for result in rows(options.binary, TINY, "cpu", compile_too=False, note="rehearsal"):
            print(f"{result['what']}: {result['ours']:.4g} s, {result['peer']}: {result['peer_value']:.4g} s")
    else:
        with tempfile.TemporaryDirectory() as folder:
            full_size(Path(folder))
            report("gpu", "cuda", list(rows(options.binary, folder, "cuda", compile_too=True, note=options.note)))


if __name__ == "__main__":
    main()
