"""Renders the training pictures and their captions to disk, seeded, resumable by shard.

    python data.py DIR               14,000 flat pictures and 1,000 of each style
"""

import json
import sys
from pathlib import Path

import numpy as np
from world import SIZE_PX, STYLES, caption, random_scene, render

SHARD = 1000
SHARDS = [("flat", 14)] + [(style, 1) for style in STYLES[1:]]


def render_shard(style, index, folder):
    path = folder / f"{style}-{index:02}.npy"
    if path.exists():
        return
    rng = np.random.default_rng([2026, STYLES.index(style), index])
    pictures = np.empty((SHARD, SIZE_PX, SIZE_PX, 3), np.uint8)
    captions = []
    for i in range(SHARD):
        scene = random_scene(rng, style)
        captions.append([caption(scene, rng) for _ in range(4)])
        pictures[i] = render(scene, rng)
    path.with_suffix(".json").write_text(json.dumps(captions))
    partial = path.with_suffix(".partial")
    with partial.open("wb") as out:
        np.save(out, pictures)
    partial.rename(path)


def load(folder, style):
    """The pictures of a style that are on disk, (n, 128, 128, 3) uint8, and four captions for each."""
    paths = sorted(Path(folder).glob(f"{style}-*.npy"))
    pictures = np.concatenate([np.load(p, mmap_mode="r") for p in paths])
    return pictures, [c for p in paths for c in json.loads(p.with_suffix(".json").read_text())]


def main():
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for style, index in [("flat", 0), ("flat", 1)] + [(s, 0) for s in STYLES[1:]]:
        render_shard(style, index, folder)
    for style, count in SHARDS:
        for index in range(count):
            render_shard(style, index, folder)


if __name__ == "__main__":
    main()
