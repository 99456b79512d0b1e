"""The people of tiny-edit: a person in a place of the world, a garment lying flat, and the person wearing it.

    python people.py OUT.png            a contact sheet: person, garment, result, a few seconds
    python people.py data DIR [SHARDS]  renders the training images, seeded, resumable by shard
    python people.py sample DIR SEED    person.png and garment.png of one example

Images are 96 wide and 128 high. A person is drawn twice with the same jitter, in two garments, so that face, hair, skin
and background of both images are the same to the pixel. Garments are the world's t-shirt and dress.
"""

import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from world import (  # noqa: E402
    COLOURS, OBJECTS, PATTERNS, PLACES, SUPERSAMPLE, background, blur, ellipse, layer_mask, mix, pattern_mask, reduce,
    role_colour, rounded, sheet, smile, smooth,
)  # fmt: skip

WIDTH_PX, HEIGHT_PX = 96, 128
GARMENTS = ["t-shirt", "dress"]
SKINS = [(246, 214, 188), (226, 180, 148), (190, 140, 106), (142, 98, 72), (96, 66, 50)]
HAIRS = [(44, 36, 40), (92, 64, 50), (150, 112, 78), (196, 166, 120), (168, 162, 164)]
TROUSERS = [(70, 74, 92), (96, 88, 84), (58, 60, 66)]
GREEN = (0, 255, 0)
SHARD = 500


@dataclass(frozen=True)
class Garment:
    kind: str
    colour: str
    pattern: str


class Place:
    """Local units of a garment or a body to supersampled pixels: a scale each way, a small turn, a centre."""

    def __init__(self, centre, scale_x, scale_y, angle=0.0):
        self.centre, self.scale = np.array(centre, float), np.array([scale_x, scale_y])
        self.rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])

    def __call__(self, polygon):
        return [tuple(p) for p in (np.asarray(polygon, float) * self.scale) @ self.rotation.T * SUPERSAMPLE + self.centre * SUPERSAMPLE]


def crop(image):
    """The middle of a square canvas of HEIGHT_PX."""
    side = image.size[1]
    left = (side - side * WIDTH_PX // HEIGHT_PX) // 2
    return image.crop((left, 0, side - left, side))


def generate_garment(canvas, union, garment, place):
    """Draws it over `canvas`; returns the union of its masks with `union`."""
    side, colour = canvas.size[0], COLOURS[garment.colour]
    pattern = pattern_mask(garment.pattern, place, side) if garment.pattern != "plain" else None
    for role, add, cut in OBJECTS[garment.kind]():
        mask = layer_mask(add, cut, place, side)
        canvas.paste(role_colour(role, colour), mask=mask)
        if role == "main" and pattern is not None:
            canvas.paste(mix(colour, (255, 255, 255), 0.55), mask=ImageChops.multiply(mask, pattern))
        union = ImageChops.lighter(union, mask)
    return union


def finish(ground, canvas, alpha):
    """Shadow below, light from the upper left: as world.py's flat style."""
    ground, canvas, alpha = reduce(crop(ground)), reduce(crop(canvas)), reduce(crop(alpha))[..., None] / 255
    shadow = np.pad(blur(alpha[..., 0] * 255, 3), ((3, 0), (2, 0)))[:HEIGHT_PX, :WIDTH_PX, None] / 255
    y, x = np.mgrid[0:HEIGHT_PX, 0:WIDTH_PX] / HEIGHT_PX
    light = (1.08 - 0.1 * x - 0.12 * y)[..., None]
    return np.clip(ground * (1 - 0.24 * shadow) * (1 - alpha) + canvas * light + 0.5, 0, 255).astype(np.uint8)


class Person:
    """Looks, pose and place of somebody; `wearing` draws them."""

    def __init__(self, rng):
        pick = lambda xs: xs[int(rng.integers(len(xs)))]  # noqa: E731
        self.skin, self.hair, self.trousers = pick(SKINS), pick(HAIRS), pick(TROUSERS)
        self.cut = int(rng.integers(3))
        side = HEIGHT_PX * SUPERSAMPLE
        self.ground = background(pick(list(PLACES)), rng, side)
        self.centre = np.array([64.0, 0.0]) + [rng.uniform(-4, 4), rng.uniform(-2, 3)]
        self.size = rng.uniform(0.95, 1.05)
        self.arms = rng.uniform(-0.08, 0.12)

    def at(self, x, y):
        return self.centre + np.array([x, y]) * self.size

    def body(self):
        """Local unit: one pixel at size 1, the origin at the crown's middle, y down."""
        return Place(self.centre, self.size, self.size)

    def garment_place(self, kind):
        if kind == "t-shirt":
            return Place(self.at(0, 68), 27 * self.size, 29 * self.size)
        return Place(self.at(0, 79), 31 * self.size, 34 * self.size)

    def arm(self, s):
        out = 24 + 30 * self.arms
        return smooth([[s * 14, 48], [s * 21, 50], [s * (out + 3), 72], [s * (out + 4), 92], [s * (out - 2), 94], [s * (out - 5), 74], [s * 14, 60]])

    def back_hair(self):
        if self.cut == 0:
            return []
        drop = {1: 44, 2: 62}[self.cut]
        return [smooth([[0, 8], [15, 16], [18, 34], [16, drop], [0, drop - 4], [-16, drop], [-18, 34], [-15, 16]])]

    def fringe(self):
        return smooth([[0, 8], [13, 14], [15, 28], [11, 22], [2, 19], [-8, 21], [-12, 26], [-15, 28], [-13, 14]])

    def eyes(self):
        return ellipse(-4.6, 28, 1.5, 1.9), ellipse(4.6, 28, 1.5, 1.9)

    def mouth(self):
        return smile(0, 33, 3.4)

    def where(self, *polygons):
        """How much of each pixel they cover: (128, 96), 0 to 255, uint8."""
        side = HEIGHT_PX * SUPERSAMPLE
        return reduce(crop(layer_mask(polygons, [], self.body(), side))).astype(np.uint8)

    def drawn(self, garment):
        """The person without the place: canvas and where it is filled; what each part is with its mask, from behind; the garment's mask."""
        side = HEIGHT_PX * SUPERSAMPLE
        canvas, union = Image.new("RGB", (side, side)), Image.new("L", (side, side))
        place, parts = self.body(), []

        def layer(part, colour, *polygons):
            nonlocal union
            mask = layer_mask(polygons, [], place, side)
            canvas.paste(colour, mask=mask)
            union = ImageChops.lighter(union, mask)
            parts.append((part, mask))

        layer("hair", self.hair, *self.back_hair())
        below = ("leg", self.skin) if garment.kind == "dress" else ("trousers", self.trousers)
        for s in (-1, 1):
            layer(*below, np.array([[s * 1, 90], [s * 15, 90], [s * 14, 140], [s * 3, 140]]))
        if garment.kind == "t-shirt":
            layer("trousers", self.trousers, rounded([[-15, 84], [15, 84], [16, 100], [-16, 100]], 2))
        layer("arm", self.skin, self.arm(-1), self.arm(1))
        layer("face", self.skin, rounded([[-14, 46], [14, 46], [15, 84], [-15, 84]], 5), rounded([[-5, 36], [5, 36], [7, 52], [-7, 52]], 2))
        layer("face", self.skin, ellipse(0, 26, 12, 15))
        layer("hair", self.hair, self.fringe())
        layer("face", (52, 44, 58), *self.eyes(), self.mouth())
        worn = generate_garment(canvas, Image.new("L", (side, side)), garment, self.garment_place(garment.kind))
        return canvas, ImageChops.lighter(union, worn), [*parts, (garment.kind, worn)], worn

    def wearing(self, garment, masked=False):
        """(128, 96, 3), uint8; and where the garment is, (128, 96), bool. `masked`: with that part generated green."""
        canvas, union, _, worn = self.drawn(garment)
        image = finish(self.ground, canvas, union)
        where = reduce(crop(worn)) > 40
        if masked:
            wide = crop(worn).filter(ImageFilter.MaxFilter(7))
            image[reduce(wide) > 40] = GREEN
        return image, where


def flat_lay(garment, rng):
    """The garment on a light ground: (128, 96, 3), uint8."""
    side = HEIGHT_PX * SUPERSAMPLE
    tone = rng.uniform(214, 248)
    ground = Image.new("RGB", (side, side), tuple(int(tone + t) for t in rng.uniform(-4, 4, 3)))
    canvas = Image.new("RGB", (side, side))
    size = rng.uniform(0.94, 1.04)
    centre = np.array([64.0, 64.0]) + rng.uniform(-3, 3, 2)
    scale = (41, 44) if garment.kind == "t-shirt" else (44, 50)
    place = Place(centre, scale[0] * size, scale[1] * size, math.radians(rng.uniform(-4, 4)))
    union = generate_garment(canvas, Image.new("L", (side, side)), garment, place)
    return finish(ground, canvas, union)


def random_garment(rng):
    pick = lambda xs: xs[int(rng.integers(len(xs)))]  # noqa: E731
    return Garment("t-shirt" if rng.random() < 0.65 else "dress", pick(list(COLOURS)), pick(PATTERNS))


def example(rng):
    """(person, garment, result) images, what is worn at first and in the end, and where the eyes and the mouth are."""
    person, before, after = Person(rng), random_garment(rng), random_garment(rng)
    result, _ = person.wearing(after)
    start, _ = person.wearing(before, masked=rng.random() < 0.3)
    return np.stack([start, flat_lay(after, rng), result]), before, after, person.where(*person.eyes(), person.mouth())


def render_shard(index, directory):
    path = directory / f"people-{index:02}.npy"
    if path.exists():
        return
    rng = np.random.default_rng([2027, index])
    examples = [example(rng) for _ in range(SHARD)]
    np.save(directory / f"faces-{index:02}.npy", np.stack([face for *_, face in examples]))
    partial = path.with_suffix(".partial")
    with partial.open("wb") as out:
        np.save(out, np.stack([images for images, *_ in examples]))
    partial.rename(path)


def load(directory, what="people"):
    """All shards: (n, 3, 128, 96, 3), uint8; of "faces" how much of each pixel eyes and mouth cover, (n, 128, 96), uint8."""
    return np.concatenate([np.load(p, mmap_mode="r") for p in sorted(Path(directory).glob(f"{what}-*.npy"))])


def main():
    if sys.argv[1] == "data":
        directory = Path(sys.argv[2])
        directory.mkdir(parents=True, exist_ok=True)
        for index in range(int(sys.argv[3]) if len(sys.argv) > 3 else 10):
            render_shard(index, directory)
        return
    if sys.argv[1] == "sample":
        for name, image in zip(["person", "garment"], example(np.random.default_rng(int(sys.argv[3])))[0]):
            Image.fromarray(image).save(Path(sys.argv[2]) / f"{name}.png", optimize=True)
        return
    rng = np.random.default_rng(7)
    sheet(np.concatenate([example(rng)[0] for _ in range(15)]), 9).save(sys.argv[1])


if __name__ == "__main__":
    main()
