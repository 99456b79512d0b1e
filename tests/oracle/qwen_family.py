"""Writes tests/fixtures/qwen-family: tiny random checkpoints of Qwen-Image-Edit and Qwen-Image with all their parts, and what
diffusers' pipelines make of prompts and images with them, for crates/engine/tests/it/parity/qwen_family.rs.

    python tests/oracle/qwen_family.py [OUT_DIR SEED]    a minute on a CPU; the result of seed 1 is committed

Dimensions, weights, images and cases follow from the seed. The test reads what it finds: another seed's directory in place of the
committed one asks for other numbers. Made with torch 2.11.0, transformers 5.23.0, diffusers 0.42.1, pillow 12.0.0 (see qwen_text.py
for both of its remarks on versions).
"""

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImageEditPlusPipeline,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as reference
from PIL import Image
from qwen import LIGHTNING, SCHEDULE, image, normals, randomize
from qwen_text import ROOT, Processor, old_names, told_what_is_a_image
from safetensors.torch import save_file
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

import words

# One of them for each checkpoint. With 3 latent channels the pipeline would take images for latents.
SIZES = [
    {"heads": 2, "axes": (4, 6, 6), "hidden": 40, "latents": 6, "vae": [1, 2, 2, 3], "layers": 2, "key_heads": 1, "sections": [1, 2, 2]},
    {"heads": 3, "axes": (2, 4, 6), "hidden": 32, "latents": 5, "vae": [1, 2, 3], "layers": 3, "key_heads": 2, "sections": [1, 1, 2]},
    {"heads": 1, "axes": (8, 4, 12), "hidden": 24, "latents": 2, "vae": [2, 1, 2, 2], "layers": 1, "key_heads": 2, "sections": [2, 1, 0]},
]
LORA_RANK = 3


def text_encoder(target, tokenizer, size, seed):
    ids = tokenizer.convert_tokens_to_ids
    heads = size["hidden"] // (2 * sum(size["sections"]))
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer) + 5, "hidden_size": size["hidden"], "intermediate_size": 28, "num_hidden_layers": 2,
            "num_attention_heads": heads, "num_key_value_heads": size["key_heads"], "max_position_embeddings": 4096, "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": size["sections"]},
        },
        vision_config={
            "depth": 2, "hidden_size": 16, "intermediate_size": 12, "num_heads": 2, "out_hidden_size": size["hidden"], "patch_size": 14,
            "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 112, "fullatt_block_indexes": [1],
        },
        image_token_id=ids("<|image_pad|>"), video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"), vision_end_token_id=ids("<|vision_end|>"), tie_word_embeddings=False,
    )  # fmt: skip
    randomize(Qwen2_5_VLForConditionalGeneration(config), seed).save_pretrained(target / "text_encoder")
    old_names(target / "text_encoder")
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(target / "text_encoder", torch_dtype=torch.float32).eval()


def components(target, size, seed, edits):
    rng = np.random.default_rng(seed)
    statistics = {"latents_mean": rng.normal(0, 0.5, size["latents"]).tolist(), "latents_std": rng.uniform(0.5, 2, size["latents"]).tolist()}
    transformer = QwenImageTransformer2DModel(
        patch_size=2, in_channels=4 * size["latents"], out_channels=size["latents"], num_layers=size["layers"],
        attention_head_dim=sum(size["axes"]), num_attention_heads=size["heads"], joint_attention_dim=size["hidden"],
        axes_dims_rope=size["axes"], **({"zero_cond_t": True} if edits else {}),
    )  # fmt: skip
    vae = AutoencoderKLQwenImage(
        base_dim=4, z_dim=size["latents"], dim_mult=size["vae"], num_res_blocks=1,
        temperal_downsample=[False, True, True][: len(size["vae"]) - 1], **statistics,
    )  # fmt: skip
    randomize(transformer, seed + 4000).save_pretrained(target / "transformer")
    randomize(vae, seed + 5000).save_pretrained(target / "vae")
    FlowMatchEulerDiscreteScheduler(**SCHEDULE).save_pretrained(target / "scheduler")
    transformer = QwenImageTransformer2DModel.from_pretrained(target / "transformer", torch_dtype=torch.float32)
    vae = AutoencoderKLQwenImage.from_pretrained(target / "vae", torch_dtype=torch.float32)
    return transformer, vae


def tokenizer_of(target, edits):
    """The words of both templates are a token each, so that what the pipelines drop is what they mean to."""
    head = QwenImagePipeline(None, None, None, None, None).prompt_template_encode
    plain = " ".join(part for part in re.split(r"<\|\w+\|>", head))
    words.OTHERS = words.OTHERS.removesuffix(plain) + plain
    tokenizer = words.write(target)
    assert len(tokenizer(words.template().split("{}")[0]).input_ids) == 64
    assert len(tokenizer(head.split("{}")[0]).input_ids) == 34
    if not edits:
        shutil.rmtree(target / "processor")
    return tokenizer


def checkpoint(target, size, seed, edits):
    target.mkdir(parents=True)
    tokenizer = tokenizer_of(target, edits)
    encoder = text_encoder(target, tokenizer, size, seed + 6000)
    transformer, vae = components(target, size, seed, edits)
    scheduler = FlowMatchEulerDiscreteScheduler(**SCHEDULE)
    if edits:
        processor = Processor(tokenizer, words.new_image_processor())
        pipeline = QwenImageEditPlusPipeline(scheduler, vae, told_what_is_a_image(encoder), tokenizer, processor, transformer)
    else:
        pipeline = QwenImagePipeline(scheduler, vae, encoder, tokenizer, transformer)
    index = {"_class_name": type(pipeline).__name__, "_diffusers_version": "0.42.1"}
    (target / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def write_lora(target, transformer, spelling, seed):
    """A Lightning LoRA in each spelling of a Qwen transformer's modules."""
    tensors = {}
    modules = [(n, m) for n, m in transformer.named_modules() if isinstance(m, torch.nn.Linear) and (".attn." in n or "_mlp." in n)]
    for number, (name, module) in enumerate(modules):
        rows, columns = module.weight.shape
        down = normals((LORA_RANK, columns), seed + 2 * number, columns**-0.5).to(torch.bfloat16)
        up = normals((rows, LORA_RANK), seed + 2 * number + 1, 0.3).to(torch.bfloat16)
        flat = name.replace(".", "_")
        prefix, ends = {
            "lightning": (name, ("lora_down.weight", "lora_up.weight")),
            "diffusers": (f"transformer.{name}", ("lora_A.weight", "lora_B.weight")),
            "comfyui": (f"diffusion_model.{name}", ("lora_A.weight", "lora_B.weight")),
            "kohya": (f"lora_unet_{flat}", ("lora_down.weight", "lora_up.weight")),
        }[spelling]
        tensors[f"{prefix}.{ends[0]}"], tensors[f"{prefix}.{ends[1]}"] = down, up
        if spelling in ("lightning", "kohya"):
            tensors[f"{prefix}.alpha"] = torch.tensor(2.0, dtype=torch.bfloat16)
    file = target / f"{spelling}.safetensors"
    save_file(tensors, file)
    file.chmod(0o644)
    return file.name


def run(pipeline, case, images):
    generators = [torch.Generator().manual_seed(seed) for seed in case["seeds"]]
    asked = {
        "prompt": case["prompt"], "negative_prompt": case["negative_prompt"] if case["guidance_scale"] > 1 else None,
        "true_cfg_scale": case["guidance_scale"], "num_inference_steps": case["steps"], "width": case["width"],
        "height": case["height"], "num_images_per_prompt": len(generators), "generator": generators, "output_type": "np",
        "max_sequence_length": 1024,
    }  # fmt: skip
    if images:
        asked["image"] = images
    generated = pipeline(**asked).images
    return torch.from_numpy((generated * 255).round().astype("uint8")).contiguous()


def cases_of(rng, edits, loras):
    """Sizes, steps, guidance, numbers of images and modes, no two alike."""
    prompts = ["Größe XL's 衣服…\n\n  7, <|ok|>?", "Dress the person in image 1 in the garment of image 2.", "a red mug", "snow"]
    modes = [None, *loras] if len(loras) > 1 else [None, *loras, None]
    cases = []
    for number, mode in enumerate(modes):
        guided = mode is None
        cases.append({
            "images": [] if not edits else [f"{number}-{place}" for place in range(1 + number % 3)],
            "prompt": prompts[number % len(prompts)], "negative_prompt": [" ", "blurry, low quality"][number % 2], "lora": mode,
            "guidance_scale": float(rng.choice([2.5, 4.0])) if guided else 1.0, "steps": int(rng.integers(2, 7)) if guided else [4, 8][number % 2],
            "seeds": [int(rng.integers(0, 2**32)) + n for n in range(1 + number % 2)],
            "width": 16 * int(rng.integers(4, 9)), "height": 16 * int(rng.integers(4, 9)),
        })  # fmt: skip
    return cases


def one(target, size, seed, edits, spellings):
    pipeline = checkpoint(target, size, seed, edits)
    rng = np.random.default_rng(seed)
    loras = [write_lora(target, pipeline.transformer, spelling, seed + 100) for spelling in spellings]
    cases, out = cases_of(rng, edits, loras), {}
    for number, case in enumerate(cases):
        images = []
        for name in case["images"]:
            images.append(image(int(rng.integers(40, 130)), int(rng.integers(40, 130)), int(rng.integers(1, 12))))
            out[f"input/{name}"] = torch.from_numpy(np.array(images[-1]))
        pipeline.scheduler = FlowMatchEulerDiscreteScheduler(**(LIGHTNING if case["lora"] else SCHEDULE))
        if case["lora"]:
            pipeline.load_lora_weights(target, weight_name=case["lora"], adapter_name="lightning")
        out[f"expected/{number}"] = run(pipeline, case, images)
        if case["lora"]:
            pipeline.unload_lora_weights()
    areas = {"reference_px": reference.VAE_IMAGE_SIZE, "condition_px": reference.CONDITION_IMAGE_SIZE}
    (target / "cases.json").write_text(json.dumps({**areas, "cases": cases}, indent=1, ensure_ascii=False) + "\n")
    save_file(out, target / "expected.safetensors")
    for path in target.rglob("*.safetensors"):
        path.chmod(0o644)


@torch.no_grad()
def main():
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "tests/fixtures/qwen-family"
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    shutil.rmtree(target, ignore_errors=True)
    reference.VAE_IMAGE_SIZE, reference.CONDITION_IMAGE_SIZE = (96 + 16 * (seed % 3)) ** 2, 168 * 168
    size = lambda place: SIZES[(seed + place) % len(SIZES)]  # noqa: E731
    one(target / "edit", size(0), 1000 * seed, True, ["lightning", "diffusers"])
    one(target / "image", size(1), 1000 * seed + 500, False, ["lightning", "comfyui", "kohya"])


if __name__ == "__main__":
    main()
