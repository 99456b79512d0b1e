"""Writes tests/fixtures/tiny-edit: rendered people and garments that the model was not trained on, with what the people look like in
garments of every pattern, for tests/it/world/tryon.rs; and try-ons of diffusers' own pipeline with models/tiny-edit, for
crates/engine/tests/it/parity/tiny_edit.rs.

    python tests/oracle/tiny_edit.py [MODEL_DIR OUT_DIR]    some seconds on a CPU; the result is committed

Made with torch 2.11.0, transformers 5.23.0, diffusers 0.42.1, pillow 12.0.0 (see qwen_text.py for both of its remarks on versions).
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLQwenImage, FlowMatchEulerDiscreteScheduler, QwenImageEditPlusPipeline, QwenImageTransformer2DModel
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as reference
from PIL import Image
from qwen import LIGHTNING
from qwen_text import ROOT, Processor, told_what_is_a_image
from safetensors.torch import load_file, save_file
from transformers import Qwen2_5_VLForConditionalGeneration

import export
import people
import words
from networks import CONDITION_PX, REFERENCE_PX

EXAMPLES = 16
GENERATED = 4
"""Of the examples by diffusers as well."""


def render_examples(target):
    """A sheet each: person, garment, where the garment (red), the eyes (green) and the mouth (blue) will be, then the person in it with every pattern."""
    rng = np.random.default_rng(2028)  # no seed of the training images
    examples, names = [], []
    for number in range(EXAMPLES):
        person, before, after = people.Person(rng), people.random_garment(rng), people.random_garment(rng)
        start, _ = person.wearing(before, masked=number % 4 == 3)
        _, where = person.wearing(after)
        variants = [person.wearing(people.Garment(after.kind, after.colour, pattern))[0] for pattern in people.PATTERNS]
        flat = people.flat_lay(after, rng)
        mask = np.stack([where * np.uint8(255), person.where(*person.eyes()), person.where(person.mouth())], 2)
        Image.fromarray(np.concatenate([start, flat, mask, *variants], 1)).save(target / f"example-{number:02}.png", optimize=True)
        examples.append((start, flat))
        names.append({"garment": after.kind, "colour": after.colour, "pattern": after.pattern})
    (target / "examples.json").write_text(json.dumps(names, indent=1) + "\n")
    return examples


def load(directory):
    reference.VAE_IMAGE_SIZE, reference.CONDITION_IMAGE_SIZE = REFERENCE_PX, CONDITION_PX
    encoder = told_what_is_a_image(Qwen2_5_VLForConditionalGeneration.from_pretrained(directory / "text_encoder", torch_dtype=torch.float32).eval())
    tokenizer = words.new_tokenizer()
    return QwenImageEditPlusPipeline(
        FlowMatchEulerDiscreteScheduler.from_pretrained(directory / "scheduler"),
        AutoencoderKLQwenImage.from_pretrained(directory / "vae", torch_dtype=torch.float32),
        encoder, tokenizer, Processor(tokenizer, words.new_image_processor()),
        QwenImageTransformer2DModel.from_pretrained(directory / "transformer", torch_dtype=torch.float32),
    )  # fmt: skip


def eight_bit(directory):
    """The fp8 file made whole."""
    stored = load_file(directory / "fp8-lightning-4steps.safetensors")
    whole = {n: v.float() for n, v in stored.items() if not n.endswith("weight_scale")}
    return {n: v * stored[n + "_scale"] if n + "_scale" in stored else v for n, v in whole.items()}


def generate(pipeline, example, steps, guidance, seed):
    person, garment = (Image.fromarray(image) for image in example)
    negative = {"negative_prompt": " "} if guidance > 1 else {}
    generated = pipeline(
        image=[person, garment], prompt=words.INSTRUCTION, true_cfg_scale=guidance, num_inference_steps=steps, output_type="np",
        width=people.WIDTH_PX, height=people.HEIGHT_PX, generator=torch.Generator().manual_seed(seed), **negative,
    ).images  # fmt: skip
    return torch.from_numpy((generated[0] * 255).round().astype("uint8")).contiguous()


@torch.no_grad()
def main():
    directory = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "models/tiny-edit"
    target = Path(sys.argv[2]) if len(sys.argv) > 2 else ROOT / "tests/fixtures/tiny-edit"
    target.mkdir(parents=True, exist_ok=True)
    pipeline = load(directory)
    pipeline.set_progress_bar_config(disable=True)
    examples = render_examples(target)[:GENERATED]
    out = {}
    for number, example in enumerate(examples):
        for name, image in zip(["person", "garment"], example):
            out[f"{number}/{name}"] = torch.from_numpy(image.copy())
    out["0/base"] = generate(pipeline, examples[0], 6, 4.0, 42)
    out["1/base"] = generate(pipeline, examples[1], 6, 1.0, 43)
    whole = pipeline.transformer.state_dict()
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler(**LIGHTNING)
    lightning = load_file(directory / "lightning-4steps.safetensors")
    for mode, state in [("lora", export.fused(whole, lightning)), ("fp8", eight_bit(directory))]:
        pipeline.transformer.load_state_dict(state)
        for number, example in enumerate(examples):
            out[f"{number}/{mode}"] = generate(pipeline, example, 4, 1.0, 42 + number)
    save_file(out, target / "expected.safetensors")
    (target / "expected.safetensors").chmod(0o644)


if __name__ == "__main__":
    main()
