"""Generates with an exported model through diffusers: a contact sheet, or the measured accuracy on prompts.json.

    python generate.py sheet MODEL_DIR OUT.png [--lora NAME] [--scale 1.0]      24 prompts
    python generate.py evaluate MODEL_DIR [--sheet OUT.png]                     every prompt of MODEL_DIR/prompts.json
    python generate.py loras MODEL_DIR [--sheet OUT.png]                        the style measures with and without each LoRA

The noise of an image is torch.randn((1, 4, 16, 16)) from a CPU generator with the prompt's seed.
"""

import argparse
import json
import warnings
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from latents import TRIGGERS
from measure import holds, load_spec, measure, style_numbers
from prompts import others
from world import COLOURS, OBJECTS, PATTERNS, PLACES, SIZE_PX, sheet

warnings.filterwarnings("ignore")
BATCH = 16
LORA_PROMPTS = 6


def load_pipeline(model):
    pipeline = StableDiffusionPipeline.from_pretrained(model, torch_dtype=torch.float32, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def generate(pipeline, prompts, seeds, steps, guidance_scale, **options):
    """Images (n, 128, 128, 3) uint8; each prompt with the noise of its own seed."""
    images = []
    for start in range(0, len(prompts), BATCH):
        noise = [torch.randn((1, 4, 16, 16), generator=torch.Generator().manual_seed(s)) for s in seeds[start : start + BATCH]]
        out = pipeline(
            prompts[start : start + BATCH], num_inference_steps=steps, guidance_scale=guidance_scale,
            width=SIZE_PX, height=SIZE_PX, latents=torch.cat(noise), output_type="np", **options,
        )  # fmt: skip
        images.append((out.images * 255).round().astype(np.uint8))
    return np.concatenate(images)


def sheet_prompts(trigger=""):
    """24 prompts, every object twice, with all colours, patterns and places among them."""
    phrases = [p[0] for p in PLACES.values()]
    out = []
    for i in range(24):
        words = [list(COLOURS)[(3 * i + i // 8) % 8], PATTERNS[(i + i // 12) % 4], list(OBJECTS)[i % 12], phrases[i % 5]]
        out.append(trigger + "a " + " ".join(w for w in words if w != "plain"))
    return out


def evaluate(pipeline, model, table, steps=None, guidance_scale=None):
    """The share of prompts whose measured colour and object are the expected ones, and the images."""
    spec = load_spec(model)
    rows = table["prompts"]
    images = generate(
        pipeline, [r["prompt"] for r in rows], [r["seed"] for r in rows],
        steps or table["steps"], table["guidance_scale"] if guidance_scale is None else guidance_scale,
    )  # fmt: skip
    found = [measure(p, spec) for p in images]
    for row, f in zip(rows, found):
        if f["colour"] != row["colour"] or f["object"] != row["object"]:
            print(f"  {row['prompt']!r}: {f['colour']} {f['object']} {f['score']:.2f}")
    colour = np.mean([f["colour"] == r["colour"] for f, r in zip(found, rows)])
    objects = np.mean([f["object"] == r["object"] for f, r in zip(found, rows)])
    return colour, objects, images


def lora_report(pipeline, model, table, spec):
    """Style measures of the same prompts and seeds without and with each LoRA."""
    images = []
    for path in sorted(Path(model, "lora").glob("*.safetensors")):
        style = path.stem.split(".")[0]
        if style not in spec["styles"] or "kohya" in path.name:
            continue
        rows = table["prompts"][:LORA_PROMPTS]
        prompts, seeds = [TRIGGERS[style] + r["prompt"] for r in rows], [r["seed"] for r in rows]
        without = generate(pipeline, prompts, seeds, table["steps"], table["guidance_scale"])
        pipeline.load_lora_weights(str(path))
        made = generate(pipeline, prompts, seeds, table["steps"], table["guidance_scale"])
        pipeline.unload_lora_weights()
        for name, batch in [("without", without), ("with", made)]:
            numbers = [style_numbers(p) for p in batch]
            passed = np.mean([holds(n, spec["styles"][style]) for n in numbers])
            print(style, name, {k: round(float(np.mean([n[k] for n in numbers])), 1) for k in numbers[0]}, f"holds {passed:.0%}")
        images += [*without, *made]
    return np.array(images)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["sheet", "evaluate", "loras"])
    parser.add_argument("model")
    parser.add_argument("out", nargs="?")
    parser.add_argument("--lora")
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--others", type=int, help="evaluate this many other prompts, see prompts.py")
    parser.add_argument("--sheet")
    a = parser.parse_args()
    torch.set_num_threads(1)
    pipeline = load_pipeline(a.model)
    if a.what == "sheet":
        trigger = TRIGGERS[a.lora] if a.lora else ""
        if a.lora:
            pipeline.load_lora_weights(f"{a.model}/lora/{a.lora}.safetensors", adapter_name=a.lora)
            pipeline.set_adapters([a.lora], [a.scale])
        guidance = 4.0 if a.guidance is None else a.guidance
        sheet(generate(pipeline, sheet_prompts(trigger), range(24), a.steps, guidance), 8).save(a.out)
        return
    table = json.loads(Path(a.model, "prompts.json").read_text())
    if a.others:
        table["prompts"] = others(a.others)
    if a.what == "evaluate":
        colour, objects, images = evaluate(pipeline, a.model, table, a.steps, a.guidance)
        print(f"{len(images)} prompts, {a.steps} steps, guidance {a.guidance or table['guidance_scale']}: colour {colour:.1%}, object {objects:.1%}")
    else:
        images = lora_report(pipeline, a.model, table, load_spec(a.model))
    if a.sheet:
        sheet(images, 12).save(a.sheet)


if __name__ == "__main__":
    main()
