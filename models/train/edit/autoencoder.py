"""Trains the autoencoder of tiny-edit on the images of people and garments.

    nice -n 5 torchrun --nproc-per-node 2 autoencoder.py DATA OUT.pt MINUTES [faces]     resumes from OUT.pt

Losses as in ../vae.py, and for the same reasons: pixels, edges at three scales, latents with a fixed small noise and a weak
pull to zero, and for the first steps three channels held to the image's colours. With `faces` errors about the heads count more: eyes are
small, and without that they were the last to come.
"""

import sys

import numpy as np
import torch
import torch.nn.functional as F
from networks import new_vae, to_tensor
from people import load

from common import Ema, join_workers
from loop import Run
from vae import COLOUR_STEPS, LATENT_NOISE, LATENT_PULL, PEAK_RATE, differences, image_loss

BATCH = 4  # for each of two workers
HEADS = slice(4, 52), slice(28, 68)
"""Rows and columns."""


def colour_loss(latents, real):
    """Distance of the first three latent channels from the mean colours of each 8x8 block."""
    return F.mse_loss(latents[:, :3, 0], 2 * F.avg_pool2d(real[:, :, 0], 8))


def face_loss(made, real):
    rows, columns = HEADS
    made, real = made[..., rows, columns], real[..., rows, columns]
    return F.l1_loss(made, real) + sum(F.l1_loss(a, b) for a, b in zip(differences(made), differences(real)))


def main():
    directory, out, minutes = sys.argv[1], sys.argv[2], float(sys.argv[3])
    faces = len(sys.argv) > 4
    rank, _ = join_workers()
    torch.manual_seed(11)
    vae = new_vae()
    optimizer = torch.optim.AdamW(vae.parameters(), lr=PEAK_RATE, betas=(0.9, 0.98), weight_decay=1e-3)
    ema = Ema([vae], 0.997)
    run = Run({"vae": vae}, optimizer, ema, out)
    images = load(directory)
    images = images.reshape(-1, *images.shape[2:])
    torch.manual_seed(100 + rank + run.step)

    def loss_at(step):
        rng = np.random.default_rng([5, step, rank])
        real = to_tensor(images[rng.integers(len(images), size=BATCH)])
        latents = vae.encode(real).latent_dist.mode()
        made = vae.decode(latents + LATENT_NOISE * torch.randn_like(latents)).sample
        loss = image_loss(made[:, :, 0], real[:, :, 0]) + LATENT_PULL * latents.square().mean()
        if faces:
            loss = loss + face_loss(made[:, :, 0], real[:, :, 0])
        if step < COLOUR_STEPS:
            loss = loss + (1 - step / COLOUR_STEPS) * colour_loss(latents, real)

        def more():
            spread = [round(v, 2) for v in latents.std((0, 2, 3, 4)).tolist()]
            return f"l1 {F.l1_loss(made, real).item():.4f} latent std {spread}"

        return loss, more

    run.train(minutes, loss_at, PEAK_RATE, report_every=50)


if __name__ == "__main__":
    main()
