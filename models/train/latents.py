"""Encodes the rendered images of one style and tokenizes their captions, once, for the diffusion training.

    nice -n 5 python latents.py DATA_DIR MODEL_DIR STYLE OUT.pt      with the autoencoder that MODEL_DIR has

OUT.pt holds `latents` (n, 4, 16, 16) f16, unscaled means, and `tokens` (n, 4, 77) int16, four captions an image.
Captions of a style other than flat get its trigger in front.
"""

import sys
from pathlib import Path

import torch
from data import load
from diffusers import AutoencoderKL
from tokenizer import encode, write
from vae import SCALING_FACTOR, to_tensor

TRIGGERS = {"flat": "", "ink": "ink drawing of ", "neon": "neon light, ", "sunset": "sunset silhouette of "}


@torch.no_grad()
def main():
    directory, model, style, out = sys.argv[1:]
    torch.set_num_threads(1)
    vae = AutoencoderKL.from_pretrained(Path(model) / "vae", torch_dtype=torch.float32)
    images, captions = load(directory, style)
    latents = []
    for start in range(0, len(images), 50):
        with torch.autocast("cpu", torch.bfloat16):
            latents.append(vae.encode(to_tensor(images[start : start + 50])).latent_dist.mean.half())
    latents = torch.cat(latents)
    tokenizer, _ = write(Path(model) / "tokenizer")
    tokens = torch.tensor([encode(tokenizer, [TRIGGERS[style] + c for c in four]) for four in captions], dtype=torch.int16)
    torch.save({"latents": latents, "tokens": tokens}, out)
    print(latents.shape, tokens.shape, "scaled standard deviation", latents.float().std().item() * SCALING_FACTOR)


if __name__ == "__main__":
    main()
