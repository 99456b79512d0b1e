"""How fast the engine paints, against diffusers on the same CPU: same weights, same steps, as many threads, in turns.

    python bench/engine.py [--profile dev] [--only tiny|full] [--note TEXT]    needs torch, diffusers, transformers

tiny: a picture of models/tiny-sd, 20 steps, guidance 7.5. full: SD 1.5's own sizes with random weights, one forward of the
UNet at 512x512 (batch 1, no guidance) and one decode of the VAE. Times are medians over runs that alternate.
"""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import diffusers
import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, StableDiffusionPipeline, UNet2DConditionModel
from report import cpu, report, row
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

ROOT = Path(__file__).resolve().parent.parent
TINY = ROOT / "models" / "tiny-sd"
THREADS = len(os.sched_getaffinity(0))
PEER = f"diffusers {diffusers.__version__}, torch {torch.__version__}"


class Ours:
    """bench/engine.rs as a child process that waits for work."""

    def __init__(self, profile, folder):
        build = ["cargo", "bench", "--bench", "engine", "--no-run", "--profile", profile, "--message-format", "json"]
        lines = subprocess.run(build, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
        built = [m["executable"] for m in map(json.loads, lines) if m.get("target", {}).get("name") == "engine"]
        threads = {"RAYON_NUM_THREADS": str(THREADS)}
        self.child = subprocess.Popen(
            [built[-1], str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | threads
        )
        assert self.child.stdout.readline() == "ready\n", "the engine did not load"

    def time(self, work):
        self.child.stdin.write(work + "\n")
        self.child.stdin.flush()
        return float(self.child.stdout.readline())


def timed(work):
    start = time.perf_counter()
    with torch.inference_mode():
        work()
    return time.perf_counter() - start


def compare(ours, line, peer, runs):
    """Medians of our seconds and the peer's, taken in turns after one run of each that does not count."""
    pairs = [(ours.time(line), timed(peer)) for _ in range(runs + 1)][1:]
    return [statistics.median(times) for times in zip(*pairs, strict=True)]


def tiny(profile, note):
    pipeline = StableDiffusionPipeline.from_pretrained(str(TINY), torch_dtype=torch.float32, safety_checker=None)
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    side = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
    ours = Ours(profile, TINY)
    for images in (1, 4):

        def paint(images=images):
            generator = torch.Generator().manual_seed(42)
            pipeline("a red apple on a table", negative_prompt="", num_inference_steps=20, guidance_scale=7.5, width=side,
                     height=side, num_images_per_prompt=images, generator=generator, output_type="np")  # fmt: skip

        mine, theirs = compare(ours, f"paint {side} 20 {images}", paint, runs=7)
        what = f"tiny-sd, {images} x {side}x{side}, 20 steps, guidance 7.5"
        yield row(what, "seconds", mine, PEER, theirs, cpu(THREADS), note)


def full(profile, note):
    with tempfile.TemporaryDirectory() as folder:
        pipeline = full_size(folder)
        ours = Ours(profile, folder)
        latents, text = torch.randn(1, 4, 64, 64), torch.randn(1, 77, 768)
        mine, theirs = compare(ours, "unet 512", lambda: pipeline.unet(latents, 500, text), runs=3)
        yield row("SD 1.5 UNet, one forward, 512x512, batch 1", "seconds", mine, PEER, theirs, cpu(THREADS), note)
        mine, theirs = compare(ours, "decode 512", lambda: pipeline.vae.decode(latents), runs=3)
        yield row("SD 1.5 VAE, one decode, 512x512", "seconds", mine, PEER, theirs, cpu(THREADS), note)


def full_size(folder):
    """SD 1.5's UNet and VAE with random weights; the text encoder is one layer deep, it is not measured."""
    tokenizer = CLIPTokenizer.from_pretrained(str(TINY / "tokenizer"))
    text = CLIPTextConfig(vocab_size=len(tokenizer), hidden_size=768, intermediate_size=3072, num_hidden_layers=1,
                          num_attention_heads=12, hidden_act="quick_gelu")  # fmt: skip
    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512), layers_per_block=2, sample_size=512,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    pipeline = StableDiffusionPipeline(
        vae=vae, text_encoder=CLIPTextModel(text), tokenizer=tokenizer, unet=unet, safety_checker=None,
        scheduler=DPMSolverMultistepScheduler(), feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.save_pretrained(folder)
    return pipeline


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="bench", help="cargo profile that ours is built in")
    parser.add_argument("--only", choices=("tiny", "full"))
    parser.add_argument("--note", default="", help="what a reader of the results must know about this run")
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    for name, benchmark in {"tiny": tiny, "full": full}.items():
        if options.only in (None, name):
            report(f"engine-{name}", "cpu", list(benchmark(options.profile, options.note)))


if __name__ == "__main__":
    main()
