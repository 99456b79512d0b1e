"""The image world of tiny-sd: one large object, one colour, one pattern, one place, generated with Pillow.

    python world.py OUT.png          a contact sheet of the world and of its styles, a few seconds

`render` turns a `Scene` and a random generator into an image; `caption` says the same scene in words. Both draw their
jitter from the generator alone, so a seed fixes a data set. Shapes live in local units: x to the right and y down,
the object fits in [-1, 1], and one unit is about 46 px of a 128 px image.
"""

import math
import sys
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

SIZE_PX = 128
SUPERSAMPLE = 3

COLOURS = {
    "red": (228, 44, 52),
    "orange": (247, 128, 22),
    "yellow": (250, 206, 36),
    "green": (38, 166, 72),
    "teal": (0, 170, 172),
    "blue": (46, 104, 226),
    "purple": (130, 58, 206),
    "pink": (243, 92, 166),
}
PATTERNS = ["plain", "striped", "dotted", "checked"]
PLACES = {
    "sky": ["in the sky"],
    "beach": ["on the beach", "at the beach"],
    "meadow": ["in a meadow", "in the meadow"],
    "night": ["at night", "under the stars"],
    "room": ["in a room", "in the room"],
}
STYLES = ["flat", "ink", "neon", "sunset"]

CREAM = (250, 244, 230)
BROWN = (140, 90, 54)
DARK = (52, 44, 58)
# How much white the second colour of a pattern has: with more, the autoencoder makes its stripes grey.
PALE = 0.4
INK = (24, 22, 28)
PAPER = (246, 245, 243)


@dataclass(frozen=True)
class Scene:
    object: str
    colour: str
    pattern: str = "plain"
    place: str = "sky"
    style: str = "flat"


# --- curves: every shape is a polygon, an array of (n, 2) points in local units -------------------------------------


def ellipse(cx, cy, rx, ry, start=0.0, stop=360.0, n=48):
    t = np.radians(np.linspace(start, stop, n))
    return np.stack([cx + rx * np.cos(t), cy + ry * np.sin(t)], 1)


def rectangle(x0, y0, x1, y1):
    return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], float)


def rounded(points, radius, n=6):
    """Replaces every corner of a polygon by a quadratic curve that starts `radius` before it."""
    points = np.asarray(points, float)
    out = []
    for i, p in enumerate(points):
        before, after = points[i - 1] - p, points[(i + 1) % len(points)] - p
        if not before.any() or not after.any():
            continue
        a = p + before * min(0.5, radius / np.hypot(*before))
        b = p + after * min(0.5, radius / np.hypot(*after))
        for t in np.linspace(0, 1, n):
            out.append((1 - t) ** 2 * a + 2 * t * (1 - t) * p + t**2 * b)
    return np.array(out)


def smooth(points, n=10):
    """The closed Catmull-Rom curve through the points."""
    p = np.asarray(points, float)
    t = np.linspace(0, 1, n, endpoint=False)[:, None]
    out = []
    for i in range(len(p)):
        p0, p1, p2, p3 = p[i - 1], p[i], p[(i + 1) % len(p)], p[(i + 2) % len(p)]
        out.append(
            0.5 * (2 * p1 + (p2 - p0) * t + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2 + (3 * p1 - p0 - 3 * p2 + p3) * t**3)
        )
    return np.concatenate(out)


def mirror(points):
    """The right half of an outline, top to bottom, closed by its mirror image."""
    p = np.asarray(points, float)
    return np.concatenate([p, p[::-1] * [-1, 1]])


# --- objects: layers from back to front, each (role, polygons to add, polygons to cut out) --------------------------
# "main" takes colour and pattern, "shade" and "tint" the colour made darker and lighter, the others are fixed colours.


def mug():
    return [
        ("shade", [ellipse(0.47, 0.08, 0.42, 0.42)], [ellipse(0.47, 0.08, 0.23, 0.23)]),
        ("main", [rounded([[-0.78, -0.66], [0.5, -0.66], [0.44, 0.82], [-0.72, 0.82]], 0.2), ellipse(-0.14, -0.66, 0.64, 0.17)], []),
        ("tint", [ellipse(-0.14, -0.66, 0.64, 0.17)], []),
        ("brown", [ellipse(-0.14, -0.64, 0.53, 0.11)], []),
    ]


def tree():
    crown = [ellipse(0, -0.52, 0.5, 0.46), ellipse(-0.44, -0.1, 0.44, 0.42), ellipse(0.44, -0.1, 0.44, 0.42), ellipse(0, 0.05, 0.5, 0.36)]
    return [("brown", [[[-0.14, 0.2], [0.14, 0.2], [0.22, 0.98], [-0.22, 0.98]]], []), ("main", crown, [])]


def house():
    return [
        ("shade", [rectangle(0.32, -0.86, 0.54, -0.2)], []),
        ("main", [rectangle(-0.68, -0.2, 0.68, 0.86)], []),
        ("shade", [rounded([[0, -0.98], [0.94, -0.1], [-0.94, -0.1]], 0.1)], []),
        ("brown", [np.concatenate([ellipse(-0.26, 0.42, 0.19, 0.2, 180, 360, 16), [[-0.07, 0.86], [-0.45, 0.86]]])], []),
        ("cream", [rounded(rectangle(0.12, 0.16, 0.5, 0.52), 0.05)], []),
    ]


def fish():
    body = smooth([[-1, 0.02], [-0.72, -0.36], [-0.2, -0.52], [0.28, -0.34], [0.62, -0.02], [0.28, 0.34], [-0.2, 0.52], [-0.72, 0.38]])
    return [
        ("shade", [smooth([[0.44, 0], [0.72, -0.34], [1.02, -0.52], [0.92, 0], [1.02, 0.52], [0.72, 0.34]])], []),
        ("shade", [smooth([[-0.36, -0.42], [-0.1, -0.78], [0.3, -0.7], [0.26, -0.28]])], []),
        ("main", [body], []),
        ("cream", [ellipse(-0.62, -0.1, 0.13, 0.13)], []),
        ("dark", [ellipse(-0.64, -0.1, 0.07, 0.07)], []),
    ]


def star():
    t = np.radians(np.arange(10) * 36 - 90)
    r = np.where(np.arange(10) % 2 == 0, 1.04, 0.5)
    return [
        ("main", [rounded(np.stack([r * np.cos(t), r * np.sin(t) + 0.06], 1), 0.16)], []),
        ("dark", [ellipse(-0.2, -0.04, 0.07, 0.09), ellipse(0.2, -0.04, 0.07, 0.09), smile(0, 0.16, 0.14)], []),
    ]


def smile(cx, cy, r):
    return np.concatenate([ellipse(cx, cy, r, r, 20, 160, 14), ellipse(cx, cy - 0.04, r * 0.9, r * 0.75, 160, 20, 14)])


def balloon():
    envelope = smooth([[0, -1.02], [0.5, -0.86], [0.74, -0.44], [0.6, 0.0], [0.22, 0.44], [-0.22, 0.44], [-0.6, 0.0], [-0.74, -0.44], [-0.5, -0.86]])
    return [
        ("dark", [[[-0.2, 0.42], [-0.16, 0.42], [-0.13, 0.72], [-0.17, 0.72]], [[0.2, 0.42], [0.16, 0.42], [0.13, 0.72], [0.17, 0.72]]], []),
        ("main", [envelope], []),
        ("shade", [[[-0.24, 0.4], [0.24, 0.4], [0.17, 0.54], [-0.17, 0.54]]], []),
        ("brown", [rounded([[-0.21, 0.68], [0.21, 0.68], [0.17, 1.0], [-0.17, 1.0]], 0.06)], []),
    ]


def boat():
    return [
        ("brown", [rectangle(-0.1, -1.0, -0.03, 0.5)], []),
        ("main", [[[0.0, -0.92], [0.8, 0.36], [0.0, 0.36]], [[-0.14, -0.72], [-0.14, 0.36], [-0.74, 0.36]]], []),
        ("shade", [rounded([[-0.98, 0.36], [0.98, 0.36], [0.66, 0.86], [-0.66, 0.86]], 0.14)], []),
        ("cream", [rectangle(-0.8, 0.46, 0.8, 0.53)], []),
    ]


def cat():
    body = smooth(mirror([[0.3, -0.3], [0.46, 0.2], [0.56, 0.7], [0.34, 0.96]]))
    tail = smooth([[0.34, 0.94], [0.78, 0.86], [0.9, 0.44], [0.72, 0.16], [0.62, 0.26], [0.7, 0.48], [0.6, 0.66], [0.36, 0.7]])
    ears = [[[-0.54, -1.0], [-0.08, -0.72], [-0.5, -0.4]], [[0.54, -1.0], [0.08, -0.72], [0.5, -0.4]]]
    return [
        ("shade", [tail], []),
        ("main", [body], []),
        ("main", [ellipse(0, -0.4, 0.56, 0.46)] + ears, []),
        ("cream", [ellipse(0, -0.22, 0.2, 0.14)], []),
        ("dark", [ellipse(-0.24, -0.44, 0.07, 0.1), ellipse(0.24, -0.44, 0.07, 0.1), ellipse(0, -0.27, 0.06, 0.045)], []),
    ]


def t_shirt():
    outline = mirror([[0.26, -0.78], [0.52, -0.7], [1.0, -0.28], [0.78, 0.06], [0.56, -0.1], [0.58, 0.84]])
    return [
        ("main", [rounded(outline, 0.08)], [ellipse(0, -0.8, 0.27, 0.25)]),
        ("shade", [ellipse(0, -0.8, 0.33, 0.31, 0, 180)], [ellipse(0, -0.8, 0.25, 0.22)]),
    ]


def dress():
    outline = mirror([[0.22, -0.98], [0.34, -0.98], [0.4, -0.62], [0.27, -0.2], [0.5, 0.3], [0.74, 0.84], [0.4, 0.95], [0.0, 0.98]])
    return [
        ("main", [rounded(outline, 0.1)], [ellipse(0, -0.98, 0.22, 0.26)]),
        ("shade", [rounded([[-0.3, -0.26], [0.3, -0.26], [0.31, -0.1], [-0.31, -0.1]], 0.04)], []),
    ]


def trousers():
    outline = mirror([[0.46, -0.96], [0.58, 0.0], [0.64, 0.96], [0.16, 0.96], [0.03, -0.24]])
    return [("main", [rounded(outline, 0.05)], []), ("shade", [[[-0.47, -0.98], [0.47, -0.98], [0.495, -0.76], [-0.495, -0.76]]], [])]


def hat():
    dome = smooth([[-0.56, 0.34], [-0.54, -0.2], [-0.3, -0.6], [0.0, -0.56], [0.3, -0.6], [0.54, -0.2], [0.56, 0.34]])
    return [
        ("main", [smooth([[-1.08, 0.32], [-0.6, 0.22], [0, 0.26], [0.6, 0.22], [1.08, 0.32], [0.62, 0.6], [0, 0.68], [-0.62, 0.6]])], []),
        ("main", [dome], []),
        ("shade", [[[-0.56, 0.04], [0.56, 0.04], [0.575, 0.3], [0.3, 0.37], [0, 0.39], [-0.3, 0.37], [-0.575, 0.3]]], []),
    ]


OBJECTS = {
    "mug": mug, "tree": tree, "house": house, "fish": fish, "star": star, "balloon": balloon,
    "boat": boat, "cat": cat, "t-shirt": t_shirt, "dress": dress, "trousers": trousers, "hat": hat,
}  # fmt: skip


# --- generation --------------------------------------------------------------------------------------------------------


def mix(a, b, t):
    return tuple(int(round(x + (y - x) * t)) for x, y in zip(a, b))


def role_colour(role, colour):
    fixed = {"cream": CREAM, "brown": BROWN, "dark": DARK}
    return fixed.get(role) or {"main": colour, "shade": mix(colour, (30, 10, 40), 0.3), "tint": mix(colour, (255, 255, 255), 0.5)}[role]


class Placement:
    """Where the object stands: local units to supersampled pixels."""

    def __init__(self, rng, size_px):
        unit = size_px * SUPERSAMPLE / 128
        self.centre = (np.array([64.0, 65.0]) + rng.uniform(-4, 4, 2)) * unit
        self.scale = rng.uniform(43, 48) * unit
        angle = math.radians(rng.uniform(-5, 5))
        self.rotation = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])

    def __call__(self, polygon):
        return [tuple(p) for p in (np.asarray(polygon, float) @ self.rotation.T) * self.scale + self.centre]


def layer_mask(add, cut, place, side):
    mask = Image.new("L", (side, side))
    draw = ImageDraw.Draw(mask)
    for polygon in add:
        draw.polygon(place(polygon), fill=255)
    for polygon in cut:
        draw.polygon(place(polygon), fill=0)
    return mask


def pattern_mask(pattern, place, side):
    """Where the second colour of the pattern goes, over the whole image; the caller keeps what lies in the object."""
    mask = Image.new("L", (side, side))
    draw = ImageDraw.Draw(mask)
    if pattern == "striped":
        for y in np.arange(-1.2, 1.3, 0.4):
            draw.polygon(place(rectangle(-1.3, y, 1.3, y + 0.2)), fill=255)
    elif pattern == "dotted":
        for row, y in enumerate(np.arange(-1.2, 1.21, 0.36)):
            for x in np.arange(-1.26, 1.2, 0.42):
                draw.polygon(place(ellipse(x + 0.21 * (row % 2), y, 0.115, 0.115, n=18)), fill=255)
    elif pattern == "checked":
        for row, y in enumerate(np.arange(-1.28, 1.2, 0.32)):
            for x in np.arange(-1.28 + 0.32 * (row % 2), 1.2, 0.64):
                draw.polygon(place(rectangle(x, y, x + 0.32, y + 0.32)), fill=255)
    return mask


def gradient(side, top, bottom):
    t = np.linspace(0, 1, side)[:, None, None]
    rows = (np.array(top) * (1 - t) + np.array(bottom) * t).astype(np.uint8)
    return Image.fromarray(np.broadcast_to(rows, (side, side, 3)).copy())


def background(place, rng, side):
    """The place in muted colours: every channel spread stays under 45, so that only the object is saturated."""
    s = side / 128
    j = lambda a: rng.uniform(-a, a)  # noqa: E731
    blob = lambda d, x, y, rx, ry, fill: d.ellipse([(x - rx) * s, (y - ry) * s, (x + rx) * s, (y + ry) * s], fill=fill)  # noqa: E731
    if place == "sky":
        image = gradient(side, (172, 202, 214), (222, 234, 236))
        draw = ImageDraw.Draw(image)
        for x, y in [(22 + j(8), 26 + j(6)), (104 + j(8), 42 + j(8)), (26 + j(8), 104 + j(6))]:
            for dx, dy, r in [(-10, 2, 7), (0, -2, 10), (11, 2, 7)]:
                blob(draw, x + dx, y + dy, r, r * 0.8, (244, 247, 247))
    elif place == "beach":
        image = gradient(side, (206, 226, 230), (232, 236, 230))
        draw = ImageDraw.Draw(image)
        blob(draw, 104 + j(6), 20 + j(4), 10, 10, (250, 240, 216))
        horizon = 58 + j(3)
        draw.rectangle([0, horizon * s, side, side], fill=(146, 184, 188))
        draw.rectangle([0, (horizon + 12) * s, side, side], fill=(164, 198, 200))
        wave = [(x * s, (horizon + 25 + 2 * math.sin(x / 9 + j(0.1))) * s) for x in range(-2, 132, 3)]
        draw.polygon(wave + [(side, side), (0, side)], fill=(246, 244, 236))
        draw.polygon([(x, y + 3.5 * s) for x, y in wave] + [(side, side), (0, side)], fill=(234, 219, 194))
    elif place == "meadow":
        image = gradient(side, (214, 228, 226), (234, 238, 226))
        draw = ImageDraw.Draw(image)
        blob(draw, 100 + j(14), 92, 90, 34, (190, 208, 172))
        blob(draw, 24 + j(14), 108, 90, 36, (174, 195, 156))
        draw.rectangle([0, 112 * s, side, side], fill=(174, 195, 156))
        for x in (10, 24, 42, 84, 102, 118):
            blob(draw, x + j(4), 112 + j(8), 2.2, 2.2, (250, 248, 240))
    elif place == "night":
        image = gradient(side, (36, 40, 72), (74, 72, 108))
        draw = ImageDraw.Draw(image)
        x, y = 106 + j(5), 22 + j(4)
        blob(draw, x, y, 11, 11, (244, 236, 212))
        for sx, sy in [(14, 18), (34, 40), (60, 10), (84, 30), (12, 70), (116, 66), (16, 112), (112, 104)]:
            blob(draw, sx + j(5), sy + j(5), 1.6, 1.6, (238, 234, 220))
    else:
        image = gradient(side, (238, 222, 208), (232, 214, 198))
        draw = ImageDraw.Draw(image)
        x, y = 24 + j(3), 32 + j(3)
        draw.rectangle([(x - 17) * s, (y - 20) * s, (x + 17) * s, (y + 20) * s], fill=(250, 246, 238))
        for dx, dy in [(-14, -17), (1.5, -17), (-14, 1.5), (1.5, 1.5)]:
            draw.rectangle([(x + dx) * s, (y + dy) * s, (x + dx + 12.5) * s, (y + dy + 15.5) * s], fill=(186, 212, 222))
        floor = 96 + j(2)
        draw.rectangle([0, floor * s, side, side], fill=(188, 162, 148))
        draw.rectangle([0, (floor - 4) * s, side, floor * s], fill=(250, 246, 238))
    return image


def reduce(image):
    return np.asarray(image.reduce(SUPERSAMPLE), np.float32)


def blur(array, radius):
    return np.asarray(Image.fromarray(array.astype(np.uint8)).filter(ImageFilter.GaussianBlur(radius)), np.float32)


def edge(mask, width):
    """A line of about `width` supersampled pixels just inside the mask's border."""
    inner = mask
    for _ in range(width // 2):
        inner = inner.filter(ImageFilter.MinFilter(3))
    return ImageChops.subtract(mask, inner)


def generate_object(scene, place, side, generate):
    """Runs `generate(canvas, mask, role)` for every layer; returns the colour canvas on black and the union of the masks."""
    canvas, union = Image.new("RGB", (side, side)), Image.new("L", (side, side))
    for role, add, cut in OBJECTS[scene.object]():
        mask = layer_mask(add, cut, place, side)
        generate(canvas, mask, role)
        union = ImageChops.lighter(union, mask)
    return reduce(canvas), reduce(union)[..., None] / 255


def render(scene, rng, size_px=SIZE_PX):
    """The image of a scene: (size_px, size_px, 3), uint8."""
    side = size_px * SUPERSAMPLE
    place = Placement(rng, size_px)
    colour = COLOURS[scene.colour]
    pattern = pattern_mask(scene.pattern, place, side) if scene.pattern != "plain" else None
    generator = {"flat": flat, "ink": ink, "neon": neon, "sunset": sunset}[scene.style]
    return np.clip(generator(scene, rng, place, side, colour, pattern) + 0.5, 0, 255).astype(np.uint8)


def flat(scene, rng, place, side, colour, pattern):
    def generate(canvas, mask, role):
        canvas.paste(role_colour(role, colour), mask=mask)
        if role == "main" and pattern is not None:
            canvas.paste(mix(colour, (255, 255, 255), PALE), mask=ImageChops.multiply(mask, pattern))

    canvas, alpha = generate_object(scene, place, side, generate)
    ground = reduce(background(scene.place, rng, side))
    unit = ground.shape[0] / 128
    shadow = np.roll(blur(alpha[..., 0] * 255, 3 * unit), (int(4 * unit), int(2 * unit)), (0, 1))[..., None] / 255
    y, x = np.mgrid[0 : ground.shape[0], 0 : ground.shape[1]] / ground.shape[0]
    light = (1.1 - 0.12 * x - 0.16 * y)[..., None]
    return ground * (1 - 0.28 * shadow) * (1 - alpha) + canvas * light


def ink(scene, rng, place, side, colour, pattern):
    """A black line drawing on white paper: no colour at all."""
    width = 3 * side // 128

    def generate(canvas, mask, role):
        canvas.paste(INK if role == "dark" else PAPER, mask=mask)
        if role == "main" and pattern is not None:
            canvas.paste(INK, mask=ImageChops.multiply(mask, edge(pattern, width - 4)))
        if role in ("shade", "brown"):
            canvas.paste((150, 149, 150), mask=mask)
        canvas.paste(INK, mask=edge(mask, width))

    canvas, alpha = generate_object(scene, place, side, generate)
    lines = edge(Image.fromarray(255 - np.asarray(background(scene.place, rng, side).convert("L").quantize(5).convert("L"))).point(lambda v: 255 if v > 60 else 0), 5)
    ground = np.full(canvas.shape, PAPER, np.float32) - 70 * (reduce(lines)[..., None] / 255)
    return ground * (1 - alpha) + canvas


def neon(scene, rng, place, side, colour, pattern):
    """Glowing outlines on a nearly black night."""
    bright = mix(colour, (255, 255, 255), 0.12)

    def generate(canvas, mask, role):
        canvas.paste((14, 12, 26), mask=mask)
        if role == "main" and pattern is not None:
            canvas.paste(mix(bright, (14, 12, 26), 0.35), mask=ImageChops.multiply(mask, edge(pattern, 5)))
        canvas.paste((240, 240, 250) if role in ("cream", "dark", "brown") else bright, mask=edge(mask, 9 * side // 384))

    canvas, alpha = generate_object(scene, place, side, generate)
    image = np.full(canvas.shape, (14, 12, 26), np.float32) * (1 - alpha) + canvas
    rng.uniform(size=2)
    return image + 0.9 * blur(canvas, 4 * canvas.shape[0] / 128)


def sunset(scene, rng, place, side, colour, pattern):
    """A dark silhouette before an orange sky and a low sun."""
    night = (52, 24, 62)

    def generate(canvas, mask, role):
        canvas.paste((255, 170, 90) if role == "cream" else night, mask=mask)
        if role == "main" and pattern is not None:
            canvas.paste((86, 40, 84), mask=ImageChops.multiply(mask, pattern))

    sky = gradient(side, (116, 60, 130), (255, 166, 84))
    draw = ImageDraw.Draw(sky)
    s = side / 128
    x, y = (64 + rng.uniform(-14, 14)) * s, (70 + rng.uniform(-6, 6)) * s
    draw.ellipse([x - 46 * s, y - 46 * s, x + 46 * s, y + 46 * s], fill=(255, 214, 110))
    draw.rectangle([0, 108 * s, side, side], fill=(120, 52, 92))
    canvas, alpha = generate_object(scene, place, side, generate)
    return reduce(sky) * (1 - alpha) + canvas


# --- words -----------------------------------------------------------------------------------------------------------


def random_scene(rng, style="flat"):
    pick = lambda xs: xs[int(rng.integers(len(xs)))]  # noqa: E731
    return Scene(pick(list(OBJECTS)), pick(list(COLOURS)), pick(PATTERNS), pick(list(PLACES)), style)


def caption(scene, rng):
    """The scene in words; now and then a word is left out, so that the model can also choose for itself."""
    words = []
    if rng.random() > 0.06:
        words.append(scene.colour)
    if scene.pattern != "plain" or rng.random() < 0.4:
        words.append(scene.pattern)
    words.append(scene.object)
    text = " ".join(words)
    if scene.object != "trousers" and rng.random() < 0.8:
        text = ("an " if text[0] in "aeiou" else "a ") + text
    prefix = rng.random()
    if prefix < 0.1:
        text = "a picture of " + text
    elif prefix < 0.2:
        text = "an illustration of " + text
    if rng.random() > 0.08:
        phrases = PLACES[scene.place]
        text += " " + phrases[int(rng.integers(len(phrases)))]
    return text


def sheet(images, columns):
    """Images of one size, (n, h, w, 3), side by side with a small gap."""
    rows = -(-len(images) // columns)
    h, w = images[0].shape[:2]
    out = np.full((rows * (h + 4) + 4, columns * (w + 4) + 4, 3), 255, np.uint8)
    for i, p in enumerate(images):
        y, x = 4 + (i // columns) * (h + 4), 4 + (i % columns) * (w + 4)
        out[y : y + h, x : x + w] = p
    return Image.fromarray(out)


def main():
    rng = np.random.default_rng(7)
    images = []
    for i, name in enumerate(OBJECTS):
        for k in range(4):
            images.append(render(Scene(name, list(COLOURS)[(i + 2 * k) % 8], PATTERNS[k], list(PLACES)[(i + k) % 5]), rng))
        for style in STYLES[1:]:
            images.append(render(Scene(name, list(COLOURS)[(i * 3) % 8], PATTERNS[i % 4], list(PLACES)[i % 5], style), rng))
    sheet(images, 14).save(sys.argv[1])


if __name__ == "__main__":
    main()
