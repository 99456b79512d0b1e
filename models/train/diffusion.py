"""Trains the U-Net and the text encoder of tiny-sd together on cached latents.

    nice -n 5 torchrun --nproc-per-node 2 diffusion.py LATENTS.pt OUT.pt MINUTES [PEAK_RATE]      resumes from OUT.pt

Attention runs as plain matrix products: the backward pass of torch's fused CPU attention takes half of all time here.
SD 1.5's noise schedule and its epsilon target, min-SNR weights (Hang et al. 2023, arXiv 2303.09556, gamma 5), one
caption in ten left empty for classifier-free guidance.
"""

import sys

import torch
from common import Clock, Ema, average_gradients, join_workers, new_text_encoder, new_unet, restore, save, set_rate
from diffusers.models.attention_processor import AttnProcessor
from vae import SCALING_FACTOR

BATCH = 16  # for each of two workers
PEAK_RATE = 1e-3
EMPTY_CAPTIONS = 0.1
SNR_GAMMA = 5.0
SAVE_EVERY_S = 180


def alphas_cumprod():
    """SD 1.5: betas from 0.00085 to 0.012, linear in their square roots, 1000 timesteps."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, 0).float()


ALPHAS = alphas_cumprod()


def epsilon_loss(unet, clean, hidden, generator):
    """Min-SNR weighted squared error of the predicted noise at random timesteps. clean: (B, 4, 16, 16), scaled."""
    batch = clean.shape[0]
    # Stratified timesteps: one in each of B equal slices, which takes noise out of the loss.
    steps = ((torch.arange(batch) + torch.rand(batch, generator=generator)) / batch * 1000).long().clamp(max=999)
    noise = torch.randn(clean.shape, generator=generator)
    a = ALPHAS[steps].view(-1, 1, 1, 1)
    noisy = a.sqrt() * clean + (1 - a).sqrt() * noise
    with torch.autocast("cpu", torch.bfloat16):
        predicted = unet(noisy, steps, hidden).sample
    snr = ALPHAS[steps] / (1 - ALPHAS[steps])
    weight = snr.clamp(max=SNR_GAMMA) / snr
    return (weight * (predicted.float() - noise).square().mean((1, 2, 3))).mean()


def draw(data, empty, generator, size):
    """A random batch: scaled latents (size, 4, 16, 16) and token ids (size, 77), some of them of the empty caption."""
    index = torch.randint(len(data["latents"]), (size,), generator=generator)
    which = torch.randint(4, (size,), generator=generator)
    tokens = data["tokens"][index, which].long()
    tokens[torch.rand(size, generator=generator) < EMPTY_CAPTIONS] = empty
    return data["latents"][index].float() * SCALING_FACTOR, tokens


def empty_tokens(vocab_size):
    """The empty caption: <|startoftext|>, then <|endoftext|> to the end."""
    tokens = torch.full((77,), vocab_size - 1)
    tokens[0] = vocab_size - 2
    return tokens


def main():
    latents, out, minutes = sys.argv[1], sys.argv[2], float(sys.argv[3])
    peak_rate = float(sys.argv[4]) if len(sys.argv) > 4 else PEAK_RATE
    rank, workers = join_workers()
    data = torch.load(latents, weights_only=True)
    vocab_size = int(data["tokens"].max()) + 1
    torch.manual_seed(12)
    unet, text = new_unet(), new_text_encoder(vocab_size)
    unet.set_attn_processor(AttnProcessor())
    text.set_attn_implementation("eager")
    parameters = list(unet.parameters()) + list(text.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=PEAK_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    ema = Ema([unet, text], 0.9985)
    step, used_s = 0, 0.0
    if state := restore(out):
        unet.load_state_dict(state["unet"])
        text.load_state_dict(state["text"])
        optimizer.load_state_dict(state["optimizer"])
        ema.shadow, step, used_s = state["ema"], state["step"], state["used_s"]
    clock, saved_s, total = Clock(minutes * 60, used_s), used_s, 0.0
    empty = empty_tokens(vocab_size)
    while clock.tick():
        generator = torch.Generator().manual_seed(workers * (1_000_000 + step) + rank)
        set_rate(optimizer, peak_rate * clock.rate(step, warm_up_steps=150))
        clean, tokens = draw(data, empty, generator, BATCH)
        with torch.autocast("cpu", torch.bfloat16):
            hidden = text(tokens).last_hidden_state
        loss = epsilon_loss(unet, clean, hidden, generator)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        average_gradients(parameters)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        ema.update(step)
        step, total = step + 1, total + loss.item()
        if step % 100 == 0 and rank == 0:
            print(f"step {step} loss {total / 100:.4f} {clock.elapsed_s():.0f} s", flush=True)
            total = 0.0
        if clock.elapsed_s() - saved_s > SAVE_EVERY_S:
            saved_s = checkpoint(out, rank, unet, text, optimizer, ema, step, clock)
    checkpoint(out, rank, unet, text, optimizer, ema, step, clock)


def checkpoint(out, rank, unet, text, optimizer, ema, step, clock):
    used_s = clock.elapsed_s()
    if rank == 0:
        state = {"unet": unet.state_dict(), "text": text.state_dict(), "optimizer": optimizer.state_dict()}
        save(out, state | {"ema": ema.shadow, "step": step, "used_s": used_s})
    return used_s


if __name__ == "__main__":
    main()
