"""Writes tests/fixtures/upscalers: tiny random networks of the ESRGAN family and what spandrel computes with them, for crates/engine/tests/it/parity/upscalers.

    python tests/oracle/upscalers.py    seconds on a CPU; the result is committed

spandrel reads Real-ESRGAN's own files, and its networks are those of ESRGAN and basicsr.
"""

import re
import shutil
import sys
from pathlib import Path
from unittest.mock import MagicMock

import torch
from safetensors.torch import save_file

# Other networks of spandrel's import it; it is not here, for with it transformers prepares images otherwise.
sys.modules |= {name: MagicMock() for name in ("torchvision", "torchvision.ops", "torchvision.transforms", "torchvision.transforms.functional")}

from spandrel import ModelLoader  # noqa: E402
from spandrel.architectures.__arch_helpers import block  # noqa: E402
from spandrel.architectures.Compact import Compact  # noqa: E402
from spandrel.architectures.ESRGAN import ESRGAN  # noqa: E402

OUT = Path(__file__).resolve().parent.parent / "fixtures" / "upscalers"
# (height, width): both sides odd, so that a network that looks at squares of 2 by 2 sees a border; and both even.
SIZES = [(17, 23), (32, 20)]
FEATURES, GROWTH, BLOCKS = 8, 4, 2
# The published networks' growth is not an argument of spandrel's; 32 channels would make the files large.
FULL = block.RRDB
block.RRDB = lambda **given: FULL(**given | {"gc": GROWTH})


def randomize(network, seed):
    """Every parameter a seeded normal number, kept in f16: matrices have the variance of their input, slopes are of either sign."""
    for index, (_, parameter) in enumerate(sorted(network.named_parameters())):
        values = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed + index))
        scale = (values.numel() / values.shape[0]) ** -0.5 if values.dim() > 1 else 0.2
        parameter.data = values * scale
    # What an image shows lies between 0 and 1, and not all of it at the ends.
    last = list(network.parameters())[-1]
    last.data += 0.4 if last.numel() == 3 else 0
    return network.half().float().eval()


def basicsr(name, doublings, real_sr=False):
    """basicsr's name of a tensor of ESRGAN's first release, or Real-SR's."""
    kind, last = name.rsplit(".", 1)[1], 3 * doublings + 4
    if found := re.fullmatch(r"model\.1\.sub\.(\d+)\.RDB(\d)\.conv(\d)\.0\.\w+", name):
        block, dense, conv = found.groups()
        return f"RRDB_trunk.{block}.RDB{dense}.conv{conv}.{kind}" if real_sr else f"body.{block}.rdb{dense}.conv{conv}.{kind}"
    modules = {"0": "conv_first", f"1.sub.{BLOCKS}": "trunk_conv" if real_sr else "conv_body", f"{last}": "conv_last",
               f"{last - 2}": "HRconv" if real_sr else "conv_hr"}  # fmt: skip
    modules |= {f"{3 * number}": f"upconv{number}" if real_sr else f"conv_up{number}" for number in range(1, doublings + 1)}
    return f"{modules[name.removeprefix('model.').rsplit('.', 1)[0]]}.{kind}"


def save(name, state, images, out):
    """The file, and what spandrel's own reader makes of it."""
    save_file({key: value.half().contiguous() for key, value in state.items()}, OUT / f"{name}.safetensors")
    bare = {re.sub(r"^params_ema\.", "", key): value for key, value in state.items() if not key.startswith("params.")}
    network = ModelLoader().load_from_state_dict(bare).model.eval()
    for index, image in enumerate(images):
        pixels = image.permute(2, 0, 1)[None].float() / 255
        enlarged = network.float()(pixels)
        out[f"{name}/{index}/pixels"] = enlarged[0]
        out[f"{name}/{index}/image"] = (enlarged[0].clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0)
        if index == 0:
            out[f"{name}/{index}/half"] = network.half()(pixels.half())[0].float()


@torch.no_grad()
def main():
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    images, out = [], {}
    for index, (height, width) in enumerate(SIZES):
        image = torch.randint(0, 256, (height, width, 3), generator=torch.Generator().manual_seed(index), dtype=torch.uint8)
        images.append(image)
        out[f"input/{index}"] = image
    sizes = {"num_filters": FEATURES, "num_blocks": BLOCKS}
    x4 = randomize(ESRGAN(**sizes), 100).state_dict()
    other = {f"params.{basicsr(name, 2)}": torch.zeros_like(value) for name, value in x4.items()}
    save("x4", {f"params_ema.{basicsr(name, 2)}": value for name, value in x4.items()} | other, images, out)
    save("x4_first_release", x4, images, out)
    save("x4_real_sr", {basicsr(name, 2, real_sr=True): value for name, value in x4.items()}, images, out)
    x2 = randomize(ESRGAN(in_nc=12, shuffle_factor=2, **sizes), 300).state_dict()
    save("x2", {basicsr(name, 2): value for name, value in x2.items()}, images, out)
    save("x2_first_release", randomize(ESRGAN(scale=2, **sizes), 500).state_dict(), images, out)
    for factor in (2, 4):
        save(f"compact_x{factor}", randomize(Compact(num_feat=FEATURES, num_conv=3, upscale=factor), 700 + factor).state_dict(), images, out)
    # What the spellings mean is the same network, and the same image.
    for key in [key for key in out if key.startswith(("x4_first_release/", "x4_real_sr/"))]:
        assert torch.equal(out.pop(key), out[f"x4/{key.split('/', 1)[1]}"]), key
    save_file({key: value.contiguous() for key, value in out.items()}, OUT / "expected.safetensors")
    size = sum(file.stat().st_size for file in OUT.rglob("*") if file.is_file())
    print(f"{size / 1e6:.2f} MB in {OUT}")


if __name__ == "__main__":
    main()
