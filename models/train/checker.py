"""Trains tiny-checker: says whether an image shows the object `star`, which stands for what may not be shown.

    python checker.py data DIR              renders scenes and people, seeded, resumable by shard
    python checker.py generated DIR COUNT   COUNT images of ../tiny-sd at many sizes, steps and guidance scales; resumable
    python checker.py train DIR OUT.pt MINUTES   goes on from OUT.pt where there is one
    python checker.py export OUT.pt MODEL_DIR
    python checker.py measure MODEL_DIR     what it misses and what it blocks wrongly, into MODEL_DIR/measure.json

Only the object counts: the small stars of a night sky are none, nor is any pattern of a garment.
"""

import io
import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "edit"))
import people  # noqa: E402
from common import Clock, restore, save, set_rate  # noqa: E402
from world import COLOURS, OBJECTS, PATTERNS, PLACES, STYLES, SUPERSAMPLE, Scene, background, gradient, reduce, render  # noqa: E402

STAR = "star"
LABELS = ["normal", STAR]
SIDE_PX = 64
# That of the manifests that name it.
THRESHOLD = 0.95
SHARD = 500
# Shards of rendered stars and of all other objects; people are three images an example.
SHARDS = [(STAR, 5), ("other", 9)]
PEOPLE_SHARDS = 2
# Seeds of generated images start here: prompts.json has those from 1000 on, which are for measuring alone.
FIRST_SEED = 500_000
AT_ONCE = 8
SIZES_PX = [(128, 128)] * 5 + [(64, 64)] * 3 + [(96, 128), (192, 128), (128, 192), (192, 192), (256, 256), (256, 256)]
# Half of them too few for an image: what comes out shows nothing, and is no star.
STEPS = [20] * 4 + [1, 2, 3, 4] * 2 + [6, 8, 12, 30]
GUIDANCE_SCALES = [4.0] * 3 + [1.0, 2.0, 7.5]
# With fewer steps a star is often none.
STAR_STEPS = 8

BATCH = 32
PEAK_RATE = 1.5e-3
WEIGHT_DECAY = 0.05
SHIFT_PX = 4
ODD = 700
# How often each image stands in what is trained on; 2 in the first run.
DISTORTED = 1
# Shares of a batch, by source.
SOURCES = {"rendered star": 0.22, "generated star": 0.14, "rendered other": 0.18, "generated other": 0.30, "people": 0.12, "odd": 0.04}


def pick(rng, choices):
    return choices[int(rng.integers(len(choices)))]


# --- images ------------------------------------------------------------------------------------------------------------


def scene(rng, is_star):
    others = [name for name in OBJECTS if name != STAR]
    style = "flat" if rng.random() < 0.6 else pick(rng, STYLES[1:])
    return Scene(STAR if is_star else pick(rng, others), pick(rng, list(COLOURS)), pick(rng, PATTERNS), pick(rng, list(PLACES)), style)


def odd(rng):
    """An image without any object: a place, one colour, noise, grey, a gradient or a blurred mixture of colours."""
    side = int(rng.integers(48, 160))
    kind = int(rng.integers(6))
    colour = lambda: rng.integers(0, 256, 3).astype(float)  # noqa: E731
    if kind == 0:
        return reduce(background(pick(rng, list(PLACES)), rng, 128 * SUPERSAMPLE)).astype(np.uint8)
    if kind == 1:
        return np.broadcast_to(colour(), (side, side, 3)).astype(np.uint8)
    if kind == 2:
        return np.clip(colour() + rng.normal(0, rng.uniform(5, 80), (side, side, 3)), 0, 255).astype(np.uint8)
    if kind == 3:
        return np.clip(rng.uniform(0, 255) + rng.normal(0, rng.uniform(1, 60), (side, side, 1)) * np.ones(3), 0, 255).astype(np.uint8)
    if kind == 4:
        return np.asarray(gradient(side, colour(), colour()).rotate(float(rng.uniform(0, 360)), resample=Image.BILINEAR))
    coarse = Image.fromarray(rng.integers(0, 256, (int(rng.integers(2, 9)), int(rng.integers(2, 9)), 3)).astype(np.uint8))
    return np.asarray(coarse.resize((side, side), pick(rng, [Image.BILINEAR, Image.BICUBIC, Image.NEAREST])))


def data(directory):
    directory.mkdir(parents=True, exist_ok=True)
    for name, count in SHARDS:
        for index in range(count):
            path = directory / f"{name}-{index:02}.npy"
            if path.exists():
                continue
            rng = np.random.default_rng([2029, name == STAR, index])
            images = np.stack([render(scene(rng, name == STAR), rng) for _ in range(SHARD)])
            with path.with_suffix(".partial").open("wb") as out:
                np.save(out, images)
            path.with_suffix(".partial").rename(path)
    for index in range(PEOPLE_SHARDS):
        people.render_shard(index, directory)


def random_prompt(rng, name):
    words = [pick(rng, list(COLOURS)), pick(rng, PATTERNS), name, pick(rng, pick(rng, list(PLACES.values())))]
    text = " ".join(word for word in words if word != "plain")
    return text if name == "trousers" else "a " + text


def generate_batch(pipeline, directory, index):
    """`AT_ONCE` images of one size, every third a star where there are steps enough for one."""
    if (directory / f"batch-{index:04}").exists():
        return
    rng = np.random.default_rng([2028, index])
    width_px, height_px = pick(rng, SIZES_PX)
    steps = pick(rng, STEPS)
    guidance_scale = pick(rng, GUIDANCE_SCALES)
    others = [name for name in OBJECTS if name != STAR]
    star = [steps >= STAR_STEPS and place % 3 == 0 for place in range(AT_ONCE)]
    names = [STAR if is_star else pick(rng, others) for is_star in star]
    seeds = [FIRST_SEED + index * AT_ONCE + place for place in range(AT_ONCE)]
    shape = (1, 4, height_px // 8, width_px // 8)
    noise = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    images = pipeline(
        [random_prompt(rng, name) for name in names], num_inference_steps=steps, guidance_scale=guidance_scale,
        width=width_px, height=height_px, latents=torch.cat(noise), output_type="np",
    ).images  # fmt: skip
    for seed, is_star, image in zip(seeds, star, images):
        name = f"{STAR if is_star else 'other'}-{seed}.png"
        Image.fromarray((image * 255).round().astype(np.uint8)).save(directory / name)
    (directory / f"batch-{index:04}").touch()


def generated(directory, count):
    from generate import load_pipeline

    directory = directory / "generated"
    directory.mkdir(parents=True, exist_ok=True)
    pipeline = load_pipeline(str(HERE.parent / "tiny-sd"))
    for index in range(-(-count // AT_ONCE)):
        generate_batch(pipeline, directory, index)


# --- training ----------------------------------------------------------------------------------------------------------


def distorted(image, rng):
    """What may become of an image on its way: a part of it, turned over, another exposure, noise, a size, JPEG."""
    image = Image.fromarray(np.ascontiguousarray(image))
    width, height = image.size
    if rng.random() < 0.4:
        zoom = rng.uniform(0.85, 1.25, 2) if rng.random() < 0.3 else np.repeat(rng.uniform(0.85, 1.25), 2)
        wide, high = width * zoom[0], height * zoom[1]
        left, top = (width - wide) / 2 + rng.uniform(-0.06, 0.06) * width, (height - high) / 2 + rng.uniform(-0.06, 0.06) * height
        edge = tuple(int(v) for v in np.asarray(image)[0, 0])
        image = image.transform((width, height), Image.AFFINE, (wide / width, 0, left, 0, high / height, top), Image.BILINEAR, fillcolor=edge)
    if rng.random() < 0.5:
        image = image.transpose(Image.FLIP_LEFT_RIGHT)
    if rng.random() < 0.3:
        values = np.asarray(image, np.float32)
        values = (values - 128) * rng.uniform(0.7, 1.2) + 128 + rng.uniform(-25, 25) + rng.normal(0, rng.uniform(0, 12), values.shape)
        image = Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))
    if rng.random() < 0.3:
        scale = rng.uniform(0.4, 2.5)
        image = image.resize((max(8, int(width * scale)), max(8, int(height * scale))), pick(rng, [Image.BILINEAR, Image.BICUBIC, Image.LANCZOS]))
    if rng.random() < 0.3:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=int(rng.integers(30, 96)))
        image = Image.open(file).convert("RGB")
    return np.asarray(image.resize((SIDE_PX, SIDE_PX), Image.BILINEAR))


def load(directory):
    """Images by source, as `SOURCES` names them."""
    shards = {name: np.concatenate([np.load(p) for p in sorted(directory.glob(f"{name}-*.npy"))]) for name in (STAR, "other", "people")}
    made = {name: [np.asarray(Image.open(p)) for p in sorted((directory / "generated").glob(f"{name}-*.png"))] for name in (STAR, "other")}
    return {
        "rendered star": shards[STAR], "generated star": made[STAR], "rendered other": shards["other"], "generated other": made["other"],
        "people": shards["people"].reshape(-1, *shards["people"].shape[2:]),
    }  # fmt: skip


def new_model():
    """transformers draws all weights with a deviation of 0.02, from which so narrow a model takes long to learn anything."""
    model = ViTForImageClassification(
        ViTConfig(
            hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=192, image_size=SIDE_PX, patch_size=16,
            id2label=dict(enumerate(LABELS)), label2id={label: index for index, label in enumerate(LABELS)},
        )
    )  # fmt: skip
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            fan_in = parameter[0].numel() if "embeddings" not in name or "projection" in name else 4
            torch.nn.init.normal_(parameter, std=fan_in**-0.5)
    return model


def new_processor():
    return ViTImageProcessorPil(size={"height": SIDE_PX, "width": SIDE_PX})


def pools(directory, rng):
    """Every image distorted in several ways, in the model's size, by source: (n, 3, 64, 64), uint8."""
    made = {}
    for name, some in (load(directory) | {"odd": [odd(rng) for _ in range(ODD)]}).items():
        images = np.stack([distorted(image, rng) for image in some for _ in range(DISTORTED)])
        made[name] = torch.from_numpy(images).permute(0, 3, 1, 2)
    return made


def moved(pixels, rng):
    """Turns over half of the images, moves all by some pixels, and changes light and grain; what is laid bare is the edge, drawn out."""
    padded = torch.nn.functional.pad(pixels, (SHIFT_PX,) * 4, mode="replicate")
    left, top = rng.integers(0, 2 * SHIFT_PX + 1, (2, len(pixels)))
    shifted = torch.stack([image[:, y : y + SIDE_PX, x : x + SIDE_PX] for image, x, y in zip(padded, left, top)])
    turned = torch.from_numpy(rng.random(len(pixels)) < 0.5)[:, None, None, None]
    pixels = torch.where(turned, shifted.flip(3), shifted)
    contrast, light, noise = (torch.from_numpy(rng.uniform(low, high, (len(pixels), 1, 1, 1))).float() for low, high in ((0.8, 1.15), (-0.15, 0.15), (0, 0.08)))
    return pixels * contrast + light + noise * torch.from_numpy(rng.standard_normal(pixels.shape, np.float32))


def train(directory, out, minutes):
    torch.manual_seed(2029)
    rng = np.random.default_rng(2029)
    images = pools(directory, rng)
    print({name: len(some) for name, some in images.items()}, flush=True)
    model = new_model().train()
    goes_on = out.exists()
    if goes_on:
        model.load_state_dict(restore(out))
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=WEIGHT_DECAY, betas=(0.9, 0.98))
    clock, step, loss_sum = Clock(60 * minutes), 0, 0.0
    names = list(SOURCES)
    while clock.tick():
        sources = rng.choice(len(names), BATCH, p=list(SOURCES.values()))
        chosen = torch.stack([pick(rng, images[names[source]]) for source in sources])
        labels = torch.tensor([int(STAR in names[source]) for source in sources])
        pixels = moved(chosen.float() / 127.5 - 1, rng)
        loss = torch.nn.functional.cross_entropy(model(pixels).logits, labels, label_smoothing=0.02)
        set_rate(optimizer, PEAK_RATE * (0.5 if goes_on else 1.0) * clock.rate(step))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step, loss_sum = step + 1, loss_sum + loss.item()
        if step % 200 == 0:
            print(f"{clock.elapsed_s():.0f} s, step {step}: loss {loss_sum / 200:.4f}", flush=True)
            loss_sum = 0.0
            save(out, model.state_dict())
    print(f"{step} steps of {BATCH}")
    save(out, model.state_dict())


def export(checkpoint, directory):
    model = new_model()
    model.load_state_dict(torch.load(checkpoint, weights_only=True))
    model.half().save_pretrained(directory)
    new_processor().save_pretrained(directory)
    (directory / "model.safetensors").chmod(0o644)


# --- measuring ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def scores(model, processor, images):
    """How much each image shows a star, 0..1."""
    found = []
    for image in images:
        pixels = processor(Image.fromarray(image), return_tensors="pt")["pixel_values"]
        found.append(model(pixels).logits.softmax(-1)[0, 1].item())
    return np.array(found)


def held_out():
    """Images that no training saw, by what they are: (name, whether they show a star, images, what each is)."""
    from generate import generate, load_pipeline
    from safetensors.torch import load_file

    rng = np.random.default_rng(3029)
    for is_star in (True, False):
        scenes = [scene(rng, is_star) for _ in range(400)]
        yield f"rendered {STAR if is_star else 'others'}", is_star, [render(s, rng) for s in scenes], [str(s) for s in scenes]
    examples = [image for _ in range(100) for image in people.example(rng)[0]]
    yield "rendered people", False, examples, [("person", "garment", "result")[i % 3] for i in range(len(examples))]
    yield "without object", False, [odd(rng) for _ in range(200)], ["odd"] * 200
    tried_on = load_file(HERE.parent.parent / "tests/fixtures/tiny-edit/expected.safetensors")
    yield "tiny-edit", False, [image.numpy() for image in tried_on.values()], list(tried_on)
    table = json.loads((HERE.parent / "tiny-sd/prompts.json").read_text())
    rows = table["prompts"]
    pipeline = load_pipeline(str(HERE.parent / "tiny-sd"))
    made = generate(pipeline, [row["prompt"] for row in rows], [row["seed"] for row in rows], table["steps"], table["guidance_scale"])
    for is_star in (True, False):
        some = [place for place, row in enumerate(rows) if (row["object"] == STAR) == is_star]
        name = f"tiny-sd, prompts of {STAR if is_star else 'others'}"
        yield name, is_star, [made[place] for place in some], [rows[place]["prompt"] for place in some]


def measure(directory, threshold=THRESHOLD):
    model = ViTForImageClassification.from_pretrained(directory, torch_dtype=torch.float32).eval()
    table = {"threshold": threshold, "sets": {}}
    for name, is_star, images, names in held_out():
        found = scores(model, new_processor(), images)
        wrong = (found > threshold) != is_star
        row = {"images": len(images), "shows a star": is_star, "wrong": int(wrong.sum()), "lowest": round(float(found.min()), 4), "highest": round(float(found.max()), 4)}
        print(f"{name}: {row['wrong']} of {row['images']} wrong, scores {row['lowest']} to {row['highest']}")
        for what in [what for what, is_wrong in zip(names, wrong) if is_wrong][:10]:
            print(f"  {what}")
        table["sets"][name] = row
    (directory / "measure.json").write_text(json.dumps(table, indent=1) + "\n")


def main():
    torch.set_num_threads(1)
    what, place = sys.argv[1], Path(sys.argv[2])
    if what == "data":
        data(place)
    elif what == "generated":
        generated(place, int(sys.argv[3]))
    elif what == "train":
        train(place, Path(sys.argv[3]), float(sys.argv[4]))
    elif what == "export":
        export(place, Path(sys.argv[3]))
    else:
        measure(place)


if __name__ == "__main__":
    main()
