"""Trains the autoencoder of tiny-sd on the rendered images of all styles.

    nice -n 5 torchrun --nproc-per-node 2 vae.py DATA_DIR OUT.pt MINUTES [START.pt]      resumes from OUT.pt
    python vae.py normalise DATA_DIR IN.pt OUT.pt
    nice -n 5 python vae.py decoder DATA_DIR MODEL_DIR OUT.pt MINUTES      the exported one's decoder alone; the latents stay as they are

Loss: L1 on pixels, and L1 on neighbouring differences at three scales, because flat shapes live by their edges. Instead
of a learned variance with a KL term, which emptied three of the four channels in a first run, the latents get a fixed
small noise and a weak pull to zero; the exported variance is that constant. For the first steps two channels are held
to the image's colour differences: left alone, the autoencoder stayed grey for a thousand steps. `normalise` takes the
averaged weights and gives every latent channel mean 0 and the standard deviation that SD 1.5's scaling factor undoes.
"""

import json
import math
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from common import Ema, join_workers, new_vae, restore, save
from loop import Run
from world import STYLES

BATCH = 2  # for each of two workers
PEAK_RATE = 2e-3
DECODER_BATCH = 4
DECODER_RATE = 1.5e-3
# Nights are where it takes one hue for another: green for teal, red for orange.
NIGHT_SHARE = 0.5
LATENT_NOISE = 0.05
LATENT_PULL = 1e-3
COLOUR_STEPS = 500
SCALING_FACTOR = 0.18215


def differences(x):
    return x[..., 1:, :] - x[..., :-1, :], x[..., :, 1:] - x[..., :, :-1]


def image_loss(made, real):
    loss = F.l1_loss(made, real)
    for _ in range(3):
        loss = loss + sum(F.l1_loss(a, b) for a, b in zip(differences(made), differences(real)))
        made, real = F.avg_pool2d(made, 2), F.avg_pool2d(real, 2)
    return loss + F.l1_loss(made, real) + 2 * F.mse_loss(made, real)


def tint_loss(made, real):
    """L1 on the two colour differences, in which a pale stripe that turns grey weighs as much as a dark one."""
    tint = lambda image: torch.stack([image[:, 0] - image[:, 1], image[:, 1] - image[:, 2]], 1)  # noqa: E731
    return F.l1_loss(tint(made), tint(real))


def colour_loss(latents, real):
    """Distance of the last two latent channels from the image's two colour differences, each 8x8 block averaged."""
    r, g, b = F.avg_pool2d(real, 8).unbind(1)
    return F.mse_loss(latents[:, 2:], torch.stack([r - b, 2 * g - r - b], 1))


def at_night(path):
    """The places in a file of images of those that one of their four captions calls at night."""
    captions = json.loads(path.with_suffix(".json").read_text())
    return [i for i, four in enumerate(captions) if any(word in c for c in four for word in ("night", "stars"))]


class Images:
    """Random batches, three quarters of them flat, in -1..1. `night_share` of the flat ones are surely at night, of the others a fifth."""

    def __init__(self, directory, night_share=0.0):
        shards = {s: sorted(Path(directory).glob(f"{s}-*.npy")) for s in STYLES}
        self.sets = {s: [np.load(p, mmap_mode="r") for p in paths] for s, paths in shards.items() if paths}
        self.nights, self.night_share = [at_night(p) for p in shards["flat"]], night_share

    def batch(self, rng, size):
        out = []
        for _ in range(size):
            style = "flat" if rng.random() < 0.76 else STYLES[1 + rng.integers(3)]
            shards = self.sets.get(style, self.sets["flat"])
            place = rng.integers(len(shards))
            chosen = range(len(shards[place]))
            if style == "flat" and rng.random() < self.night_share:
                chosen = self.nights[place]
            out.append(shards[place][chosen[rng.integers(len(chosen))]])
        return to_tensor(np.stack(out))


@torch.no_grad()
def fixed_variance(vae):
    """The second half of the encoder's output made constant: the log of the variance of the training noise."""
    channels = vae.config.latent_channels
    vae.quant_conv.weight[channels:] = 0
    vae.quant_conv.bias[channels:] = 2 * math.log(LATENT_NOISE)
    return vae


def to_tensor(images):
    x = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return x.contiguous()


@torch.no_grad()
def normalise(directory, checkpoint, out):
    """Folds each channel's mean and standard deviation into the 1x1 convolutions on both sides of the latents."""
    vae = new_vae().eval()
    for p, shadow in zip(vae.parameters(), restore(checkpoint)["ema"]):
        p.copy_(shadow)
    images = np.load(Path(directory) / "flat-00.npy", mmap_mode="r")
    latents = torch.cat([vae.encode(to_tensor(images[i : i + 50])).latent_dist.mean for i in range(0, 600, 50)])
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    gain = 1 / SCALING_FACTOR / std
    quant, post = vae.quant_conv, vae.post_quant_conv
    quant.weight[:4] *= gain[:, None, None, None]
    quant.bias[:4] = (quant.bias[:4] - mean) * gain
    quant.weight[4:] = 0
    quant.bias[4:] = 2 * torch.log(LATENT_NOISE * gain)
    post.bias += post.weight[:, :, 0, 0] @ mean
    post.weight /= gain[None, :, None, None]
    print("latent means", mean.tolist(), "standard deviations", std.tolist())
    save(out, {"ema": [p.detach() for p in vae.parameters()]})


def train_decoder(directory, model, out, minutes):
    """Goes on with the exported autoencoder's decoder, on latents with the encoder's own noise."""
    torch.set_num_threads(1)
    torch.manual_seed(13)
    vae = AutoencoderKL.from_pretrained(Path(model) / "vae", torch_dtype=torch.float32)
    vae.requires_grad_(False)
    parameters = [*vae.post_quant_conv.parameters(), *vae.decoder.parameters()]
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(parameters, lr=DECODER_RATE, betas=(0.9, 0.98), weight_decay=1e-3)
    images = Images(directory, NIGHT_SHARE)

    def loss_at(step):
        real = images.batch(np.random.default_rng([6, step]), DECODER_BATCH)
        with torch.autocast("cpu", torch.bfloat16):
            made = vae.decode(vae.encode(real).latent_dist.sample()).sample.float()
        return image_loss(made, real) + tint_loss(made, real), lambda: f"l1 {F.l1_loss(made, real).item():.4f}"

    Run({"vae": vae}, optimizer, Ema([vae], 0.995), out).train(minutes, loss_at, DECODER_RATE, report_every=25)


def main():
    if sys.argv[1] == "decoder":
        train_decoder(*sys.argv[2:5], float(sys.argv[5]))
        return
    if sys.argv[1] == "normalise":
        normalise(*sys.argv[2:5])
        return
    directory, out, minutes = sys.argv[1], sys.argv[2], float(sys.argv[3])
    rank, _ = join_workers()
    torch.manual_seed(11)
    vae = fixed_variance(new_vae())
    optimizer = torch.optim.AdamW(vae.parameters(), lr=PEAK_RATE, betas=(0.9, 0.98), weight_decay=1e-3)
    ema = Ema([vae], 0.997)
    if len(sys.argv) > 4:
        vae.load_state_dict(restore(sys.argv[4])["vae"])
        fixed_variance(vae)
        ema = Ema([vae], ema.decay)
    run = Run({"vae": vae}, optimizer, ema, out)
    images = Images(directory)
    torch.manual_seed(100 + rank + run.step)

    def loss_at(step):
        nonlocal images
        if step % 200 == 0:
            images = Images(directory)
        real = images.batch(np.random.default_rng([5, step, rank]), BATCH)
        with torch.autocast("cpu", torch.bfloat16):
            latents = vae.encode(real).latent_dist.mean
            made = vae.decode(latents + LATENT_NOISE * torch.randn_like(latents)).sample
        loss = image_loss(made.float(), real) + LATENT_PULL * latents.float().square().mean()
        if step < COLOUR_STEPS:
            loss = loss + (1 - step / COLOUR_STEPS) * colour_loss(latents.float(), real)
        return loss, lambda: f"l1 {F.l1_loss(made.float(), real).item():.4f} latent std {latents.float().std((0, 2, 3)).tolist()}"

    run.train(minutes, loss_at, PEAK_RATE)


if __name__ == "__main__":
    main()
