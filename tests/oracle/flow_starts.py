"""Writes tests/fixtures/flow_starts.json and .safetensors: what diffusers' image-to-image and inpainting pipelines make of an image and a mask with the
checkpoints of tests/fixtures/z-image and flux, for crates/engine/tests/it/parity/flow_starts.rs.

    python tests/oracle/flow_starts.py [OUT_DIR SEED]    half a minute on a CPU, after z_image.py and flux.py; the result of seed 1 is committed

Sizes, steps and strengths of the cases follow from the seed but for those that stand below. Made with torch 2.11.0, transformers 5.23.0, diffusers 0.42.1.
"""

import json
import sys
import tempfile
from pathlib import Path

import flux
import numpy
import starts
import torch
import z_image
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FluxImg2ImgPipeline,
    FluxInpaintPipeline,
    ZImageImg2ImgPipeline,
    ZImageInpaintPipeline,
)
from flows import ROOT
from PIL import Image
from safetensors.torch import save_file

SIDES = (96, 80)  # width and height of the image and the mask that the cases have the upper left part of
PROMPT = "a red mug"
FAMILIES = {
    "z-image": (z_image, ZImageImg2ImgPipeline, ZImageInpaintPipeline, {}),
    "flux": (flux, FluxImg2ImgPipeline, FluxInpaintPipeline, {"max_sequence_length": flux.TOKENS}),
}
# Steps, strength, how many images, whether there is a mask, and whether the shift grows with the image.
CASES = [
    (4, 0.3, 1, False, False),
    (9, 0.6, 1, False, False),
    (4, 1.0, 1, False, True),
    (9, 0.3, 1, True, False),
    (4, 0.6, 2, True, True),
    (9, 1.0, 1, True, False),
]  # fmt: skip


def components(name, module):
    """Those of the fixture."""
    with tempfile.TemporaryDirectory() as directory:
        parts = module.checkpoint(Path(directory), module.SIZES[1], 1000).components
        for part in ("transformer", "vae"):
            file = f"{part}/diffusion_pytorch_model.safetensors"
            assert (Path(directory) / file).read_bytes() == (ROOT / "tests/fixtures" / name / file).read_bytes(), f"{name} is another one"
    return {part: value for part, value in parts.items() if part not in ("image_encoder", "feature_extractor")}


def cases_of(name, rng):
    for number, (steps, strength, count, masked, dynamic) in enumerate(CASES):
        width, height = 16 * int(rng.integers(3, 7)), 16 * int(rng.integers(2, 5))
        yield {
            "key": f"{name}/{number}", "family": name, "steps": steps, "strength": strength, "masked": masked, "dynamic": dynamic,
            "width": width, "height": height + 16 * (width == height), "seeds": [int(rng.integers(0, 2**32)) + n for n in range(count)],
        }  # fmt: skip


def generated(module, kinds, parts, case, more):
    """One call for each seed: of several in one call the image is encoded with the first one's generator alone."""
    pipeline = kinds[case["masked"]](**parts)
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler(**(module.DYNAMIC if case["dynamic"] else module.SCHEDULE))
    pipeline.set_progress_bar_config(disable=True)
    size = (case["width"], case["height"])
    words = {"image": Image.fromarray(starts.image(*SIDES)).crop((0, 0, *size)), "width": size[0], "height": size[1]}
    if case["masked"]:
        words["mask_image"] = Image.fromarray(starts.mask(*SIDES)).crop((0, 0, *size))
    images = [
        pipeline(
            prompt=PROMPT, guidance_scale=0.0, num_inference_steps=case["steps"], strength=case["strength"],
            generator=torch.Generator().manual_seed(seed), output_type="np", **words, **more,
        ).images
        for seed in case["seeds"]
    ]  # fmt: skip
    begun = pipeline.scheduler.sigmas[-pipeline.num_timesteps - 1 :]
    return torch.from_numpy((numpy.concatenate(images) * 255).round().astype("uint8")), begun


@torch.no_grad()
def main():
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "tests/fixtures"
    rng = numpy.random.default_rng(int(sys.argv[2]) if len(sys.argv) > 2 else 1)
    pixels = starts.image(*SIDES)
    out, cases = {"image": torch.from_numpy(pixels), "mask": torch.from_numpy(starts.mask(*SIDES))}, []
    for name, (module, *kinds, more) in FAMILIES.items():
        parts = components(name, module)
        moments = parts["vae"].encode(torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1).latent_dist
        config = parts["vae"].config
        out[f"{name}/mean"] = (moments.mean - config.shift_factor) * config.scaling_factor
        out[f"{name}/std"] = moments.std * config.scaling_factor
        for case in cases_of(name, rng):
            out[case["key"]], out[f"{case['key']}/sigmas"] = generated(module, kinds, parts, case, more)
            cases.append(case)
    (target / "flow_starts.json").write_text(json.dumps({"prompt": PROMPT, "cases": cases}, indent=1) + "\n")
    save_file({name: tensor.contiguous() for name, tensor in out.items()}, target / "flow_starts.safetensors")
    (target / "flow_starts.safetensors").chmod(0o644)


if __name__ == "__main__":
    main()
