"""Tiny random checkpoints, each in another form that files have, with their manifests; and the images that jobs start from."""

import json
import shutil

import torch
import starts
from cases import CHECKPOINTS, FACTORS
from diffusers import AutoencoderKL, UNet2DConditionModel
from make_fixtures import END, START, randomize, tokenizer
from old_names import single_file
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

import lora_files

WIDTHS, HIDDEN = (8, 16), 12
UNETS = {
    "sd1": {"attention_head_dim": 2},
    "sd2": {"attention_head_dim": [2, 4], "use_linear_projection": True},
    "inpaint": {"attention_head_dim": 2, "in_channels": 9},
    "lcm": {"attention_head_dim": 2, "time_cond_proj_dim": 11},
}
# By checkpoint: formats of UNet, autoencoder and text encoder.
FORMATS = {
    "directory": (torch.float16, torch.bfloat16, torch.float32), "shards": (torch.bfloat16, torch.float16, torch.float16),
    "single": (torch.float16, torch.float16, torch.float16), "inpaint": (torch.float16, torch.bfloat16, torch.float64),
    "lcm": (torch.float16, torch.float16, torch.bfloat16), "zero": (torch.bfloat16, torch.bfloat16, torch.bfloat16),
    "cosine": (torch.float16, torch.float16, torch.float16),
}  # fmt: skip


def networks(kind, seed):
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=WIDTHS, layers_per_block=1, norm_num_groups=4, cross_attention_dim=HIDDEN,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), **UNETS[kind],
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(4, 4, 4, 8), norm_num_groups=4, sample_size=64, layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    vocab, _ = tokenizer()
    pad = "!" if kind == "sd2" else END
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(vocab), hidden_size=HIDDEN, intermediate_size=24, num_hidden_layers=2, num_attention_heads=3, bos_token_id=vocab[START],
            eos_token_id=vocab[END], pad_token_id=vocab[pad], hidden_act="gelu" if kind == "sd2" else "quick_gelu",
        )
    )  # fmt: skip
    models = [randomize(model, seed + 1000 * n, torch.float32) for n, model in enumerate((unet, vae, text))]
    # Weighted prompts divide by the mean of what comes out here; near zero it would be rounding alone.
    text.final_layer_norm.bias.data += 0.5
    return models, pad


def write_tokenizer(directory, pad, with_json):
    vocab, merges = tokenizer()
    CLIPTokenizer(vocab=vocab, merges=merges, pad_token=pad, model_max_length=77).save_pretrained(directory)
    (directory / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False))
    (directory / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    if not with_json:
        (directory / "tokenizer.json").unlink()


def recast(file, dtype):
    save_file({key: value.to(dtype) if value.is_floating_point() else value for key, value in load_file(file).items()}, file, metadata={"format": "pt"})


def checkpoint(name, seed, directory):
    """Writes NAME/ as diffusers saves it, then brings its files into their form."""
    kind, syntax, schedule = CHECKPOINTS[name]
    models, pad = networks(kind, seed)
    parts = dict(zip(("unet", "vae", "text_encoder"), models))
    for (part, model), dtype in zip(parts.items(), FORMATS[name]):
        shard = {"max_shard_size": "60KB"} if name == "shards" and part == "unet" else {}
        variant = {"variant": "fp16"} if name == "lcm" else {}
        model.to(dtype).save_pretrained(directory / name / part, **shard, **variant)
    write_tokenizer(directory / name / "tokenizer", pad, name not in ("shards", "cosine"))
    (directory / name / "scheduler").mkdir()
    (directory / name / "scheduler" / "scheduler_config.json").write_text(json.dumps(schedule, indent=2) + "\n")
    own = {"unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"], "text_encoder": ["transformers", "CLIPTextModel"],
           "tokenizer": ["transformers", "CLIPTokenizer"], "scheduler": ["diffusers", schedule["_class_name"]]}  # fmt: skip
    index = {"_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.42.1"} | own
    (directory / name / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    manifest = {"family": "stable-diffusion-1", "checkpoint": name, "prompt": syntax}
    if name == "single":
        single_file(directory / name, directory / "single.safetensors")
        manifest["weights"] = "single.safetensors"
        for part in parts:
            for file in (directory / name / part).glob("*.safetensors"):
                file.unlink()
    defaults = {"model": name, "steps": 20, "guidance_scale": 7.5, "scheduler": "euler", "width": 64, "height": 64, "seed": 42, "prefix": ""}
    (directory / f"{name}.yaml").write_text(json.dumps(manifest | {"defaults": defaults}, indent=2) + "\n")


def write(seed, directory):
    """All checkpoints, adapters and images of one seed, below models/ and inputs/."""
    shutil.rmtree(directory, ignore_errors=True)
    inputs = directory / "inputs"
    inputs.mkdir(parents=True)
    for n, name in enumerate(CHECKPOINTS):
        checkpoint(name, seed + 10_000 * (n + 1), directory / "models")
    (unet, _, text), _ = networks("sd1", seed + 10_000)
    lora_files.write(unet, text, seed + 500_000, inputs)
    for width, height in FACTORS["size"]:
        Image.fromarray(starts.image(width, height)).save(inputs / f"{width}x{height}-image.png")
        soft = starts.mask(width, height)
        Image.fromarray(soft).save(inputs / f"{width}x{height}-soft.png")
        Image.fromarray((soft > 127).astype("uint8") * 255).save(inputs / f"{width}x{height}-hard.png")
    Image.fromarray(starts.image(150, 110)).save(inputs / "larger-image.png")
    for name, size in {"person": (96, 128), "larger-person": (210, 300), "square-person": (112, 100), "garment": (80, 72), "wide": (90, 30),
                       "larger-garment": (200, 260)}.items():  # fmt: skip
        Image.fromarray(starts.image(*size)).save(inputs / f"{name}.png")
    for path in directory.rglob("*"):
        if path.is_file():
            path.chmod(0o644)
