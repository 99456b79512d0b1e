"""Trains the autoencoder of tiny-sd on the rendered pictures of all styles.

    nice -n 5 python vae.py DATA_DIR OUT.pt MINUTES      resumes from OUT.pt

Loss: L1 on pixels, L1 on neighbouring differences at three scales (flat shapes live by their edges), a trace of KL.
"""

import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from common import Clock, Ema, new_vae, restore, save, set_rate
from world import STYLES

BATCH = 8
PEAK_RATE = 2e-3
KL_WEIGHT = 1e-5
SAVE_EVERY_S = 120


def differences(x):
    return x[..., 1:, :] - x[..., :-1, :], x[..., :, 1:] - x[..., :, :-1]


def picture_loss(made, real):
    loss = F.l1_loss(made, real)
    for _ in range(3):
        loss = loss + sum(F.l1_loss(a, b) for a, b in zip(differences(made), differences(real)))
        made, real = F.avg_pool2d(made, 2), F.avg_pool2d(real, 2)
    return loss + F.l1_loss(made, real)


class Pictures:
    """Random batches, three quarters of them flat, in -1..1 and channels-last."""

    def __init__(self, folder):
        shards = {s: sorted(Path(folder).glob(f"{s}-*.npy")) for s in STYLES}
        self.sets = {s: [np.load(p, mmap_mode="r") for p in paths] for s, paths in shards.items() if paths}

    def batch(self, rng, size):
        out = []
        for _ in range(size):
            style = "flat" if rng.random() < 0.76 else STYLES[1 + rng.integers(3)]
            shards = self.sets.get(style, self.sets["flat"])
            pictures = shards[rng.integers(len(shards))]
            out.append(pictures[rng.integers(len(pictures))])
        return to_tensor(np.stack(out))


def to_tensor(pictures):
    x = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1
    return x.contiguous(memory_format=torch.channels_last)


def main():
    folder, out, minutes = sys.argv[1], sys.argv[2], float(sys.argv[3])
    torch.set_num_threads(2)
    torch.manual_seed(11)
    vae = new_vae().to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=PEAK_RATE, betas=(0.9, 0.98), weight_decay=1e-3)
    ema = Ema([vae], 0.997)
    step, used_s = 0, 0.0
    if state := restore(out):
        vae.load_state_dict(state["vae"])
        optimizer.load_state_dict(state["optimizer"])
        ema.shadow, step, used_s = state["ema"], state["step"], state["used_s"]
    clock, saved_s, pictures = Clock(minutes * 60, used_s), used_s, Pictures(folder)
    total = 0.0
    while clock.progress() < 1:
        if step % 200 == 0:
            pictures = Pictures(folder)
        real = pictures.batch(np.random.default_rng([5, step]), BATCH)
        set_rate(optimizer, PEAK_RATE * clock.rate(step))
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(real).latent_dist
            made = vae.decode(posterior.sample()).sample
        loss = picture_loss(made.float(), real) + KL_WEIGHT * posterior.kl().float().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        ema.update(step)
        step, total = step + 1, total + loss.item()
        if step % 50 == 0:
            print(f"step {step} loss {total / 50:.4f} l1 {F.l1_loss(made.float(), real).item():.4f} latent std {posterior.mean.float().std().item():.2f} {clock.elapsed_s():.0f} s", flush=True)
            total = 0.0
        if clock.elapsed_s() - saved_s > SAVE_EVERY_S or clock.progress() >= 1:
            saved_s = clock.elapsed_s()
            save(out, {"vae": vae.state_dict(), "optimizer": optimizer.state_dict(), "ema": ema.shadow, "step": step, "used_s": saved_s})


if __name__ == "__main__":
    main()
