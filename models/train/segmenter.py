"""Trains tiny-segmenter: a Segformer that finds clothes, hair, face and limbs of the people of tiny-edit.

    python segmenter.py data DIR [SHARDS]        renders people and what each pixel of them is, seeded, resumable by shard
    python segmenter.py train DIR OUT.pt STEPS   one thread, seeded
    python segmenter.py export OUT.pt MODEL_DIR
    python segmenter.py measure MODEL_DIR        of people that no training saw, into MODEL_DIR/measure.json
    python segmenter.py people DIR               the first of these, for the engine's test: people.png and labels.png, side by side

From nothing: no outside images or weights, so that the licence is this repository's.
"""

import json
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import SegformerConfig, SegformerForSemanticSegmentation
from transformers.models.segformer.image_processing_pil_segformer import SegformerImageProcessorPil

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "edit"))
import people  # noqa: E402
from common import save, set_rate  # noqa: E402
from world import reduce  # noqa: E402

# Those of ATR that this world has, as published networks spell them.
LABELS = "Background Hair Face Upper-clothes Dress Pants Left-leg Right-leg Left-arm Right-arm".split()
# By the parts of people.py. Left is the person's: to the right in the image.
PARTS = {"hair": "Hair", "face": "Face", "t-shirt": "Upper-clothes", "dress": "Dress", "trousers": "Pants", "leg": "leg", "arm": "arm"}
SHARD = 500
BATCH = 16
PEAK_RATE = 3e-3
WARM_UP, REPORT_EVERY = 100, 50
WEIGHT_DECAY = 0.01
SHIFT_PX = 6
HELD_OUT, SHOWN = 200, 8
HELD_OUT_SEED = 3030


def labels(person, garment):
    """What each pixel of `person.wearing(garment)` is, (128, 96), uint8."""
    found = np.zeros((people.HEIGHT_PX, people.WIDTH_PX), np.uint8)
    # In the square that people.crop cuts the middle out of.
    middle = person.centre[0] - (people.HEIGHT_PX - people.WIDTH_PX) / 2
    is_left = np.arange(people.WIDTH_PX)[None, :] >= middle
    for part, mask in person.drawn(garment)[2]:
        name = PARTS[part]
        if name in ("leg", "arm"):
            value = np.where(is_left, LABELS.index(f"Left-{name}"), LABELS.index(f"Right-{name}"))
        else:
            value = LABELS.index(name)
        found = np.where(reduce(people.crop(mask)) > 127, value, found).astype(np.uint8)
    return found


def example(rng):
    person, garment = people.Person(rng), people.random_garment(rng)
    return np.concatenate([person.wearing(garment)[0], labels(person, garment)[..., None]], axis=2)


def data(directory, shards):
    directory.mkdir(parents=True, exist_ok=True)
    for index in range(shards):
        path = directory / f"labelled-{index:02}.npy"
        if path.exists():
            continue
        rng = np.random.default_rng([2030, index])
        some = np.stack([example(rng) for _ in range(SHARD)])
        with path.with_suffix(".partial").open("wb") as out:
            np.save(out, some)
        path.with_suffix(".partial").rename(path)


def new_model():
    """Its first stage halves the image and no more: arms are six pixels wide."""
    sizes = {"hidden_sizes": [16, 20, 32, 48], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 1, 2, 3], "sr_ratios": [4, 4, 2, 1],
             "strides": [2, 2, 2, 2], "patch_sizes": [5, 3, 3, 3], "mlp_ratios": [2, 2, 2, 2], "decoder_hidden_size": 32}  # fmt: skip
    names = {"id2label": dict(enumerate(LABELS)), "label2id": {label: index for index, label in enumerate(LABELS)}}
    model = SegformerForSemanticSegmentation(SegformerConfig(**sizes, **names, drop_path_rate=0.0, classifier_dropout_prob=0.0))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return model


def new_processor():
    return SegformerImageProcessorPil(size={"height": people.HEIGHT_PX, "width": people.WIDTH_PX})


MEAN, DEVIATION = (torch.tensor(values).view(1, 3, 1, 1) for values in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))


def moved(images, rng):
    """(B, 4, H, W) shifted and turned over, with left for right; the pixels in other light and grain, some blurred as an autoencoder blurs."""
    height, width = images.shape[2:]
    padded = torch.nn.functional.pad(images.float(), (SHIFT_PX,) * 4, mode="replicate")
    left, top = rng.integers(0, 2 * SHIFT_PX + 1, (2, len(images)))
    images = torch.stack([image[:, y : y + height, x : x + width] for image, x, y in zip(padded, left, top, strict=True)])
    pixels, found = images[:, :3] / 255, images[:, 3].long()
    other = torch.tensor([LABELS.index({"L": "Right", "R": "Left"}[label[0]] + label[label.index("-") :]) if label[-3:] in ("leg", "arm") else place
                          for place, label in enumerate(LABELS)])  # fmt: skip
    turned = torch.from_numpy(rng.random(len(images)) < 0.5)
    pixels = torch.where(turned[:, None, None, None], pixels.flip(3), pixels)
    found = torch.where(turned[:, None, None], other[found.flip(2)], found)
    soft = torch.nn.functional.avg_pool2d(pixels, 3, 1, 1, count_include_pad=False)
    share = torch.from_numpy(rng.uniform(0, 1, (len(images), 1, 1, 1)) * (rng.random((len(images), 1, 1, 1)) < 0.4)).float()
    pixels = pixels * (1 - share) + soft * share
    contrast, light, noise = (torch.from_numpy(rng.uniform(low, high, (len(images), 1, 1, 1))).float() for low, high in ((0.8, 1.15), (-0.1, 0.1), (0, 0.05)))
    pixels = pixels * contrast + light + noise * torch.from_numpy(rng.standard_normal(pixels.shape, np.float32))
    return (pixels - MEAN) / DEVIATION, found


def rate(step, steps):
    """The share of the peak learning rate: linear warm-up, then a cosine."""
    return min(1.0, (step + 1) / WARM_UP) * (0.02 + 0.49 * (1 + math.cos(math.pi * step / steps)))


def train(directory, out, steps):
    torch.manual_seed(2030)
    rng = np.random.default_rng(2030)
    images = torch.from_numpy(np.concatenate([np.load(path) for path in sorted(directory.glob("labelled-*.npy"))])).permute(0, 3, 1, 2)
    model, started, loss_sum = new_model().train(), time.monotonic(), 0.0
    print(f"{len(images)} images, {sum(p.numel() for p in model.parameters())} parameters", flush=True)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=WEIGHT_DECAY, betas=(0.9, 0.98))
    for step in range(steps):
        pixels, found = moved(images[rng.integers(0, len(images), BATCH)], rng)
        logits = torch.nn.functional.interpolate(model(pixels).logits, size=found.shape[1:], mode="bilinear", align_corners=False)
        loss = torch.nn.functional.cross_entropy(logits, found)
        set_rate(optimizer, PEAK_RATE * rate(step, steps))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss_sum += loss.item()
        if (step + 1) % REPORT_EVERY == 0:
            print(f"{time.monotonic() - started:.0f} s, step {step + 1}: loss {loss_sum / REPORT_EVERY:.4f}", flush=True)
            loss_sum = 0.0
            save(out, model.state_dict())
    save(out, model.state_dict())


def export(checkpoint, directory):
    model = new_model()
    model.load_state_dict(torch.load(checkpoint, weights_only=True))
    model.half().save_pretrained(directory)
    new_processor().save_pretrained(directory)
    (directory / "model.safetensors").chmod(0o644)


@torch.no_grad()
def measure(directory):
    """Intersection over union of each label over all people together."""
    model = SegformerForSemanticSegmentation.from_pretrained(directory, torch_dtype=torch.float32).eval()
    processor, rng = new_processor(), np.random.default_rng(HELD_OUT_SEED)
    both, either = np.zeros(len(LABELS)), np.zeros(len(LABELS))
    for _ in range(HELD_OUT):
        made = example(rng)
        image, right = made[..., :3], made[..., 3]
        outputs = model(processor(Image.fromarray(image), return_tensors="pt")["pixel_values"])
        [found] = processor.post_process_semantic_segmentation(outputs, [right.shape])
        for place in range(len(LABELS)):
            ours, theirs = found.numpy() == place, right == place
            both[place] += (ours & theirs).sum()
            either[place] += (ours | theirs).sum()
    table = {"people": HELD_OUT, "iou": {label: round(float(b / e), 4) for label, b, e in zip(LABELS, both, either, strict=True)}}
    table["mean_iou"] = round(float((both / either).mean()), 4)
    print(json.dumps(table))
    (directory / "measure.json").write_text(json.dumps(table, indent=1) + "\n")


def held_out(directory):
    rng = np.random.default_rng(HELD_OUT_SEED)
    made = np.concatenate([example(rng) for _ in range(SHOWN)], axis=1)
    Image.fromarray(made[..., :3]).save(directory / "people.png", optimize=True)
    Image.fromarray(made[..., 3]).save(directory / "labels.png", optimize=True)


def main():
    torch.set_num_threads(1)
    what, place = sys.argv[1], Path(sys.argv[2])
    if what == "data":
        data(place, int(sys.argv[3]) if len(sys.argv) > 3 else 4)
    elif what == "train":
        train(place, Path(sys.argv[3]), int(sys.argv[4]))
    elif what == "export":
        export(place, Path(sys.argv[3]))
    elif what == "people":
        held_out(place)
    else:
        measure(place)


if __name__ == "__main__":
    main()
