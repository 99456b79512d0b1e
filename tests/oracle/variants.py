"""Writes tests/fixtures/sd-variants: UNets and text encoders of Stable Diffusion's relatives, and what diffusers computes with them.

    python tests/oracle/variants.py    a minute on a CPU, after make_fixtures.py; the result is committed

Each takes the place of its component in tests/fixtures/sd/sd15. The UNets have another number of blocks on each level.
"""

import json
import shutil

import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    StableDiffusionInpaintPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from make_fixtures import HERE, NEGATIVE, PROMPT, pixels, randomize
from PIL import Image
from samplers import scheduler
from safetensors.torch import load_file, save_file
from starts import SIZE, mask, image
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

OUT = HERE.parent / "sd-variants"
SD15 = HERE / "sd15"


def unet(name, seed, **config):
    """Kept in f16, computed with in f32."""
    model = UNet2DConditionModel(
        block_out_channels=(8, 16), layers_per_block=[2, 1], norm_num_groups=4, cross_attention_dim=24,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=[2, 4], **config,
    )  # fmt: skip
    randomize(model, seed, torch.float16)
    model.save_pretrained(OUT / name / "unet")
    return model.float()


def parts(**replaced):
    base = StableDiffusionPipeline.from_pretrained(SD15, torch_dtype=torch.float32, safety_checker=None)
    return {k: v for k, v in base.components.items() if k != "image_encoder"} | replaced


def generated(pipeline, scheduler, count, **more):
    """One call for each seed: of several in one call the inpaint pipeline encodes the image with the first one's generator alone."""
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = scheduler
    images = []
    for seed in range(42, 42 + count):
        images.append(pixels(pipeline(PROMPT, generator=torch.Generator().manual_seed(seed), output_type="np", **more).images))
    return torch.cat(images)


def inpainting(out):
    components = parts(unet=unet("inpaint", 31, in_channels=9, sample_size=8))
    pipeline = StableDiffusionInpaintPipeline(**components, requires_safety_checker=False)
    base = pipeline.scheduler.config
    more = {"image": Image.fromarray(image(*SIZE)), "mask_image": Image.fromarray(mask(*SIZE)), "width": SIZE[0], "height": SIZE[1],
            "negative_prompt": NEGATIVE, "num_inference_steps": 8}  # fmt: skip
    for name, kind in (("dpmsolver++", DPMSolverMultistepScheduler), ("euler_a", EulerAncestralDiscreteScheduler)):
        for strength in (1.0, 0.6):
            key = f"inpaint/{name}/{strength}"
            out[key] = generated(pipeline, kind.from_config(base), 2, guidance_scale=7.5, strength=strength, **more)
    out["inpaint/unguided"] = generated(pipeline, DPMSolverMultistepScheduler.from_config(base), 1, guidance_scale=1.0, strength=1.0, **more)


def instructed(out):
    components = parts(unet=unet("instructed", 53, in_channels=8, sample_size=8))
    pipeline = StableDiffusionInstructPix2PixPipeline(**components, requires_safety_checker=False)
    base = pipeline.scheduler.config
    # Of which each case has the upper left corner.
    out["edited"] = torch.from_numpy(image(128, 136))
    for name, steps, (width, height), guidance, image_guidance in EDITS:
        key = f"instructed/{name}/{steps}/{width}x{height}/{guidance}/{image_guidance}"
        more = {"image": Image.fromarray(image(width, height)), "num_inference_steps": steps, "guidance_scale": guidance}
        out[key] = generated(pipeline, scheduler(name, base), 2 if name == "euler_a" else 1, image_guidance_scale=image_guidance, negative_prompt=NEGATIVE, **more)


# The test reads these out of the keys. Without guidance, at the least of an image's, with schedulers that draw noise, at odd sides of latents.
EDITS = [("ddim", 6, (72, 104), 7.5, 1.5), ("euler_a", 5, (64, 64), 5.0, 1.0), ("dpmsolver++-karras", 9, (128, 80), 12.0, 2.5), ("pndm", 7, (104, 72), 3.0, 1.25),
         ("unipc", 4, (64, 136), 1.0, 1.5), ("ddpm", 8, (88, 64), 0.0, 4.0), ("heun", 3, (64, 72), 1.5, 7.0)]  # fmt: skip


def distilled(out):
    components = parts(unet=unet("lcm", 47, time_cond_proj_dim=11, sample_size=[8, 12]))
    pipeline = LatentConsistencyModelPipeline(**components, requires_safety_checker=False)
    base = pipeline.scheduler.config
    for guidance in (8.5, 1.0, 3.25):
        out[f"lcm/{guidance}"] = generated(pipeline, LCMScheduler.from_config(base), 2, guidance_scale=guidance, width=104, height=72, num_inference_steps=4)
    pipeline = StableDiffusionPipeline(**components, requires_safety_checker=False)
    solver = DPMSolverMultistepScheduler.from_config(base)
    out["lcm/dpmsolver++"] = generated(pipeline, solver, 1, guidance_scale=4.0, width=104, height=72, num_inference_steps=5)


def texts(out):
    """The same weights with other activations, and with a projection beside them."""
    ids = parts()["tokenizer"](PROMPT, padding="max_length", max_length=77, return_tensors="pt").input_ids
    weights = load_file(SD15 / "text_encoder/model.safetensors")
    config = json.loads((SD15 / "text_encoder/config.json").read_text())
    for activation in ("gelu_new", "gelu_pytorch_tanh", "gelu"):
        model = CLIPTextModel(CLIPTextConfig(**(config | {"hidden_act": activation})))
        model.load_state_dict({k.removeprefix("text_model."): v.float() for k, v in weights.items()}, strict=False)
        out[f"text/{activation}"] = model.eval()(ids).last_hidden_state
    projected = CLIPTextModelWithProjection(CLIPTextConfig(**(config | {"projection_dim": 20})))
    randomize(projected, 59, torch.float16)
    projected.save_pretrained(OUT / "projection/text_encoder")
    out["text/projection"] = projected.float()(ids).last_hidden_state


@torch.no_grad()
def main():
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    out = {}
    inpainting(out)
    instructed(out)
    distilled(out)
    texts(out)
    save_file({key: value.contiguous() for key, value in out.items()}, OUT / "expected.safetensors")
    size = sum(file.stat().st_size for file in OUT.rglob("*") if file.is_file())
    print(f"{size / 1e6:.2f} MB in {OUT}")


if __name__ == "__main__":
    main()
