"""Measures an image of the world without a neural network: the object's colour, the object itself, the style.

    python measure.py MODEL_DIR        writes MODEL_DIR/measure.json from 1,200 rendered images and checks it on 1,200 others

The specification, written to be implemented again elsewhere; every constant is in measure.json.

1. chroma of a pixel = max(r, g, b) - min(r, g, b), 0..255. The mask is chroma > `chroma_threshold`.
2. The object is the largest 4-connected component of the mask. No component of at least `min_area_px`: no object.
3. Colour: every pixel of that component votes for the palette hue nearest to its own on the circle (hue in degrees as
   in HSV), with its chroma as weight; the colour with most votes wins.
4. Silhouette: the component with its holes filled (pixels that a 4-connected flood from the image's border through
   the pixels outside of the component does not reach), cropped to its bounding box, sampled at the centres of a 32x32
   grid: sample (i, j) reads row y0 + floor((i + 0.5) * height / 32) and column x0 + floor((j + 0.5) * width / 32).
5. Object: the template with the largest score = IoU - `aspect_weight` * |ln(width / height) - ln(template aspect)|.
   A template is 32 rows of 32 bits, each row a hexadecimal number whose highest bit is the leftmost column.
6. Style: means over the whole image of chroma and of luma = 0.299 r + 0.587 g + 0.114 b, and the mean luma of the
   `border_px` outermost pixels; a style holds when every bound given for it in `styles` does.
"""

import json
import sys
from pathlib import Path

import numpy as np
from world import COLOURS, OBJECTS, PATTERNS, PLACES, STYLES, Scene, random_scene, render

GRID = 32
SPEC = {"chroma_threshold": 50, "min_area_px": 300, "aspect_weight": 0.25, "border_px": 8}


def hues(rgb):
    """HSV hue in degrees of (n, 3) colours, float."""
    r, g, b = rgb.T.astype(float)
    top = rgb.max(1)
    c = np.maximum(1, top - rgb.min(1).astype(float))
    h = np.where(top == r, (g - b) / c % 6, np.where(top == g, (b - r) / c + 2, (r - g) / c + 4))
    return h * 60


def flood(free, seeds):
    """The pixels of `free` (h, w) that are 4-connected to a seed."""
    reached = free & seeds
    while True:
        grown = reached.copy()
        grown[1:] |= reached[:-1]
        grown[:-1] |= reached[1:]
        grown[:, 1:] |= reached[:, :-1]
        grown[:, :-1] |= reached[:, 1:]
        grown &= free
        if (grown == reached).all():
            return reached
        reached = grown


def largest_component(mask):
    best, left = np.zeros_like(mask), mask.copy()
    while left.sum() > best.sum():
        seed = np.zeros_like(mask)
        seed.flat[np.flatnonzero(left)[0]] = True
        component = flood(left, seed)
        left &= ~component
        if component.sum() > best.sum():
            best = component
    return best


def silhouette(component):
    border = np.ones_like(component)
    border[1:-1, 1:-1] = False
    filled = ~flood(~component, border)
    rows, columns = np.flatnonzero(filled.any(1)), np.flatnonzero(filled.any(0))
    y0, x0, height, width = rows[0], columns[0], rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
    grid = np.arange(GRID) + 0.5
    ys, xs = y0 + (grid * height / GRID).astype(int), x0 + (grid * width / GRID).astype(int)
    return filled[np.ix_(ys, xs)], width / height


def style_numbers(image):
    p = image.astype(float)
    luma = p @ [0.299, 0.587, 0.114]
    border = np.ones(luma.shape, bool)
    b = SPEC["border_px"]
    border[b:-b, b:-b] = False
    return {"mean_chroma": (p.max(2) - p.min(2)).mean(), "mean_luma": luma.mean(), "border_luma": luma[border].mean()}


def holds(numbers, bounds):
    return all(numbers[k] <= v["max"] if "max" in v else numbers[k] >= v["min"] for k, v in bounds.items())


def measure(image, spec):
    """Colour and object of an image (h, w, 3) uint8, None where there is no object."""
    chroma = image.max(2).astype(int) - image.min(2)
    component = largest_component(chroma > spec["chroma_threshold"])
    if component.sum() < spec["min_area_px"]:
        return {"colour": None, "object": None, "score": 0.0}
    names = list(spec["palette"])
    palette = hues(np.array([spec["palette"][n] for n in names]))
    distance = np.abs(hues(image[component])[:, None] - palette)
    nearest = np.minimum(distance, 360 - distance).argmin(1)
    votes = np.bincount(nearest, chroma[component], len(names))
    shape, aspect = silhouette(component)
    scores = {}
    for name, template in spec["templates"].items():
        bits = unpack(template["rows"])
        iou = (bits & shape).sum() / (bits | shape).sum()
        scores[name] = iou - spec["aspect_weight"] * abs(np.log(aspect / template["aspect"]))
    best = max(scores, key=scores.get)
    return {"colour": names[votes.argmax()], "object": best, "score": float(scores[best])}


def pack(bits):
    return ["".join("01"[int(b)] for b in row) for row in bits]


def unpack(rows):
    return np.array([[c == "1" for c in bin(int(r, 16))[2:].zfill(GRID)] for r in rows])


def make_spec(rng):
    templates = {}
    for name in OBJECTS:
        shapes, aspects = [], []
        for i in range(100):
            scene = Scene(name, list(COLOURS)[i % 8], PATTERNS[i % 4], list(PLACES)[i % 5])
            image = render(scene, rng)
            chroma = image.max(2).astype(int) - image.min(2)
            shape, aspect = silhouette(largest_component(chroma > SPEC["chroma_threshold"]))
            shapes.append(shape)
            aspects.append(aspect)
        rows = [f"{int(r, 2):08x}" for r in pack(np.mean(shapes, 0) > 0.5)]
        templates[name] = {"aspect": round(float(np.exp(np.mean(np.log(aspects)))), 3), "rows": rows}
    styles = {
        "ink": {"mean_chroma": {"max": 14}, "mean_luma": {"min": 190}},
        "neon": {"border_luma": {"max": 45}, "mean_luma": {"max": 75}},
        "sunset": {"mean_luma": {"max": 140}, "mean_chroma": {"min": 70}},
    }
    return SPEC | {"palette": COLOURS, "styles": styles, "templates": templates}


def load_spec(model):
    return json.loads((Path(model) / "measure.json").read_text())


def main():
    path = Path(sys.argv[1]) / "measure.json"
    spec = make_spec(np.random.default_rng(1))
    text = json.dumps(spec, indent=1)
    path.write_text(text + "\n")
    rng = np.random.default_rng(2)
    right = np.zeros(2)
    for _ in range(1200):
        scene = random_scene(rng)
        found = measure(render(scene, rng), spec)
        right += [found["colour"] == scene.colour, found["object"] == scene.object]
    print("on rendered images: colour, object", right / 1200)
    for style in STYLES:
        numbers = [style_numbers(render(random_scene(rng, style), rng)) for _ in range(80)]
        print(style, {k: [round(f([n[k] for n in numbers])) for f in (min, np.mean, max)] for k in numbers[0]}, {s: np.mean([holds(n, b) for n in numbers]) for s, b in spec["styles"].items()})


if __name__ == "__main__":
    main()
