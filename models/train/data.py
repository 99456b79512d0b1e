"""Renders the training images and their captions to disk, seeded, resumable by shard.

    python data.py DIR               14,000 flat images and 1,000 of each style
"""

import json
import sys
from pathlib import Path

import numpy as np
from world import SIZE_PX, STYLES, caption, random_scene, render

SHARD = 1000
SHARDS = [("flat", 14)] + [(style, 1) for style in STYLES[1:]]


def render_shard(style, index, directory):
    path = directory / f"{style}-{index:02}.npy"
    if path.exists():
        return
    rng = np.random.default_rng([2026, STYLES.index(style), index])
    images = np.empty((SHARD, SIZE_PX, SIZE_PX, 3), np.uint8)
    captions = []
    for i in range(SHARD):
        scene = random_scene(rng, style)
        captions.append([caption(scene, rng) for _ in range(4)])
        images[i] = render(scene, rng)
    path.with_suffix(".json").write_text(json.dumps(captions))
    partial = path.with_suffix(".partial")
    with partial.open("wb") as out:
        np.save(out, images)
    partial.rename(path)


def load(directory, style):
    """The images of a style that are on disk, (n, 128, 128, 3) uint8, and four captions for each."""
    paths = sorted(Path(directory).glob(f"{style}-*.npy"))
    images = np.concatenate([np.load(p, mmap_mode="r") for p in paths])
    return images, [c for p in paths for c in json.loads(p.with_suffix(".json").read_text())]


def main():
    directory = Path(sys.argv[1])
    directory.mkdir(parents=True, exist_ok=True)
    for style, index in [("flat", 0), ("flat", 1)] + [(s, 0) for s in STYLES[1:]]:
        render_shard(style, index, directory)
    for style, count in SHARDS:
        for index in range(count):
            render_shard(style, index, directory)


if __name__ == "__main__":
    main()
