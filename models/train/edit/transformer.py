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

from common import Ema, join_workers
from loop import Run, nothing_more

BATCH = 16  # for each of two workers
PEAK_RATE = 1e-3
SHIFT = 3.0
BLANKS = 0.1
GRID = (1, 8, 6)


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
    run = Run({"transformer": transformer}, optimizer, ema, out)

    def loss_at(step):
        generator = torch.Generator().manual_seed(workers * (1_000_000 + step) + rank)
        clean, references, hidden = draw(data, generator, BATCH)
        levels = (torch.arange(BATCH) + torch.rand(BATCH, generator=generator)) / BATCH
        sigma = SHIFT * levels / (1 + (SHIFT - 1) * levels)
        noise = torch.randn(clean.shape, generator=generator)
        noisy = torch.lerp(clean, noise, sigma[:, None, None])
        loss = (velocity(transformer, noisy, references, hidden, sigma) - (noise - clean)).square().mean()
        return loss, nothing_more

    run.train(minutes, loss_at, peak_rate, warm_up_steps=150, report_every=50)


if __name__ == "__main__":
    main()
