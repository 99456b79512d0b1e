"""Which bits of the invisible mark survive what happens to images: ours beside both methods of PyPI's invisible-watermark.

    python bench/invisible_mark.py [--profile dev] [--count 200] [--binary target/debug/atelier]      needs tests/venv.sh's environment

A third of the images each: of the bundled model, like photographs (shades of 1/f noise, edges, grain), and objects on flat ground.
Every image is marked by each side, changed in each way, and read by invisible-watermark; a row is the mean of wrong bits among 48,
and the part of images that are read (6 wrong at most). `ours_cut` reads parts of images with our own reader, which looks for the blocks.
`bare` is how often our reader finds a mark in images that have none. Results: results/invisible_mark-cpu.json. Nothing is promised by them.
"""

import argparse
import datetime
import io
import json
import math
import random
import subprocess
import sys
import tempfile
import types
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from report import commit, cpu

# Its third method, which is not used, asks for PyTorch.
sys.modules["torch"] = types.ModuleType("torch")
from imwatermark import WatermarkDecoder, WatermarkEncoder  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
MESSAGE = [int(bit) for bit in "101100111110110010010000011110111011000110011110"]
READABLE = 6
SIDES = [256, 384, 512]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="bench", help="cargo profile that ours is built in")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--binary", default=ROOT / "target" / "debug" / "atelier", help="what generates images of the bundled model")
    parser.add_argument("--ours", help="the bench's own program, where it is built already")
    options = parser.parse_args()
    ours = options.ours or built(options.profile)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        plain, marked, cut = (Path(scratch) / name for name in ("plain", "marked", "cut"))
        for directory in (plain, marked, cut):
            directory.mkdir()
        for name, image in images(options.count, Path(options.binary).resolve()).items():
            Image.fromarray(image).save(plain / f"{name}.png")
        changes = {row["file"]: row for row in asked(ours, "mark", plain, marked)}
        files = sorted(plain.glob("*.png"))
        for kind in ("model", "photo", "ground"):
            of_kind = [file for file in files if file.name.startswith(kind)]
            sides = {
                "ours": [pixels(marked / file.name) for file in of_kind],
                "peer dwtDct": [encoded(pixels(file), "dwtDct") for file in of_kind],
                "peer dwtDctSvd": [encoded(pixels(file), "dwtDctSvd") for file in of_kind],
            }
            for side, results in sides.items():
                ratios = [psnr_db(pixels(file), result) for file, result in zip(of_kind, results, strict=True)]
                rows.append({"images": kind, "count": len(of_kind), "side": side, "psnr_db": round(sum(ratios) / len(ratios), 1)})
                method = side.split()[-1] if " " in side else "dwtDctSvd"
                for name, change in CHANGES.items():
                    rows[-1][name] = told([wrong(change(result), method) for result in results])
            rows[-len(sides)]["furthest"] = max(changes[file.name]["furthest"] for file in of_kind)
            for file in of_kind:
                image = pixels(marked / file.name)
                height, width, _ = image.shape
                Image.fromarray(image[13 : height * 9 // 10, 7 : width * 9 // 10]).save(cut / file.name)
        bare = sum(row["found"] is not None for row in asked(ours, "read", plain))
        parts = [row["found"] for row in asked(ours, "read", cut)]
        rows.append({"images": "all", "count": len(files), "side": "ours_cut", "read": sum(found is not None for found in parts)})
        rows.append({"images": "all", "count": len(files), "side": "bare", "read": bare})
        rows += [json.loads(line) for line in subprocess.run([ours], capture_output=True, text=True, check=True).stdout.splitlines()]
    date = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%MZ")
    about = {"commit": commit(), "date": date, "device": cpu(1), "profile": options.profile, "rows": rows}
    for row in rows:
        print(json.dumps(row))
    (ROOT / "bench" / "results" / "invisible_mark-cpu.json").write_text(json.dumps(about, indent=1) + "\n")


def built(profile):
    build = ["cargo", "bench", "--bench", "invisible_mark", "--no-run", "--profile", profile, "--message-format", "json"]
    lines = subprocess.run(build, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
    return [m["executable"] for m in map(json.loads, lines) if m.get("target", {}).get("name") == "invisible_mark"][-1]


def asked(ours, *arguments):
    done = subprocess.run([ours, *map(str, arguments)], capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def pixels(path):
    return np.array(Image.open(path).convert("RGB"))


def images(count, binary):
    """(H, W, 3) by name."""
    third = count // 3
    numbers = range(count - 2 * third)
    return of_model(third, binary) | {f"photo-{n:03}": photo(n) for n in range(third)} | {f"ground-{n:03}": on_ground(n) for n in numbers}


def of_model(count, path):
    """What the bundled model generates, without the mark."""
    sys.path.insert(1, str(ROOT / "tests" / "conformance"))
    import binary

    words = ["a red mug on a table", "a house by the sea", "a blue cup", "a tree in snow", "a lighthouse at dusk"]
    jobs = {
        f"model-{n:03}": {"prompt": words[n % len(words)], "width": 256, "height": 256, "steps": 4, "num_images": 4, "seed": n * 4}
        for n in range(math.ceil(count / 4))
    }
    done = binary.run(str(path), ROOT / "models", "tiny-sd", jobs, [], {})
    flat = {f"{name}-{n}": image for name, results in done.items() for n, image in enumerate(results)}
    return {name: np.frombuffer(rgb, np.uint8).reshape(h, w, 3) for name, (w, h, rgb) in list(flat.items())[:count]}


def photo(seed):
    """Shades as photographs have them (amplitudes fall with the frequency), with edges of objects and grain."""
    draw, side = np.random.default_rng(seed), SIDES[seed % len(SIDES)]
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(side), np.fft.fftfreq(side)))
    frequency[0, 0] = 1
    layers = [np.fft.ifft2(np.fft.fft2(draw.standard_normal((side, side))) / frequency**1.1).real for _ in range(3)]
    light, warm, green = (layer / layer.std() for layer in layers)
    image = np.stack([light * 42 + warm * 18, light * 42 + green * 8, light * 42 - warm * 18], 2) + draw.integers(70, 170, 3)
    y, x = np.mgrid[:side, :side]
    for _ in range(6):
        centre, radius, colour = draw.integers(0, side, 2), draw.integers(side // 16, side // 4), draw.integers(-60, 60, 3)
        image[np.hypot(y - centre[0], x - centre[1]) < radius] += colour
    return np.clip(image + draw.standard_normal(image.shape) * 2, 0, 255).astype(np.uint8)


def on_ground(seed):
    """As a shop shows a product: something in the middle, flat ground around it, often white or black."""
    some = random.Random(seed)
    image, side = photo(seed), SIDES[seed % len(SIDES)]
    colour = some.choice([(255, 255, 255), (0, 0, 0), (128, 128, 128), tuple(some.randrange(256) for _ in range(3))])
    y, x = np.mgrid[:side, :side]
    image[np.hypot(y - side / 2, x - side / 2) > side * 0.35] = colour
    return image


def jpeg(quality, subsampling):
    return saved("JPEG", quality=quality, subsampling=subsampling)


def saved(form, **settings):
    def change(image):
        file = io.BytesIO()
        Image.fromarray(image).save(file, form, **settings)
        return np.array(Image.open(file).convert("RGB"))

    return change


def halved(image):
    height, width, _ = image.shape
    small = Image.fromarray(image).resize((width // 2, height // 2), Image.Resampling.LANCZOS)
    return np.array(small.resize((width, height), Image.Resampling.LANCZOS))


CHANGES = {
    "png": lambda image: image,
    "jpeg_95": jpeg(95, 0),
    "jpeg_95_420": jpeg(95, 2),
    "jpeg_80": jpeg(80, 0),
    "jpeg_80_420": jpeg(80, 2),
    "webp_80": saved("WEBP", quality=80),
    "half_size_and_back": halved,
    # The blocks' order is lost to a reader that expects the first one in the corner.
    "cut_left": lambda image: image[:, 8:],
}


def encoded(image, method):
    encoder = WatermarkEncoder()
    encoder.set_watermark("bits", MESSAGE)
    return encoder.encode(image[:, :, ::-1].copy(), method)[:, :, ::-1]


def wrong(image, method):
    """Bits among 48 that invisible-watermark reads wrong; all of them where it takes no such image."""
    if image.shape[0] * image.shape[1] < 256 * 256:
        return None
    found = WatermarkDecoder("bits", len(MESSAGE)).decode(cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2BGR), method)
    return int((np.array(found, dtype=int) != MESSAGE).sum())


def told(wrongs):
    taken = [wrong for wrong in wrongs if wrong is not None]
    if not taken:
        return "too small"
    return {"wrong_bits": round(sum(taken) / len(taken), 2), "read": f"{sum(wrong <= READABLE for wrong in taken)} of {len(taken)}"}


def psnr_db(before, after):
    square = ((before.astype(float) - after) ** 2).mean()
    return 10 * math.log10(255**2 / square) if square else 99.0


if __name__ == "__main__":
    main()
