"""The shapes of tiny-sd's networks and what all training scripts share: a clock-driven schedule, workers, EMA, checkpoints."""

import math
import os
import time
from pathlib import Path

import torch
import torch.distributed as dist
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

TEXT_WIDTH = 96


def new_vae():
    return AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=4, sample_size=128, layers_per_block=1, norm_num_groups=8,
        block_out_channels=(16, 32, 48, 64),
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip


def new_unet():
    """Every width is a multiple of 32, since candle's down and up blocks always normalise in 32 groups."""
    return UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, layers_per_block=1, norm_num_groups=32,
        block_out_channels=(64, 96, 128), attention_head_dim=4, cross_attention_dim=TEXT_WIDTH,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip


def new_text_encoder(vocab_size):
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocab_size, hidden_size=TEXT_WIDTH, intermediate_size=4 * TEXT_WIDTH, projection_dim=TEXT_WIDTH,
            num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=77, hidden_act="quick_gelu",
            bos_token_id=vocab_size - 2, eos_token_id=vocab_size - 1, pad_token_id=vocab_size - 1,
        )
    )  # fmt: skip


class Clock:
    """Training time used so far, against a budget: on a shared machine the clock, not the step count, ends a run."""

    def __init__(self, budget_s, used_s=0.0):
        self.budget_s, self.used_s, self.started = budget_s, used_s, time.monotonic()
        self.now_s = used_s

    def tick(self):
        """Reads the clock; all workers see the time of the first."""
        now = torch.tensor([self.used_s + time.monotonic() - self.started], dtype=torch.float64)
        if dist.is_initialized():
            dist.broadcast(now, 0)
        self.now_s = now.item()
        return self.progress() < 1

    def elapsed_s(self):
        return self.now_s

    def progress(self):
        return min(1.0, self.elapsed_s() / self.budget_s)

    def rate(self, step, warm_up_steps=100, floor=0.02):
        """The share of the peak learning rate: linear warm-up by step, then a cosine by time."""
        return min(1.0, (step + 1) / warm_up_steps) * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * self.progress())))


def join_workers():
    """Starts this worker and returns (rank, workers). Two workers of one thread each: on cores shared with compilers,
    threads that wait for each other in every operation lose most of their time, workers only meet once a step."""
    torch.set_num_threads(1)
    if "RANK" not in os.environ:
        return 0, 1
    dist.init_process_group("gloo")
    return dist.get_rank(), dist.get_world_size()


@torch.no_grad()
def average_gradients(parameters):
    if not dist.is_initialized():
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for g, part in zip(gradients, flat.split([g.numel() for g in gradients])):
        g.copy_(part.view_as(g))


class Ema:
    """Exponential moving average of a module's parameters, with a decay that grows with the step."""

    def __init__(self, modules, decay):
        self.parameters = [p for m in modules for p in m.parameters()]
        self.decay = decay
        self.shadow = [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def update(self, step):
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.shadow, [p.detach() for p in self.parameters], 1 - decay)

    @torch.no_grad()
    def swap(self):
        for p, s in zip(self.parameters, self.shadow):
            kept = p.detach().clone()
            p.copy_(s)
            s.copy_(kept)


def set_rate(optimizer, rate):
    for group in optimizer.param_groups:
        group["lr"] = rate


def save(path, state):
    """Writes a checkpoint beside the old one, then replaces it."""
    partial = Path(str(path) + ".partial")
    torch.save(state, partial)
    os.replace(partial, path)


def restore(path):
    return torch.load(path, weights_only=True) if Path(path).exists() else None
