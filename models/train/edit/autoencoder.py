"""Trains the autoencoder of tiny-edit on the images of people and garments.

    nice -n 5 torchrun --nproc-per-node 2 autoencoder.py DATA OUT.pt MINUTES [faces]     resumes from OUT.pt
    nice -n 5 python autoencoder.py decoder DATA MODEL_DIR OUT.pt MINUTES [FIRST.pt]     the exported one's decoder alone; the latents stay as they are

Losses as in ../vae.py, and for the same reasons: pixels, edges at three scales, latents with a fixed small noise and a weak
pull to zero, and for the first steps three channels held to the image's colours. With `faces` errors about the heads count more: eyes are
small, and without that they were the last to come. They came no further than that, and mouths never: they are a hundredth of a head's
pixels, and on dark skin a small difference. `decoder` gives them a loss of their own, in which their pixels count alone. Its first turn is
quick, it mostly decodes faces; a later one, from FIRST.pt, decodes whole people: what the first one lost elsewhere comes back.
"""

import functools
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLQwenImage
from networks import new_vae, to_tensor
from people import load
from prepare import averaged

from common import Ema, join_workers, restore
from loop import Run
from vae import COLOUR_STEPS, LATENT_NOISE, LATENT_PULL, PEAK_RATE, differences, image_loss

BATCH = 4  # for each of two workers
HEADS = slice(4, 52), slice(28, 68)
"""Rows and columns."""
DECODER_HEADS, DECODER_PEOPLE, DECODER_GARMENTS = 12, 2, 1
"""Of a step; people and garments are decoded whole, once in WHOLE_EVERY steps."""
WHOLE_EVERY = 3
WHOLE_PEOPLE, FEATURES = 3, 0.25
"""Of a step of the second turn, and how much eyes and mouths count there."""
PEOPLE = 1200
"""So many of the people are enough."""
DECODER_RATE = 1e-3
DECODER_NOISE = 0.06
"""Of latents with deviation 1: what the transformer generates is as far from a face's own latents."""
QUARTERS = slice(4, 14), slice(7, 17)
"""What is decoded for heads: rows and columns of a decoder's first enlargement, 4 pixels each."""
FACES = slice(4, 36), slice(4, 36)
"""Rows and columns of that, in pixels, that are looked at: what a convolution sees beside them is there."""


def colour_loss(latents, real):
    """Distance of the first three latent channels from the mean colours of each 8x8 block."""
    return F.mse_loss(latents[:, :3, 0], 2 * F.avg_pool2d(real[:, :, 0], 8))


def face_loss(made, real):
    rows, columns = HEADS
    made, real = made[..., rows, columns], real[..., rows, columns]
    return F.l1_loss(made, real) + sum(F.l1_loss(a, b) for a, b in zip(differences(made), differences(real)))


def feature_loss(made, real, covered):
    """L1 over the pixels of eyes and mouths, and over those right beside them, each as one: made, real (B, 3, h, w), covered (B, 1, h, w) from 0 to 1."""
    off = (made - real).abs().mean(1, keepdim=True)
    beside = (F.max_pool2d(covered, 5, 1, 2) - covered).clamp(min=0)
    return (off * covered).sum() / covered.sum() + (off * beside).sum() / beside.sum()


def decode_faces(vae, latents):
    """The pixels of FACES from whole latents: what decides what goes where looks at the whole image, the rest decodes a part of it."""
    decoder = vae.decoder
    first, *others = decoder.up_blocks
    x = first(decoder.mid_block(decoder.conv_in(vae.post_quant_conv(latents))))[..., QUARTERS[0], QUARTERS[1]]
    for block in others:
        x = block(x)
    return decoder.conv_out(decoder.nonlinearity(decoder.norm_out(x)))[:, :, 0, FACES[0], FACES[1]]


def faces_of(images):
    """The pixels of FACES."""
    rows, columns = (slice(4 * q.start + f.start, 4 * q.start + f.stop) for q, f in zip(QUARTERS, FACES))
    return images[..., rows, columns]


def train_decoder(directory, model, out, minutes, first=None):
    """Goes on with the exported autoencoder's decoder, on the encoder's latents with as much noise as a transformer leaves."""
    torch.set_num_threads(1)
    torch.manual_seed(14)
    new_vae()  # the convolutions of one frame
    vae = AutoencoderKLQwenImage.from_pretrained(Path(model) / "vae", torch_dtype=torch.float32)
    if first:
        averaged(vae, restore(first))
    vae.requires_grad_(False)
    parameters = [*vae.post_quant_conv.parameters(), *vae.decoder.parameters()]
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(parameters, lr=DECODER_RATE, betas=(0.9, 0.98), weight_decay=1e-3)
    images, faces = load(directory)[:PEOPLE], load(directory, "faces")[:PEOPLE]
    noise = DECODER_NOISE * torch.tensor(vae.config.latents_std)[:, None, None, None]

    @functools.cache
    def encoded(person, image):
        with torch.no_grad():
            return vae.encode(to_tensor(images[person, image][None])).latent_dist.mode()

    def latents_of(people, image):
        latents = torch.cat([encoded(int(person), image) for person in people])
        return latents + noise * torch.randn_like(latents)

    def whole_people(step):
        rng = np.random.default_rng([8, step])
        people = rng.integers(len(images), size=WHOLE_PEOPLE)
        real = to_tensor(images[people, 2])[:, :, 0]
        covered = torch.from_numpy(faces[people][:, None].astype(np.float32) / 255)
        made = vae.decode(latents_of(people, 2)).sample[:, :, 0]
        features = feature_loss(made, real, covered)
        return image_loss(made, real) + FEATURES * features, lambda: f"l1 {F.l1_loss(made, real).item():.4f} features {features.item():.4f}"

    def mostly_faces(step):
        rng = np.random.default_rng([7, step])
        people = rng.integers(len(images), size=DECODER_HEADS)
        real = faces_of(to_tensor(images[people, 2])[:, :, 0])
        covered = faces_of(torch.from_numpy(faces[people][:, None].astype(np.float32) / 255))
        made = decode_faces(vae, latents_of(people, 2))
        features = feature_loss(made, real, covered)
        loss = image_loss(made, real) + features
        if step % WHOLE_EVERY == 0:
            garments = rng.integers(len(images), size=DECODER_GARMENTS)
            people = people[:DECODER_PEOPLE]
            latents = torch.cat([latents_of(people, 2), latents_of(garments, 1)])
            whole = to_tensor(np.concatenate([images[people, 2], images[garments, 1]]))
            loss = loss + WHOLE_EVERY * image_loss(vae.decode(latents).sample[:, :, 0], whole[:, :, 0])
        return loss, lambda: f"faces l1 {F.l1_loss(made, real).item():.4f} features {features.item():.4f}"

    run = Run({"vae": vae}, optimizer, Ema([vae], 0.98), out, 30)
    run.train(minutes, *((whole_people, DECODER_RATE / 2) if first else (mostly_faces, DECODER_RATE)), 20, report_every=24)


def main():
    if sys.argv[1] == "decoder":
        train_decoder(*sys.argv[2:5], float(sys.argv[5]), *sys.argv[6:])
        return
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
