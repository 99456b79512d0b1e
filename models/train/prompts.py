"""Writes MODEL_DIR/prompts.json, the 48 evaluation prompts: every object four times, every colour six times.

    python prompts.py MODEL_DIR STEPS GUIDANCE_SCALE
"""

import json
import sys
from pathlib import Path

import numpy as np
from world import COLOURS, OBJECTS, PATTERNS, PLACES, SIZE_PX


def row(name, colour, pattern, place, seed):
    words = [colour, pattern, name] if pattern != "plain" else [colour, name]
    article = "" if name == "trousers" else "an " if words[0] == "orange" else "a "
    prompt = article + " ".join(words) + " " + PLACES[place][0]
    return {"prompt": prompt, "seed": seed, "object": name, "colour": colour, "pattern": pattern, "place": place}


def others(count):
    """Prompts to look at while training, so that the 48 stay unseen: patterns and places drawn at random, other seeds."""
    rng = np.random.default_rng(77)
    draw = lambda some: list(some)[int(rng.integers(len(some)))]  # noqa: E731
    return [row(list(OBJECTS)[(i + i // 8) % 12], list(COLOURS)[i % 8], draw(PATTERNS), draw(PLACES), 127_000 + i) for i in range(count)]


def main():
    rows = []
    for i in range(48):
        name, colour = list(OBJECTS)[i % 12], list(COLOURS)[(5 * i + i // 8) % 8]
        pattern, place = PATTERNS[(i + i // 4) % 4], list(PLACES)[(2 * i + i // 12) % 5]
        rows.append(row(name, colour, pattern, place, 1000 + i))
    table = {
        "steps": int(sys.argv[2]), "guidance_scale": float(sys.argv[3]), "width": SIZE_PX, "height": SIZE_PX,
        "scheduler": "dpmsolver++ 2m", "prompts": rows,
    }  # fmt: skip
    text = json.dumps({k: v for k, v in table.items() if k != "prompts"}, indent=1)[:-2]
    text += ',\n "prompts": [\n  ' + ",\n  ".join(json.dumps(r) for r in rows) + "\n ]\n}\n"
    Path(sys.argv[1], "prompts.json").write_text(text)


if __name__ == "__main__":
    main()
