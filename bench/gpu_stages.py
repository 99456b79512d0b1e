"""One stage after the other: what our programs make of given tensors, against the same stage of a peer in f32 and in halves."""

import tempfile

import torch
from engine import PEER
from safetensors.torch import load_file, save_file

F32_BOUND = 1e-4
"""In f32: the largest difference that is allowed, over the largest value of the reference."""
HALF_BOUND = 2.0
"""In halves, in distances of the peer in the same format: roots of mean squares, because the largest of many roundings is luck."""


class Stages:
    """Tensors through the stages of one of our programs."""

    def __init__(self, child):
        self.child = child

    def __call__(self, stage, inputs):
        with tempfile.TemporaryDirectory() as directory:
            given, made = f"{directory}/in.safetensors", f"{directory}/out.safetensors"
            save_file({name: as_tensor(value) for name, value in inputs.items()}, given)
            self.child.time(f"stage {stage} {given} {made}")
            return load_file(made)


def as_tensor(value):
    if isinstance(value, str):
        return torch.tensor(list(value.encode()), dtype=torch.uint8)
    if isinstance(value, float):
        return torch.tensor([value], dtype=torch.float64)
    return value.cpu().contiguous()


def distance(made, whole, measure):
    """The farthest of all that a stage gives; not a number where anything is none."""
    assert made.keys() == whole.keys(), (made.keys(), whole.keys())
    each = []
    for name, expected in whole.items():
        expected, found = expected.double().cpu(), made[name].double().cpu()
        assert found.shape == expected.shape, (name, found.shape, expected.shape)
        each.append(measure(found - expected) / measure(expected))
    return torch.stack(each).max().item()


def largest(numbers):
    return numbers.abs().max()


def usual(numbers):
    """The root of the mean square."""
    return numbers.square().mean().sqrt()


def compared(run, model, cases, theirs, ours, near=None):
    """A row for every stage and dtype: its case that is nearest to its bound, or beyond it the farthest.

    `cases`: (stage's title, its name, inputs); `theirs`: a dtype to the peer's stages in it; `ours`: our stages by dtype, f32 first, for
    the peer's weights are rounded in place; `near`: as `theirs`, of what may round in f32 as well, where that is another.
    """
    whole = [theirs(torch.float32)(name, inputs) for _, name, inputs in cases]
    for dtype, stages in ours.items():
        worst, is_whole = {}, dtype == torch.float32 and near is None
        measure = largest if is_whole else usual
        for (title, name, inputs), expected in zip(cases, whole, strict=True):
            far = distance(stages(name, inputs), expected, measure)
            peer = F32_BOUND if is_whole else distance((near or theirs)(dtype)(name, inputs), expected, measure)
            bound = F32_BOUND if is_whole else HALF_BOUND * peer
            if title not in worst or not far / bound <= worst[title][0] / worst[title][2]:
                worst[title] = (far, peer, bound)
        for title, (far, peer, bound) in worst.items():
            named = str(dtype).removeprefix("torch.")
            beside = "the bound" if is_whole else f"{PEER} in {named}{', tokens rounded to 8 bits' if near else ''}"
            what = f"parity: {model}, {title}, {named}"
            # Where there is no difference at all there is still a ratio.
            yield run.row(what, f"relative error, {measure.__name__}", far or 1e-12, beside, peer) | {"bound": bound}
