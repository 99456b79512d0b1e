"""How fast the engine generates, against diffusers on the same CPU: same weights, same steps, as many threads, in turns.

    OMP_WAIT_POLICY=passive python bench/engine.py [--profile dev] [--only tiny|full|sdxl|memory|cold|previews] [--note TEXT]    needs torch, diffusers, transformers, openvino

tiny: an image of models/tiny-sd, 20 steps, guidance 7.5. full: SD 1.5's own sizes with random weights, one forward of the
UNet at 512x512 (batch 1, no guidance), one prompt's encoding, one decode of the VAE, the first and the last against OpenVINO as well. sdxl: Stable Diffusion XL's innermost block at its own width,
as an image of 1024x1024 passes it, and the memory of a process that has it. memory: the peak of an image's process, in each mode.
cold: from a process's start until SD 1.5 is loaded, out of the page cache, from a diffusers directory and from what `atelier models pack` made of
it. previews: what one preview costs a step, and the first one, which fits its map. Times are medians over runs that alternate.
Without the policy torch's OpenMP threads spin while ours compute.
"""

import argparse
import json
import os
import select
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path

import diffusers
import torch
from diffusers import (
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from report import cpu, report, row
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

ROOT = Path(__file__).resolve().parent.parent
TINY = ROOT / "models" / "tiny-sd"
THREADS = len(os.sched_getaffinity(0))
PEER = f"diffusers {diffusers.__version__}, torch {torch.__version__}"


class Child:
    """One side of a comparison as a process of its own: crates/engine/bench/engine.rs or crates/engine/bench/edit.rs, or a peer's script that speaks like them."""

    def __init__(self, command, deadline=None):
        """`deadline`: of all its answers, as `time.monotonic` counts; then it is killed, and TimeoutError raised."""
        self.command, self.deadline = [str(word) for word in command], deadline
        start = time.perf_counter()
        self.process = subprocess.Popen(
            self.command, env=os.environ | {"RAYON_NUM_THREADS": str(THREADS)},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.computes_in = self.answer().removeprefix("ready ")
        self.ready_seconds = time.perf_counter() - start

    def time(self, work):
        """Seconds, as the process itself has counted them."""
        return self.times(work)[0]

    def times(self, work):
        self.process.stdin.write(work + "\n")
        self.process.stdin.flush()
        return [float(word) for word in self.answer().split()]

    def answer(self):
        left = None if self.deadline is None else max(self.deadline - time.monotonic(), 0)
        if not select.select([self.process.stdout], [], [], left)[0]:
            self.close()
            raise TimeoutError(f"no time left for {' '.join(self.command)}")
        line = self.process.stdout.readline().strip()
        if not line:
            raise RuntimeError(f"{' '.join(self.command)} ended with status {self.process.wait()}")
        return line

    def close(self):
        self.process.kill()
        self.process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def built(profile, bench):
    """The program of bench/<bench>.rs."""
    build = ["cargo", "bench", "--bench", bench, "--no-run", "--profile", profile, "--message-format", "json"]
    lines = subprocess.run(build, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
    return [m["executable"] for m in map(json.loads, lines) if m.get("target", {}).get("name") == bench][-1]


def timed(work):
    start = time.perf_counter()
    with torch.inference_mode():
        work()
    return time.perf_counter() - start


def compare(ours, peer, runs, warm_up=1):
    """Medians of what `ours` and `peer` return, seconds, called in turns; the first `warm_up` of each do not count."""
    pairs = [(ours(), peer()) for _ in range(warm_up + runs)][warm_up:]
    return [statistics.median(times) for times in zip(*pairs, strict=True)]


def tiny(profile, note):
    pipeline = StableDiffusionPipeline.from_pretrained(str(TINY), torch_dtype=torch.float32, safety_checker=None)
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    side = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
    ours = Child([built(profile, "engine"), TINY])
    for images in (1, 4):

        def generate(images=images):
            generator = torch.Generator().manual_seed(42)
            pipeline("a red apple on a table", negative_prompt="", num_inference_steps=20, guidance_scale=7.5, width=side,
                     height=side, num_images_per_prompt=images, generator=generator, output_type="np")  # fmt: skip

        mine, theirs = compare(partial(ours.time, f"generate {side} 20 {images}"), partial(timed, generate), runs=7)
        what = f"tiny_image: tiny-sd, {images} x {side}x{side}, 20 steps, guidance 7.5"
        yield row(what, "seconds", mine, PEER, theirs, cpu(THREADS), note)


def full(profile, note):
    with tempfile.TemporaryDirectory() as directory:
        pipeline = full_size(directory)
        ours = Child([built(profile, "engine"), directory])
        latents, text = torch.randn(1, 4, 64, 64), torch.randn(1, 77, 768)
        mine, theirs = compare(partial(ours.time, "unet 512 1"), lambda: timed(lambda: pipeline.unet(latents, 500, text)), runs=3)
        what = "unet_step: SD 1.5 UNet, one forward, 512x512, batch 1"
        yield row(what, "seconds", mine, PEER, theirs, cpu(THREADS), note)
        unet = in_openvino(lambda *inputs: pipeline.unet(*inputs, return_dict=False)[0], pipeline.unet, latents, torch.tensor(500.0), text)
        again, theirs = compare(partial(ours.time, "unet 512 1"), unet, runs=3)
        yield row(what, "seconds", again, openvino_peer(), theirs, cpu(THREADS), note)
        del unet
        files = [loras(pipeline.unet, f"{directory}/{name}.safetensors", seed) for seed, name in enumerate(("one", "other"))]
        step, switched = mine, statistics.median(ours.time(f"switch {files[0]} {files[1]}") for _ in range(3))
        what = "lora_switch: SD 1.5, change to another LoRA of rank 16 that was used before, 128 attention layers"
        yield row(what, "seconds", switched, "our own UNet step above", step, cpu(THREADS), note)
        tokens = torch.randint(0, len(pipeline.tokenizer), (1, 77))
        mine, theirs = compare(partial(ours.time, "encode"), lambda: timed(lambda: pipeline.text_encoder(tokens)), runs=7)
        yield row("text_encode: CLIP ViT-L/14's text encoder, 77 tokens", "seconds", mine, PEER, theirs, cpu(THREADS), note)
        mine, theirs = compare(partial(ours.time, "decode 512"), lambda: timed(lambda: pipeline.vae.decode(latents)), runs=3)
        what = "vae_decode: SD 1.5 VAE, one decode, 512x512"
        yield row(what, "seconds", mine, PEER, theirs, cpu(THREADS), note)
        decode = in_openvino(lambda latents: pipeline.vae.decode(latents, return_dict=False)[0], pipeline.vae, latents)
        mine, theirs = compare(partial(ours.time, "decode 512"), decode, runs=3)
        yield row(what, "seconds", mine, openvino_peer(), theirs, cpu(THREADS), note)


def openvino_peer():
    import openvino  # not where a GPU is measured

    return f"OpenVINO {openvino.__version__.split('-')[0]}, f32, for latency"


def in_openvino(forward, module, *inputs):
    """What times one forward pass of `module` in OpenVINO, which has to give what torch gives."""
    import openvino

    class Forward(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.module = module

        def forward(self, *inputs):
            return forward(*inputs)

    with torch.inference_mode(), warnings.catch_warnings(category=torch.jit.TracerWarning, action="ignore"):
        expected = forward(*inputs)
        model = openvino.convert_model(Forward().eval(), example_input=inputs)
    settings = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": THREADS}
    request = openvino.compile_model(model, "CPU", settings).create_infer_request()
    values = [tensor.numpy() for tensor in inputs]
    off = (torch.from_numpy(request.infer(values)[0]) - expected).abs().max() / expected.abs().max()
    assert off < 1e-3, f"OpenVINO is off by {off}"
    return lambda: timed(lambda: request.infer(values))


def sdxl(profile, note):
    """SDXL's innermost level: residual blocks and transformers of 1280 channels on the way down, in the middle and up, two blocks each of the ten."""
    with tempfile.TemporaryDirectory() as directory:
        unet = sdxl_block(directory)
        width = f"32x32 latents, 1280 channels, {sum(p.numel() for p in unet.parameters()) / 1e6:.0f} million parameters"
        latents, text = torch.randn(1, 4, 32, 32), torch.randn(1, 77, 2048)
        added = {"text_embeds": torch.randn(1, 1280), "time_ids": torch.tensor([[1024.0, 1024, 0, 0, 1024, 1024]])}
        with Child([built(profile, "engine"), directory]) as ours:
            forward = partial(timed, lambda: unet(latents, 500, text, added_cond_kwargs=added))
            mine, theirs = compare(partial(ours.time, "unet 256 1"), forward, runs=5)
            resident = peak_mib(ours.process.pid)
        yield row(f"sdxl_block: SDXL's innermost level, one forward, {width}", "seconds", mine, PEER, theirs, cpu(THREADS), note)
        command = [sys.executable, "-c", BLOCK, directory]
        peak = float(subprocess.run(command, cwd=Path(__file__).parent, stdout=subprocess.PIPE, text=True, check=True).stdout.split()[-1])
        what = f"sdxl_block_memory: peak of a process with it, text encoders and VAE, one forward, {width}"
        yield row(what, "MiB", resident, PEER, peak, cpu(THREADS), note)


# The peer's own process for the block above: loads the pipeline, goes once through the UNet, and prints its peak.
BLOCK = """
import sys, torch
from diffusers import StableDiffusionXLPipeline
from engine import peak_mib
pipeline = StableDiffusionXLPipeline.from_pretrained(sys.argv[1], add_watermarker=False)
added = {"text_embeds": torch.randn(1, 1280), "time_ids": torch.ones(1, 6)}
with torch.inference_mode():
    pipeline.unet(torch.randn(1, 4, 32, 32), 500, torch.randn(1, 77, 2048), added_cond_kwargs=added)
print(peak_mib("self"))
"""


def sdxl_block(directory):
    """A checkpoint whose UNet is SDXL's innermost level with random weights; its text encoders have one layer each."""
    tokenizer = CLIPTokenizer.from_pretrained(str(TINY / "tokenizer"))
    common = {"vocab_size": len(tokenizer), "num_hidden_layers": 1}
    first = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12, hidden_act="quick_gelu", **common)
    second = CLIPTextConfig(hidden_size=1280, intermediate_size=5120, num_attention_heads=20, hidden_act="gelu", projection_dim=1280, **common)
    unet = UNet2DConditionModel(
        sample_size=32, block_out_channels=(1280,), layers_per_block=1, cross_attention_dim=2048, attention_head_dim=20,
        down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",), transformer_layers_per_block=2,
        use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(32, 32, 32, 32), sample_size=256, scaling_factor=0.13025,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    pipeline = StableDiffusionXLPipeline(
        vae=vae, text_encoder=CLIPTextModel(first), text_encoder_2=CLIPTextModelWithProjection(second), tokenizer=tokenizer, tokenizer_2=tokenizer,
        unet=unet, scheduler=EulerDiscreteScheduler(), add_watermarker=False,
    )  # fmt: skip
    pipeline.save_pretrained(directory)
    return unet.eval()


def memory(profile, note):
    """The most memory a process of its own has had for one image: all of it, the model's 4.1 GiB in f32 and the program included."""
    with tempfile.TemporaryDirectory() as directory:
        full_size(directory)
        for budget, options in ((None, ()), (6000, ("vae_tiling",)), (5000, ("vae_tiling", "attention_slicing"))):
            with Child([built(profile, "engine"), directory]) as ours:
                if budget:
                    ours.time(f"budget {budget}")
                ours.time("generate 512 1 1")
                mine = peak_mib(ours.process.pid)
            command = [sys.executable, __file__, "--generate-in", directory, *options]
            theirs = float(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split()[-1])
            what = f"peak_memory: SD 1.5, 512x512, guidance 7.5, {f'engine.memory_budget_mib {budget}' if budget else 'no budget'}"
            yield row(what, "MiB", mine, f"{PEER}, {' and '.join(options) or 'plain'}", theirs, cpu(THREADS), note)


def previews(profile, note):
    """What a preview adds to the step that it shows: the image in colours, its bytes, and, for the first one, seeded latents decoded and fitted."""
    with tempfile.TemporaryDirectory() as full:
        full_size(full)
        for what, directory, side, steps, generations in (("tiny-sd", TINY, 128, 8, 6), ("SD 1.5's sizes", full, 512, 3, 1)):
            with Child([built(profile, "engine"), directory]) as ours:
                first, next_ones, step = ours.times(f"previews {side} {steps} {generations}")
            what = f"{what}, {side}x{side}, guidance 7.5"
            yield row(f"preview: {what}", "% of the step that it shows", 100 * next_ones / step, "what this project allows", 1.0, cpu(THREADS), note)
            yield row(f"preview_first: {what}, with its fit", "seconds", first, "our own step", step, cpu(THREADS), note)


# The peer's own process, with no more imports than it needs.
LOAD = """
import sys
from diffusers import StableDiffusionPipeline
pipeline = StableDiffusionPipeline.from_pretrained(sys.argv[1], safety_checker=None)
print("ready", flush=True)
sys.stdin.read()
"""


def cold(profile, note):
    """From the start of a process until it says that the model is loaded, in f32."""
    with tempfile.TemporaryDirectory() as root:
        directory, packed = Path(root, "models", "full"), Path(root, "models", "full-f32")
        full_size(directory)
        directory.with_suffix(".yaml").write_text("family: stable-diffusion-1\ncheckpoint: full\n")
        build = ["cargo", "build", "--bin", "atelier", "--profile", profile, "--message-format", "json"]
        lines = subprocess.run(build, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
        atelier = [m["executable"] for m in map(json.loads, lines) if m.get("executable")][-1]
        pack = [atelier, "models", "pack", "--dtype", "f32"]
        subprocess.run(pack, cwd=root, env=os.environ | {"ATELIER_MODEL": "full"}, stdout=subprocess.DEVNULL, check=True)
        ours, theirs = [built(profile, "engine")], [sys.executable, "-c", LOAD]
        runs = [(ready(ours, directory), ready(ours, packed), ready(theirs, directory)) for _ in range(6)][1:]
        plain, one_file, theirs = (statistics.median(seconds) for seconds in zip(*runs, strict=True))
        peer = f"{PEER}, from_pretrained in a process of its own, its import included; it maps the files and reads what is used later"
        for where, mine in (("a diffusers directory", plain), ("a packed directory", one_file)):
            what = f"cold_start_ready: process start to SD 1.5 loaded, f32, from {where}, page cache warm"
            yield row(what, "seconds", mine, peer, theirs, cpu(THREADS), note)


def settle(directory):
    """Brings every file into the page cache, and as much memory as the model takes into this machine: a virtual one gives back to its host what
    no one uses, and the next run would pay for getting it again."""
    _ = b"\1" * (5 << 30)
    for path in filter(Path.is_file, Path(directory).rglob("*")):
        with path.open("rb") as file:
            while file.read(1 << 24):
                pass


def ready(command, directory):
    settle(directory)
    with Child([*command, directory]) as child:
        return child.ready_seconds


def peak_mib(pid):
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def generate_in(directory, options):
    """The peer's own process: prints the most memory it has had."""
    pipeline = StableDiffusionPipeline.from_pretrained(directory, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    if "vae_tiling" in options:
        pipeline.vae.enable_tiling()
    if "attention_slicing" in options:
        pipeline.enable_attention_slicing()
    pipeline("a red apple on a table", negative_prompt="", num_inference_steps=1, guidance_scale=7.5, width=512, height=512)
    print(peak_mib("self"))


def loras(unet, path, seed):
    """A LoRA of every attention projection, in kohya's spelling."""
    random = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, module in unet.named_modules():
        if name.endswith(("to_q", "to_k", "to_v", "to_out.0")):
            out, inside = module.weight.shape
            key = f"lora_unet_{name.replace('.', '_')}"
            tensors[f"{key}.lora_down.weight"] = torch.randn(16, inside, generator=random) * 0.01
            tensors[f"{key}.lora_up.weight"] = torch.randn(out, 16, generator=random) * 0.01
    save_file(tensors, path)
    return path


def full_size(directory):
    """SD 1.5 with random weights; its vocabulary is tiny-sd's."""
    tokenizer = CLIPTokenizer.from_pretrained(str(TINY / "tokenizer"))
    text = CLIPTextConfig(vocab_size=len(tokenizer), hidden_size=768, intermediate_size=3072, num_hidden_layers=12,
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
    pipeline.save_pretrained(directory)
    return pipeline


BENCHMARKS = {"tiny": tiny, "full": full, "sdxl": sdxl, "memory": memory, "cold": cold, "previews": previews}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="bench", help="cargo profile that ours is built in")
    parser.add_argument("--only", choices=BENCHMARKS)
    parser.add_argument("--note", default="", help="what a reader of the results must know about this run")
    parser.add_argument("--generate-in", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    if options.generate_in:
        return generate_in(options.generate_in[0], options.generate_in[1:])
    for name, benchmark in BENCHMARKS.items():
        if options.only in (None, name):
            report(f"engine-{name}", "cpu", list(benchmark(options.profile, options.note)))


if __name__ == "__main__":
    main()
