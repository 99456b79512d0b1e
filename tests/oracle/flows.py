"""What the oracles of flow models share: an autoencoder of their kind, LoRA pairs, a case's images, and where the result goes."""

import json
import shutil
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from qwen import normals, randomize
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parent.parent.parent
RANK = 3


def begin(name):
    """Where the result goes, emptied, and the seed; of `[OUT_DIR SEED]` on the command line."""
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "tests/fixtures" / name
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    return target, int(sys.argv[2]) if len(sys.argv) > 2 else 1


def autoencoder(target, size, seed):
    levels = len(size["vae"])
    vae = AutoencoderKL(
        block_out_channels=size["vae"], norm_num_groups=4, sample_size=64, layers_per_block=1, latent_channels=size["latents"],
        down_block_types=("DownEncoderBlock2D",) * levels, up_block_types=("UpDecoderBlock2D",) * levels, scaling_factor=0.3611,
        shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False,
    )  # fmt: skip
    randomize(vae, seed).save_pretrained(target / "vae")
    return AutoencoderKL.from_pretrained(target / "vae", torch_dtype=torch.float32).eval()


def saved(target, pipeline):
    """The pipeline, once its directory says what it is of."""
    index = {"_class_name": type(pipeline).__name__, "_diffusers_version": "0.42.1"}
    (target / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def pair(rows, columns, seed):
    """A LoRA's two matrices, down and up."""
    down = normals((RANK, columns), seed, columns**-0.5).to(torch.bfloat16)
    return down, normals((rows, RANK), seed + 1, 0.4).to(torch.bfloat16)


def images(pipeline, case, **more):
    generators = [torch.Generator().manual_seed(seed) for seed in case["seeds"]]
    generated = pipeline(
        prompt=case["prompt"], guidance_scale=0.0, num_inference_steps=case["steps"], width=case["width"], height=case["height"],
        num_images_per_prompt=len(generators), generator=generators, output_type="np", **more,
    ).images  # fmt: skip
    return torch.from_numpy((generated * 255).round().astype("uint8")).contiguous()


def finish(target, described, out):
    (target / "cases.json").write_text(json.dumps(described, indent=1, ensure_ascii=False) + "\n")
    save_file({name: tensor.contiguous() for name, tensor in out.items()}, target / "expected.safetensors")
    for path in target.rglob("*.safetensors"):
        path.chmod(0o644)
