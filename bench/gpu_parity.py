"""Every stage and format of LoRA on a GPU against diffusers in f32 on the same GPU, beside how far diffusers is from that in halves.

The tiny checkpoints of tests/fixtures: every parameter is a random number. A figure is that of a stage's worst case. In f32 it is the
largest difference over the largest value of the reference, and may be 1e-4; in a half the root of the mean square, and may be twice
diffusers' own in the same format, because each rounds at every layer in its own order. The adapters that diffusers cannot read are
merged by LyCORIS, as in tests/oracle/adapters.py.
"""

import json
import os
import sys

import gpu_parity_edit
import torch
from diffusers import StableDiffusionPipeline
from engine import ROOT
from gpu_stages import Stages, compared
from safetensors.torch import load_file

SD = ROOT / "tests/fixtures/sd"
PROMPT, NEGATIVE = "a small lighthouse over the sea", "storm, dog"
MIXED = "A  bright, OLD lighthouse over the sea; it's 7 o'clock — größe 東京 🎨!"
TIMESTEPS = {"1x9x13": 333.25, "4x9x13": 500.0, "1x8x8": 999.0}


class Diffusers:
    """The stages as diffusers has them; inputs and outputs as crates/engine/bench/engine.rs says."""

    def __init__(self, pipeline, device):
        self.pipeline, self.device = pipeline.to(device), device

    def __call__(self, dtype):
        self.pipeline.to(dtype=dtype)
        return lambda name, inputs: {key: value.float() for key, value in getattr(self, name)(dtype, **inputs).items()}

    def text(self, _dtype, prompt):
        words = {"padding": "max_length", "max_length": 77, "truncation": True, "return_tensors": "pt"}
        tokens = self.pipeline.tokenizer(prompt, **words).input_ids.to(self.device)
        return {"states": self.pipeline.text_encoder(tokens)[0]}

    def unet(self, dtype, latents, text, timestep, guidance_scale):
        latents, text = latents.to(self.device, dtype), text.to(self.device, dtype)
        rows = text.shape[0] // latents.shape[0]
        noise = self.pipeline.unet(torch.cat([latents] * rows), torch.tensor(timestep, device=self.device), text).sample
        if rows == 1:
            return {"noise": noise}
        negative, positive = noise.chunk(2)
        return {"noise": negative + guidance_scale * (positive - negative)}

    def decode(self, dtype, latents):
        vae = self.pipeline.vae
        return {"pixels": vae.decode(latents.to(self.device, dtype) / vae.config.scaling_factor).sample}

    def encode(self, dtype, pixels):
        vae = self.pipeline.vae
        moments = vae.encode(pixels.to(self.device, dtype)).latent_dist
        return {"mean": moments.mean * vae.config.scaling_factor, "std": moments.std * vae.config.scaling_factor}


def open_pipeline():
    pipeline = StableDiffusionPipeline.from_pretrained(SD / "sd15", torch_dtype=torch.float32, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def without_lora(diffusers):
    """The cases of the plain model."""
    latents = load_file(SD / "sd15.safetensors")
    for prompt in (MIXED, "sea " * 200):
        yield "text states", "text", {"prompt": prompt}
    text = torch.cat([diffusers.text(torch.float32, prompt)["states"] for prompt in (NEGATIVE, PROMPT)])
    for size, timestep in TIMESTEPS.items():
        given = latents[f"unet/{size}/latents"]
        both = text.repeat_interleave(given.shape[0], 0)
        yield "UNet guided", "unet", {"latents": given, "text": both, "timestep": timestep, "guidance_scale": 7.5}
        if given.shape[0] == 1:
            yield "VAE decode", "decode", {"latents": given}
    yield "VAE encode", "encode", {"pixels": torch.rand(1, 3, 72, 104, generator=torch.Generator().manual_seed(1)) * 2 - 1}


def with_lora(diffusers):
    """The cases of each format; the text is what diffusers makes of it in f32."""
    yield "text states", "text", {"prompt": PROMPT}
    latents, text = load_file(SD / "sd15.safetensors")["unet/1x9x13/latents"], diffusers.text(torch.float32, PROMPT)["states"]
    yield "UNet", "unet", {"latents": latents, "text": text, "timestep": 500.0, "guidance_scale": 1.0}


def formats():
    """(name, files with scales, diffusers' pipeline with them) of every format of LoRA."""
    directory = SD / "loras"
    for mix, scales in json.loads((directory / "mixes.json").read_text()).items():
        pipeline = open_pipeline()
        for lora in scales:
            pipeline.load_lora_weights(directory, weight_name=f"{lora}.safetensors", adapter_name=lora)
        pipeline.set_adapters(list(scales), list(scales.values()))
        yield f"LoRA {mix}", [(directory / f"{lora}.safetensors", scale) for lora, scale in scales.items()], pipeline
    sys.path.insert(0, str(ROOT / "tests/oracle"))
    try:
        import adapters
    except ModuleNotFoundError as missing:
        raise RuntimeError(f"the adapters' oracle wants lycoris-lora, einops and toml: {missing}") from missing
    for name, scale in json.loads((adapters.DIRECTORY / "scales.json").read_text()).items():
        yield f"adapter {name}", [(adapters.DIRECTORY / f"{name}.safetensors", scale)], adapters.adapted(name, scale)


def stable_diffusion(run):
    with run.ours(run.engine, SD / "sd15", dtype="f32") as whole, run.ours(run.engine, SD / "sd15", dtype="f16") as rounded:
        ours = {torch.float32: Stages(whole), torch.float16: Stages(rounded)}
        diffusers = Diffusers(open_pipeline(), run.device)
        yield from compared(run, "sd15, no LoRA", list(without_lora(diffusers)), diffusers, ours)
        for name, files, pipeline in formats():
            diffusers = Diffusers(pipeline, run.device)
            cases = list(with_lora(diffusers))
            for child in (whole, rounded):
                child.time("loras " + " ".join(f"{path} {scale}" for path, scale in files))
            yield from compared(run, f"sd15, {name}", cases, diffusers, ours)


def rows(run):
    # f32 is to be f32 on both sides, whatever NVIDIA's libraries would choose.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    os.environ["NVIDIA_TF32_OVERRIDE"] = "0"
    try:
        with torch.no_grad():
            yield from stable_diffusion(run)
            yield from gpu_parity_edit.rows(run)
    finally:
        del os.environ["NVIDIA_TF32_OVERRIDE"]
