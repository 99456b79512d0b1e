"""The jobs: a covering array in which every two values of any two factors meet, and after that random ones.

A case is {"key", "family", "checkpoint", "job", "text", "negative"}. `text` and `negative` are lists of (text, weight), what the prompt is made of;
`job` is the body that the binary gets, without its id. Nothing here needs more than the standard library.
"""

import random

SAMPLERS = ["dpmsolver++", "dpmsolver++-sde", "dpmsolver++-singlestep", "deis", "unipc", "euler", "heun", "dpm2", "dpm2_a", "lms",
            "euler_a", "pndm", "ddim", "ddpm", "lcm", "tcd"]  # fmt: skip
SPACED = SAMPLERS[:10]
# The Karras, exponential and beta levels of SPACED, and spellings of other programs with the name of ours.
SPELLINGS = {"DPM++ 2M Karras": "dpmsolver++-karras", "Euler a": "euler_a", "UniPCMultistepScheduler": "unipc", "k_euler": "euler"}
LISTS = ["dpmsolver++", "dpmsolver++-sde", "dpmsolver++-singlestep", "euler", "heun", "ddpm", "lcm", "tcd"]

# By name: kind of UNet, syntax of its prompts, its scheduler. checkpoints.py makes the files.
PNDM = {"_class_name": "PNDMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
CHECKPOINTS = {
    "directory": ("sd1", "plain", PNDM | {"skip_prk_steps": True, "set_alpha_to_one": False, "clip_sample": False}),
    "shards": ("sd2", "weighted", PNDM | {"_class_name": "DPMSolverMultistepScheduler", "prediction_type": "v_prediction", "timestep_spacing": "trailing",
                                          "solver_order": 3}),
    "single": ("sd1", "lpw", PNDM | {"_class_name": "DDIMScheduler", "steps_offset": 0, "clip_sample": True}),
    "inpaint": ("inpaint", "plain", PNDM | {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "linspace", "beta_schedule": "linear"}),
    "lcm": ("lcm", "plain", PNDM | {"_class_name": "LCMScheduler", "original_inference_steps": 50, "clip_sample": False}),
    "zero": ("sd1", "weighted", PNDM | {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}),
    "cosine": ("sd2", "plain", PNDM | {"_class_name": "UniPCMultistepScheduler", "beta_schedule": "squaredcos_cap_v2", "use_karras_sigmas": True}),
}  # fmt: skip
EDITS = ("base", "lora", "fp8")

ADAPTERS = ["none", "peft", "header", "kohya", "convolutions", "processor", "linear_layer", "dora", "loha", "saved", "given_alpha", "word", "two"]
WORDS = "a the of in red blue green cat dog lighthouse dusk paper sea over under small bright old storm and with it's 7".split()

FACTORS = {
    "checkpoint": list(CHECKPOINTS),
    "scheduler": SAMPLERS + [f"{name}-{levels}" for name in SPACED for levels in ("karras", "exponential", "beta")] + list(SPELLINGS),
    "steps": [1, 2, 3, 5, 8, 13, 21],
    "guidance": [0, 1, 1.5, 4, 7.5, 15],
    "size": [(64, 64), (72, 64), (64, 104), (88, 72)],
    "start": ["text", "image", "larger image", "mask", "soft mask"],
    "strength": [0.3, 0.55, 0.8, 1.0],
    "adapter": ADAPTERS,
    "scale": [1.0, 0.6, -0.5, 1.3],
    "prompt": ["empty", "one", "several", "marked", "long"],
    "negative": ["empty", "short", "marked", "long"],
    "images": [1, 2],
    "seed": [0, 42, 2**31 - 1, 2**32 + 7, 2**53 - 3],
    "extra": ["nothing", "eta", "rescale", "skip 0", "skip 1", "timesteps", "sigmas"],
}


def repaired(row):
    """Takes back what would be refused, or means nothing, with what else the row has."""
    kind = CHECKPOINTS[row["checkpoint"]][0]
    sampler = SPELLINGS.get(row["scheduler"], row["scheduler"])
    if kind == "inpaint" and "mask" not in row["start"]:
        row["start"] = "mask"
    if row["start"] == "text":
        row["strength"] = 1.0
    if sampler == "pndm":
        row["steps"] = max(row["steps"], 5)  # Runge and Kutta's first steps need four
    if int(row["steps"] * row["strength"]) < 1:
        row["strength"] = 1.0
    extra = row["extra"]
    # Of Heun's listed timesteps diffusers counts the calls twice where a job starts from an image, and has none left.
    heuns = sampler == "heun" and row["start"] != "text"
    wrong = {
        "eta": sampler not in ("ddim", "tcd"), "rescale": row["start"] != "text" or row["guidance"] <= 1 or kind == "lcm",
        "timesteps": sampler not in LISTS or heuns or row["checkpoint"] == "cosine", "sigmas": sampler != "euler" or row["start"] != "text" or row["checkpoint"] == "cosine",
    }  # fmt: skip
    if wrong.get(extra):
        row["extra"] = "nothing"
    return row


def pairs(row):
    names = list(FACTORS)
    return {(a, row[a], b, row[b]) for i, a in enumerate(names) for b in names[i + 1 :]}


def array(count, chance):
    """`count` rows. Each is the best of some random ones: that which has most pairs of values that none before it has."""
    met, rows = set(), []
    for _ in range(count):
        tried = [repaired({name: chance.choice(values) for name, values in FACTORS.items()}) for _ in range(25)]
        best = max(tried, key=lambda row: len(pairs(row) - met))
        met |= pairs(best)
        rows.append(best)
    return rows, len(met)


def pieces(kind, marked_as, chance):
    """(text, weight) pairs, and the prompt that is written for them."""
    some = lambda count: " ".join(chance.choice(WORDS) for _ in range(count))  # noqa: E731
    if kind == "empty":
        return []
    if kind == "one":
        return [("cat", 1.0)]
    if kind in ("several", "short"):
        return [(f"A {some(3)}, {some(4)} — größe 東京 🎨!", 1.0)]
    if kind == "long":
        return [(some(60), 1.0), (some(30), 1.3 if marked_as != "plain" else 1.0)]
    if marked_as == "plain":
        return [(f"({some(2)}:1.3) [{some(1)}] {some(2)}", 1.0)]
    return [(f"{some(2)} ", 1.0), (some(2), 1.35), (" ", 1.0), (some(1), 1.1), (f" {some(2)}", 1.0), (some(2), 0.6)]


def written(text, marked_as):
    if marked_as == "plain":
        return "".join(words for words, _ in text)
    return "".join(words if weight == 1.0 else f"({words}:{weight})" for words, weight in text)


def lists(row, job, chance):
    """What a job says beside the common fields."""
    extra, steps = row["extra"], row["steps"]
    if extra == "eta":
        job["eta"] = chance.choice([0.3, 1.0])
    elif extra == "rescale":
        job["guidance_rescale"] = 0.7
    elif extra.startswith("skip"):
        job["clip_skip"] = int(extra[-1])
    elif extra == "timesteps":
        job["timesteps"] = sorted(chance.sample(range(1, 999), steps), reverse=True)
    elif extra == "sigmas":
        job["sigmas"] = sorted((round(chance.uniform(0.05, 14), 3) for _ in range(steps)), reverse=True) + [0.0]


def case(index, row, chance):
    syntax = CHECKPOINTS[row["checkpoint"]][1]
    text, negative = pieces(row["prompt"], syntax, chance), pieces(row["negative"], syntax, chance)
    width, height = row["size"]
    job = {
        "prompt": written(text, syntax), "negative_prompt": written(negative, syntax), "scheduler": row["scheduler"], "steps": row["steps"],
        "guidance_scale": row["guidance"], "width": width, "height": height, "seed": row["seed"], "num_images": row["images"],
    }  # fmt: skip
    lists(row, job, chance)
    if row["start"] != "text":
        other = "larger-" if row["start"] == "larger image" else f"{width}x{height}-"
        job |= {"init_image": {"url": f"s3://conformance/files/{other}image.png"}, "strength": row["strength"]}
    if "mask" in row["start"]:
        kind = "soft" if row["start"] == "soft mask" else "hard"
        job["mask_image"] = {"url": f"s3://conformance/files/{width}x{height}-{kind}.png"}
    if row["adapter"] == "word":
        job["embeddings"] = [{"url": "s3://conformance/files/word.safetensors", "token": "<mood>"}]
        text = [("<mood> ", 1.0), *text]
        job["prompt"] = written(text, syntax)
    elif row["adapter"] != "none":
        files = ["kohya", "peft"] if row["adapter"] == "two" else [row["adapter"]]
        job["lora"] = [{"url": f"s3://conformance/files/{file}.safetensors", "scale": row["scale"]} for file in files]
        if row["adapter"] == "given_alpha":
            job["lora"][0]["alpha"] = 3
    family = {"text": "text", "image": "img2img", "larger image": "img2img"}.get(row["start"], "inpaint")
    return {"key": f"{index:04}", "family": family, "checkpoint": row["checkpoint"], "job": job, "text": text, "negative": negative}


def edit(index, chance):
    """A try-on of the bundled model: any images, any prompt."""
    mode, guidance = chance.choice(EDITS), chance.choice([1, 1, 2.5, 4])
    garments = [chance.choice(["garment", "wide", "larger-garment"]) for _ in range(chance.choice([1, 1, 2, 3]))]
    job = {
        "task": "tryon", "person": f"s3://conformance/files/{chance.choice(['person', 'larger-person', 'square-person'])}.png",
        "garments": [f"s3://conformance/files/{name}.png" for name in garments], "mode": mode, "steps": chance.choice([1, 2, 4, 6] if mode == "base" else [2, 4, 5]),
        "guidance_scale": guidance, "seed": chance.choice(FACTORS["seed"]), "resolution": "480p",
        "prompt": chance.choice(["Dress the person in the garment.", "Put the red shirt on, keep the face.", "dress", "größe 東京 " * 4]),
    }  # fmt: skip
    if job["steps"] == 1:
        job["steps"] = 2  # the stretch to the last noise level divides by zero
    if guidance > 1:
        job["negative_prompt"] = chance.choice(["", " ", "blurry"])
    return {"key": f"{index:04}", "family": f"edit-{mode}", "checkpoint": "edit", "job": job}


def cases(count, seed):
    """`count` cases, every eighth a try-on, and how many pairs of values have met."""
    chance = random.Random(seed)
    edits = count // 8
    rows, met = array(count - edits, chance)
    made = [case(index, row, chance) for index, row in enumerate(rows)]
    return made + [edit(len(made) + n, chance) for n in range(edits)], met
