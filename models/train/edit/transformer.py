"""Trains the transformer of tiny-edit on prepared latents and hidden states.

    nice -n 5 torchrun --nproc-per-node 2 transformer.py PREPARED.pt OUT.pt MINUTES [PEAK_RATE]     resumes from OUT.pt

Flow matching as Qwen-Image's pipeline undoes it: x = (1 - sigma) clean + sigma noise, the target is noise - clean, and the
transformer is told sigma. Noise levels are drawn with the shift of 3 that the Lightning schedule uses, so most of them are high:
there it is decided what goes where. Modulation starts at zero, as in DiT (Peebles & Xie 2022, arXiv 2212.09748). One
batch in ten is told a blank in place of the instruction, which is what a negative prompt says.
"""

import sys

import torch
from networks import new_transformer, pack

from common import Clock, Ema, average_gradients, join_workers, restore, save, set_rate

BATCH = 16  # for each of two workers
PEAK_RATE = 1e-3
SHIFT = 3.0
BLANKS = 0.1
GRID = (1, 8, 6)
SAVE_EVERY_S = 120


def begin(transformer):
    """Every block passes its input on unchanged, and the output is zero."""
    for block in transformer.transformer_blocks:
        for modulation in (block.img_mod[1], block.txt_mod[1]):
            torch.nn.init.zeros_(modulation.weight)
            torch.nn.init.zeros_(modulation.bias)
    for layer in (transformer.norm_out.linear, transformer.proj_out):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)


def draw(data, generator, size):
    """clean: packed latents of results (size, 48, 32); references: person and garment behind each other; hidden states."""
    index = torch.randint(len(data["latents"]), (size,), generator=generator)
    tokens = [pack(data["latents"][index, image].float()) for image in range(3)]
    prompt = int(torch.rand(1, generator=generator) < BLANKS)
    hidden = data["hidden"][index, prompt, : data["lengths"][prompt]].float()
    return tokens[2], torch.cat(tokens[:2], 1), hidden


def velocity(transformer, noisy, references, hidden, sigma):
    """The transformer's look at packed latents (B, 48, 32) at noise levels `sigma` (B)."""
    out = transformer(
        hidden_states=torch.cat([noisy, references], 1), encoder_hidden_states=hidden, encoder_hidden_states_mask=None, timestep=sigma,
        img_shapes=[[GRID] * 3] * len(noisy), return_dict=False,
    )[0]  # fmt: skip
    return out[:, : noisy.shape[1]]


def main():
    prepared, out, minutes = sys.argv[1], sys.argv[2], float(sys.argv[3])
    peak_rate = float(sys.argv[4]) if len(sys.argv) > 4 else PEAK_RATE
    rank, workers = join_workers()
    data = torch.load(prepared, weights_only=True)
    torch.manual_seed(12)
    transformer = new_transformer()
    begin(transformer)
    parameters = list(transformer.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=peak_rate, betas=(0.9, 0.98), weight_decay=0.01)
    ema = Ema([transformer], 0.998)
    step, used_s = 0, 0.0
    if state := restore(out):
        transformer.load_state_dict(state["transformer"])
        optimizer.load_state_dict(state["optimizer"])
        ema.shadow, step, used_s = state["ema"], state["step"], state["used_s"]
    clock, saved_s, total = Clock(minutes * 60, used_s), used_s, 0.0
    while clock.tick():
        generator = torch.Generator().manual_seed(workers * (1_000_000 + step) + rank)
        set_rate(optimizer, peak_rate * clock.rate(step, warm_up_steps=150))
        clean, references, hidden = draw(data, generator, BATCH)
        levels = (torch.arange(BATCH) + torch.rand(BATCH, generator=generator)) / BATCH
        sigma = SHIFT * levels / (1 + (SHIFT - 1) * levels)
        noise = torch.randn(clean.shape, generator=generator)
        noisy = torch.lerp(clean, noise, sigma[:, None, None])
        loss = (velocity(transformer, noisy, references, hidden, sigma) - (noise - clean)).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        average_gradients(parameters)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        ema.update(step)
        step, total = step + 1, total + loss.item()
        if step % 50 == 0 and rank == 0:
            print(f"step {step} loss {total / 50:.4f} {clock.elapsed_s():.0f} s", flush=True)
            total = 0.0
        if clock.elapsed_s() - saved_s > SAVE_EVERY_S:
            saved_s = checkpoint(out, rank, transformer, optimizer, ema, step, clock)
    checkpoint(out, rank, transformer, optimizer, ema, step, clock)


def checkpoint(out, rank, transformer, optimizer, ema, step, clock):
    used_s = clock.elapsed_s()
    if rank == 0:
        state = {"transformer": transformer.state_dict(), "optimizer": optimizer.state_dict(), "ema": ema.shadow}
        save(out, state | {"step": step, "used_s": used_s})
    return used_s


if __name__ == "__main__":
    main()
