"""What diffusers makes of a case with the same files, on the CPU in single or double precision."""

import contextlib
import functools
import math
import sys
from types import SimpleNamespace

import diffusers
import lora_files
import numpy
import samplers
import torch
import weighted_prompts
from cases import CHECKPOINTS, SPELLINGS
from diffusers import (
    DiffusionPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
)
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image

PIPELINES = {"text": StableDiffusionPipeline, "img2img": StableDiffusionImg2ImgPipeline, "inpaint": StableDiffusionInpaintPipeline}
ROOM = weighted_prompts.ROOM


class Reference:
    """The checkpoints below `directory`, each opened anew for a case: adapters leave something behind."""

    def __init__(self, directory):
        self.directory = directory
        self.edits = {}

    def images(self, case, dtype=torch.float32):
        """(width, height, RGB bytes) of every image; none where diffusers itself comes to NaN or infinity."""
        self.dtype = dtype
        with torch.no_grad(), single_noise():
            made = self.edit(case) if case["checkpoint"] == "edit" else self.generate(case)
        if not numpy.isfinite(made).all():
            return None
        made = (made * 255).round().astype("uint8")
        return [(image.shape[1], image.shape[0], image.tobytes()) for image in made]

    def open(self, name):
        schedule = CHECKPOINTS[name][2]
        directory = self.directory / "models" / name
        more = {"torch_dtype": torch.float32, "safety_checker": None}
        if name == "single":
            base = StableDiffusionPipeline.from_single_file(self.directory / "models/single.safetensors", config=str(directory), local_files_only=True, **more)
        else:
            base = DiffusionPipeline.from_pretrained(directory, **more, **({"variant": "fp16"} if name == "lcm" else {}))
        base.scheduler = getattr(diffusers, schedule["_class_name"]).from_config(schedule)
        return base

    def generate(self, case):
        job = case["job"]
        base = self.open(case["checkpoint"])
        parts = {name: part for name, part in base.components.items() if name != "image_encoder"}
        pipeline = PIPELINES[case["family"]](**parts, requires_safety_checker=False)
        pipeline.set_progress_bar_config(disable=True)
        pipeline.scheduler = samplers.scheduler(SPELLINGS.get(job["scheduler"], job["scheduler"]), pipeline.scheduler.config)
        if case["family"] == "text" and hasattr(pipeline.scheduler, "set_begin_index"):
            from_the_first(pipeline.scheduler)
        inputs = self.directory / "inputs"
        if "embeddings" in job:
            pipeline.load_textual_inversion(inputs, weight_name="word.safetensors", token="<mood>")
        lora_files.load(pipeline, [(lora["url"].rsplit("/", 1)[1].removesuffix(".safetensors"), lora["scale"]) for lora in job.get("lora", [])], inputs)
        # The pipelines look for it where transformers 4 had it; loading a LoRA goes by its absence.
        pipeline.text_encoder.text_model = SimpleNamespace(final_layer_norm=pipeline.text_encoder.final_layer_norm)
        for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
            part.to(self.dtype)
        words = self.words(case, pipeline)
        made = []
        # One call for each seed: of several in one call the inpaint pipeline encodes the image with the first one's generator alone.
        for n in range(job["num_images"]):
            made.append(pipeline(**words, generator=torch.Generator().manual_seed(job["seed"] + n), output_type="np").images[0])
        return numpy.stack(made)

    def words(self, case, pipeline):
        """The call's arguments."""
        job, syntax = case["job"], CHECKPOINTS[case["checkpoint"]][1]
        words = {"num_inference_steps": job["steps"], "guidance_scale": float(job["guidance_scale"])}
        words |= {key: job[key] for key in ("eta", "guidance_rescale", "timesteps", "sigmas") if key in job}
        if job["scheduler"] == "tcd" and "eta" not in job:
            words["eta"] = 0.0
        if syntax == "plain":
            words |= {"prompt": job["prompt"], "negative_prompt": job["negative_prompt"], "clip_skip": job.get("clip_skip")}
        else:
            negative, positive = weighted(pipeline, case, syntax, job.get("clip_skip"))
            words |= {"prompt_embeds": positive} | ({"negative_prompt_embeds": negative} if job["guidance_scale"] > 1 else {})
        if "init_image" in job:
            words |= self.start(job)
        else:
            words |= {"width": job["width"], "height": job["height"]}
        return words

    def start(self, job):
        size = (job["width"], job["height"])
        opened = lambda field: Image.open(self.directory / "inputs" / job[field]["url"].rsplit("/", 1)[1]).convert("RGB")  # noqa: E731
        image = opened("init_image").resize(size, Image.Resampling.LANCZOS)
        words = {"image": image, "strength": job["strength"]}
        if "mask_image" in job:
            words |= {"mask_image": opened("mask_image"), "width": size[0], "height": size[1]}
        return words

    def edit(self, case):
        """A try-on; both sides are given the images in the size that is generated."""
        import tiny_edit  # it changes settings of diffusers, for its model

        if self.dtype not in self.edits:
            self.edits[self.dtype] = Edits(tiny_edit, self.dtype)
        return self.edits[self.dtype].generate(case["job"], self.directory / "inputs")


class Edits:
    """The bundled try-on model in its three modes."""

    def __init__(self, tiny_edit, dtype):
        self.tiny_edit = tiny_edit
        self.directory = tiny_edit.ROOT / "models/tiny-edit"
        self.pipeline = tiny_edit.load(self.directory)
        self.pipeline.set_progress_bar_config(disable=True)
        whole = {name: value.clone() for name, value in self.pipeline.transformer.state_dict().items()}
        lightning = tiny_edit.load_file(self.directory / "lightning-4steps.safetensors")
        self.weights = {"base": whole, "lora": tiny_edit.export.fused(whole, lightning), "fp8": tiny_edit.eight_bit(self.directory)}
        self.own = self.pipeline.scheduler
        for part in (self.pipeline.transformer, self.pipeline.vae, self.pipeline.text_encoder):
            part.to(dtype)

    def generate(self, job, inputs):
        self.pipeline.transformer.load_state_dict(self.weights[job["mode"]])
        distilled = diffusers.FlowMatchEulerDiscreteScheduler(**self.tiny_edit.LIGHTNING)
        self.pipeline.scheduler = self.own if job["mode"] == "base" else distilled
        person, *garments = [Image.open(inputs / url.rsplit("/", 1)[1]).convert("RGB") for url in (job["person"], *job["garments"])]
        width, height = size = tryon_size(person.size)
        images = [person.resize(size, Image.Resampling.LANCZOS), *(fitted(garment, size) for garment in garments)]
        guidance = job["guidance_scale"]
        # A negative prompt that says nothing is the blank of the model's own examples.
        negative = {"negative_prompt": job["negative_prompt"].strip() or " "} if guidance > 1 else {}
        made = self.pipeline(
            image=images, prompt=job["prompt"], true_cfg_scale=float(guidance), num_inference_steps=job["steps"], output_type="np", width=width,
            height=height, generator=torch.Generator().manual_seed(job["seed"]), **negative,
        ).images  # fmt: skip
        return numpy.asarray(made)


@contextlib.contextmanager
def single_noise():
    """The same noise in both precisions: torch draws other numbers for doubles."""
    users = [module for name, module in sys.modules.items() if name.startswith("diffusers.") and "randn_tensor" in vars(module)]
    drawn = randn_tensor

    def single(shape, generator=None, device=None, dtype=None, layout=None):
        return drawn(shape, generator, device, torch.float32, layout).to(dtype)

    for module in users:
        module.randn_tensor = single
    try:
        yield
    finally:
        for module in users:
            module.randn_tensor = drawn


def from_the_first(scheduler):
    """Without it diffusers takes the second of two equal timesteps for the first step, and runs out of noise levels at the end."""
    set_timesteps = scheduler.set_timesteps

    @functools.wraps(set_timesteps)
    def begun(*args, **more):
        set_timesteps(*args, **more)
        scheduler.set_begin_index(0)

    scheduler.set_timesteps = begun


SHORT_SIDE = 96


def tryon_size(person):
    """What `preprocess` makes of a person's size: the short side is the model's, both are multiples of 16."""
    return tuple(side * SHORT_SIDE // min(person) // 16 * 16 for side in person)


def fitted(garment, size):
    """A garment within what is generated, never larger than it was."""
    scale = min(1.0, *(room / side for room, side in zip(size, garment.size)))
    return garment.resize(tuple(max(16, int(side * scale + 0.5)) for side in garment.size), Image.Resampling.LANCZOS)


def weighted(pipeline, case, syntax, clip_skip):
    """Negative and positive states, by the rules of the checkpoint's syntax."""
    if clip_skip:
        pipeline.text_encoder.forward = skipping(pipeline.text_encoder, clip_skip)
    rows = [weighted_prompts.tokens(pipeline, pairs) for pairs in (case["negative"], case["text"])]
    counts = [max(1, -(-len(row) // ROOM)) for row in rows]
    states = []
    for row, chunks in zip(rows, [max(counts)] * 2 if syntax == "lpw" and case["job"]["guidance_scale"] > 1 else counts):
        row = row[: 3 * ROOM] if syntax == "lpw" else row
        parts = [row[n * ROOM : (n + 1) * ROOM] for n in range(chunks)]
        made = [encoded(pipeline, part, syntax) for part in parts]
        if syntax == "lpw":
            states.append(weighted_prompts.restored(torch.cat([plain for plain, _ in made], 1), [w for _, weights in made for w in weights]))
        else:
            states.append(torch.cat([weighted_prompts.restored(plain, weights) for plain, weights in made], 1))
    # AUTOMATIC1111 looks at texts of two lengths one after the other. What attends to a text sees the same in several copies of it: so they are
    # made as long as each other without a change.
    length = math.lcm(*(text.shape[1] for text in states))
    return [text.repeat(1, length // text.shape[1], 1) for text in states]


def encoded(pipeline, part, syntax):
    bos, eos, pad = pipeline.tokenizer.bos_token_id, pipeline.tokenizer.eos_token_id, pipeline.tokenizer.pad_token_id
    ids, room = [token for token, _ in part], ROOM - len(part)
    padded = [bos, *ids] + ([pad] * room + [eos] if syntax == "lpw" else [eos] + [pad] * room)
    return pipeline.text_encoder(torch.tensor([padded]))[0], [1.0, *(weight for _, weight in part)] + [1.0] * (room + 1)


def skipping(encoder, clip_skip):
    """The states of an earlier layer, normed as diffusers does."""
    forward = encoder.forward

    def skipped(ids, **_):
        states = forward(ids, output_hidden_states=True).hidden_states[-(clip_skip + 1)]
        return (encoder.final_layer_norm(states),)

    return skipped
