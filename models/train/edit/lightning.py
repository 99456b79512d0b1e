"""Trains the four-step LoRA of tiny-edit, in the layout of the Lightning files.

    nice -n 5 python lightning.py PREPARED.pt TRANSFORMER.pt OUT.safetensors MINUTES

The transformer stays as it is; rank-8 matrices beside the linear layers of every block learn the four noise levels of Lightning's
schedule alone (1, 0.9, 0.75, 0.5), on states that the four steps themselves come through: each batch is denoised without
gradients to one of the levels, and from there the target is the straight way to the clean image.
"""

import sys

import torch
from networks import new_transformer
from safetensors.torch import save_file
from transformer import draw, velocity

from common import restore
from loop import Run, nothing_more

LEVELS = [1.0, 0.9, 0.75, 0.5, 0.0]
RANK, ALPHA = 8, 8.0
BATCH = 16
PEAK_RATE = 2e-3


class Beside(torch.nn.Module):
    """A linear layer with a low-rank one beside it."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.down = torch.nn.Parameter(torch.randn(RANK, layer.in_features) / layer.in_features**0.5)
        self.up = torch.nn.Parameter(torch.zeros(layer.out_features, RANK))

    def forward(self, x):
        return self.layer(x) + x @ self.down.T @ self.up.T * (ALPHA / RANK)


def targets(transformer):
    """The layers that Lightning's files change: attention and feed-forward of both streams, not modulation."""
    named = dict(transformer.named_modules())
    return [n for n, m in named.items() if isinstance(m, torch.nn.Linear) and n.startswith("transformer_blocks") and "_mod" not in n]


def put_beside(transformer):
    beside = {}
    for name in targets(transformer):
        parent, _, child = name.rpartition(".")
        holder = transformer.get_submodule(parent)
        layer = holder.get_submodule(child)
        beside[name] = Beside(layer)
        setattr(holder, child, beside[name]) if not child.isdigit() else holder.__setitem__(int(child), beside[name])
    return beside


def trained(checkpoint):
    transformer = new_transformer()
    for p, shadow in zip(transformer.parameters(), restore(checkpoint)["ema"]):
        p.data.copy_(shadow)
    return transformer.eval().requires_grad_(False)


def four_steps(transformer, noise, references, hidden, steps=4):
    """The state after so many of the four steps."""
    state = noise
    for level, after in list(zip(LEVELS, LEVELS[1:]))[:steps]:
        sigma = torch.full((len(noise),), level)
        state = state + (after - level) * velocity(transformer, state, references, hidden, sigma)
    return state


def main():
    prepared, checkpoint, out, minutes = sys.argv[1], sys.argv[2], sys.argv[3], float(sys.argv[4])
    torch.set_num_threads(2)
    data = torch.load(prepared, weights_only=True)
    transformer = trained(checkpoint)
    probe = draw(data, torch.Generator().manual_seed(9), 48)
    noise = torch.randn(probe[0].shape, generator=torch.Generator().manual_seed(10))

    def error():
        with torch.no_grad():
            return (four_steps(transformer, noise, *probe[1:]) - probe[0]).abs().mean().item()

    print("four steps without it: mean error of latents", error(), flush=True)
    torch.manual_seed(13)
    beside = put_beside(transformer)
    parameters = [p for layer in beside.values() for p in (layer.down, layer.up)]
    optimizer = torch.optim.AdamW(parameters, lr=PEAK_RATE, weight_decay=0.0)

    def loss_at(step):
        generator = torch.Generator().manual_seed(5_000_000 + step)
        clean, references, hidden = draw(data, generator, BATCH)
        place = step % 4
        fresh = torch.randn(clean.shape, generator=generator)
        with torch.no_grad():
            state = four_steps(transformer, fresh, references, hidden, place)
        level = LEVELS[place]
        predicted = velocity(transformer, state, references, hidden, torch.full((BATCH,), level))
        return (predicted - (state - clean) / level).square().mean(), nothing_more

    Run({}, optimizer).train(minutes, loss_at, PEAK_RATE, warm_up_steps=20, report_every=20)
    print("four steps with it: mean error of latents", error())
    state = {}
    for name, layer in beside.items():
        state[f"{name}.lora_down.weight"] = layer.down.detach().half().contiguous()
        state[f"{name}.lora_up.weight"] = layer.up.detach().half().contiguous()
        state[f"{name}.alpha"] = torch.tensor(ALPHA)
    save_file(state, out, {"format": "pt"})


if __name__ == "__main__":
    main()
