"""Writes tests/fixtures/images: the same four quarters as callers' programs save them, and files that are no such image.

    python tests/oracle/make_images.py    at once; the result is committed

Needs Pillow and numpy; made with Pillow 13.0.0. Seen upright every good file is 64 wide and 96 high: red and green above blue and white.
"""

from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).resolve().parent.parent / "fixtures" / "images"
WIDTH, HEIGHT = 64, 96


def quarters():
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    image[: HEIGHT // 2, : WIDTH // 2] = (255, 0, 0)
    image[: HEIGHT // 2, WIDTH // 2 :] = (0, 255, 0)
    image[HEIGHT // 2 :, : WIDTH // 2] = (0, 0, 255)
    image[HEIGHT // 2 :, WIDTH // 2 :] = (255, 255, 255)
    return image


def main():
    HERE.mkdir(parents=True, exist_ok=True)
    upright = Image.fromarray(quarters())
    upright.save(HERE / "plain.png", optimize=True)
    upright.save(HERE / "plain.webp", lossless=True)
    upright.convert("CMYK").save(HERE / "cmyk.jpg", quality=95)
    # Lies on its side; orientation 6 says: turn it a quarter clockwise.
    exif = Image.Exif()
    exif[0x0112] = 6
    upright.transpose(Image.Transpose.ROTATE_90).save(HERE / "turned.jpg", quality=95, exif=exif)
    alpha = np.dstack([quarters(), np.full((HEIGHT, WIDTH), 255, np.uint8)])
    alpha[HEIGHT // 2 :, WIDTH // 2 :] = (0, 0, 0, 0)
    Image.fromarray(alpha).save(HERE / "transparent.png", optimize=True)
    Image.fromarray(quarters()).quantize(8).save(HERE / "palette.png", optimize=True)
    sixteen = (quarters()[:, :, 0].astype(np.uint16) * 257)
    Image.fromarray(sixteen).save(HERE / "grey16.png", optimize=True)
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[HEIGHT // 2 :] = 255
    Image.fromarray(mask).save(HERE / "mask.png", optimize=True)

    frames = [upright, upright.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    for name in ("animated.png", "animated.webp"):
        frames[0].save(HERE / name, save_all=True, append_images=frames[1:], duration=100, loop=0, lossless=True)
    frames[0].save(HERE / "image.gif")
    Image.new("RGB", (1, 1), "red").save(HERE / "one_pixel.png")
    Image.new("RGB", (64, 64), "red").save(HERE / "square.png")
    Image.new("RGB", (200, 16), "red").save(HERE / "strip.png")
    Image.new("1", (10_000, 10_000)).save(HERE / "hundred_megapixels.png", optimize=True)
    whole = (HERE / "plain.png").read_bytes()
    (HERE / "truncated.png").write_bytes(whole[: len(whole) * 2 // 3])
    (HERE / "text.png").write_text("not an image, whatever its name says\n")


if __name__ == "__main__":
    main()
