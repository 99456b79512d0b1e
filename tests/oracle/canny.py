"""Writes tests/fixtures/canny.safetensors: images and the edges that OpenCV finds in them, for crates/engine/tests/it/parity/canny.

    python tests/oracle/canny.py    a second; needs opencv-python-headless besides numpy, pillow and safetensors; the result is committed

A key is NAME/LOW/HIGH; the image of a name is NAME. Made with opencv 5.0.0; the same bytes come from 4.14.0.
"""

from pathlib import Path

import cv2
import numpy
from PIL import Image
from safetensors.numpy import save_file

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
THRESHOLDS = ((100, 200), (0, 0), (30, 90), (200, 200), (50, 600), (0, 2040), (299, 301))


def images():
    numbers = numpy.random.default_rng(16)
    y, x = numpy.mgrid[0:67, 0:91].astype("float64")
    bows = [127 + 90 * numpy.sin(x / 9 + k) * numpy.cos(y / (7 + k)) + 30 * ((x // 16 + y // 24 + k) % 2) for k in range(3)]
    yield "bows", numpy.stack(bows, -1).clip(0, 255)
    yield "noise", numbers.integers(0, 256, (40, 33, 3))
    yield "soft_noise", cv2.GaussianBlur(numbers.integers(0, 256, (70, 64, 3)).astype("float32"), (0, 0), 2.5) * 3 - 250
    yield "rings", numpy.stack([numpy.hypot(x - 45, y - 30) * 13 % 256, (x * 5 + y * 2) % 256, (x - y) * 7 % 256], -1)
    # Equal gradients in several channels, and at several places.
    yield "steps", numpy.stack([(x // 6 + y // 5) % 2 * 255, 255 - (x // 6 + y // 5) % 2 * 255, x // 12 % 2 * 200], -1)
    yield "grey", numpy.stack([numpy.sin(x * y / 200) * 100 + 128] * 3, -1)
    yield "column", numbers.integers(0, 256, (30, 1, 3))
    yield "row", numbers.integers(0, 256, (1, 30, 3))
    yield "pixel", numbers.integers(0, 256, (1, 1, 3))
    yield "two", numbers.integers(0, 256, (2, 2, 3))
    yield "photo", numpy.asarray(Image.open(FIXTURES / "images/turned.jpg").convert("RGB"))[:120, :160]


def main():
    out = {}
    for name, pixels in images():
        pixels = numpy.ascontiguousarray(numpy.clip(pixels, 0, 255).astype("uint8"))
        out[name] = pixels
        for low, high in THRESHOLDS:
            out[f"{name}/{low}/{high}"] = cv2.Canny(pixels, low, high)
    save_file(out, FIXTURES / "canny.safetensors")
    print(len(out), sum(value.nbytes for value in out.values()), cv2.__version__)


if __name__ == "__main__":
    main()
