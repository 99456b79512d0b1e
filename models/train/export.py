"""Writes the model directory in diffusers' layout, weights in float16, from the training checkpoints.

    python export.py MODEL_DIR VAE.pt|- DIFFUSION.pt|-      a dash exports untrained weights
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from common import new_text_encoder, new_unet, new_vae, restore
from diffusers import DPMSolverMultistepScheduler
from safetensors.torch import load_file, save_file
from tokenizer import write


def scheduler():
    return DPMSolverMultistepScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000, steps_offset=1,
        algorithm_type="dpmsolver++", solver_order=2, solver_type="midpoint", lower_order_final=True,
        prediction_type="epsilon", timestep_spacing="leading",
    )  # fmt: skip


@torch.no_grad()
def averaged(modules, state):
    """The modules with the averaged weights of a checkpoint."""
    for p, shadow in zip([p for m in modules for p in m.parameters()], state["ema"]):
        p.copy_(shadow)


def prefix_keys(path):
    """transformers 5 drops the `text_model.` that Stable Diffusion's files have and that other loaders look for."""
    state = load_file(path)
    save_file({"text_model." + k.removeprefix("text_model."): v for k, v in state.items()}, path, {"format": "pt"})


def main():
    directory = Path(sys.argv[1])
    vae_path, diffusion_path = sys.argv[2:4]
    _, vocab_size = write(directory / "tokenizer")
    torch.manual_seed(0)
    vae, unet, text = new_vae(), new_unet(), new_text_encoder(vocab_size)
    if vae_path != "-":
        averaged([vae], restore(vae_path))
    if diffusion_path != "-":
        averaged([unet, text], restore(diffusion_path))
    for module, name in [(vae, "vae"), (unet, "unet"), (text, "text_encoder")]:
        shutil.rmtree(directory / name, ignore_errors=True)
        module.half().save_pretrained(directory / name, safe_serialization=True)
        for weights in (directory / name).glob("*.safetensors"):
            if name == "text_encoder":
                prefix_keys(weights)
            print(weights.stat().st_size / 1e6, "MB", weights)
    scheduler().save_pretrained(directory / "scheduler")
    index = {
        "_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.42.1",
        "feature_extractor": [None, None], "image_encoder": [None, None], "requires_safety_checker": False,
        "safety_checker": [None, None], "scheduler": ["diffusers", "DPMSolverMultistepScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"],
    }  # fmt: skip
    (directory / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


if __name__ == "__main__":
    main()
