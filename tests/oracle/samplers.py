"""Writes tests/fixtures/sd/steps.*, steps_by_chance.* and jobs.*: every sampler's steps, and images of jobs as the pipelines of diffusers make them.

    python tests/oracle/samplers.py    a minute on a CPU, after make_fixtures.py; the result is committed

Needs scipy besides what make_fixtures.py does; made with scipy 1.17.1 and diffusers 0.42.1. `steps` are compared number by number, with the latents, predictions
and noise of samplers.safetensors. Of the images of `jobs` every second pixel of every second row is kept.
"""

import contextlib
import json
import math
import random
import sys
from collections import Counter
from types import SimpleNamespace

import diffusers
import numpy
import starts
import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline, StableDiffusionPipeline
from make_fixtures import HERE, NEGATIVE, PROMPT, normals, step
from PIL import Image
from safetensors.torch import load_file, save_file

CLASSES = {
    "dpmsolver++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "dpmsolver++-sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "dpmsolver++-singlestep": ("DPMSolverSinglestepScheduler", {"algorithm_type": "dpmsolver++"}),
    "deis": ("DEISMultistepScheduler", {"algorithm_type": "deis"}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "dpm2": ("KDPM2DiscreteScheduler", {}),
    "dpm2_a": ("KDPM2AncestralDiscreteScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "pndm": ("PNDMScheduler", {}),
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "lcm": ("LCMScheduler", {}),
    "tcd": ("TCDScheduler", {}),
}
SPACED = list(CLASSES)[:10]
NEW = ["dpmsolver++-singlestep", "deis", "heun", "dpm2", "dpm2_a", "lms", "pndm", "ddpm", "tcd"]
SD15 = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1, "clip_sample": False, "set_alpha_to_one": False,
        "skip_prk_steps": True}  # fmt: skip
# Of a step, relative to the largest value: SCHEDULE in crates/engine/tests/it/parity.
TOLERANCE = 1e-5
V = SD15 | {"prediction_type": "v_prediction"}

RANDOM_ROWS, RANDOM_SEED = 480, 15
# How far a row of twelve numbers rounds is chance: latents of 20,000 that end near 1 were 4e-4 to 2e-3 from double, by what was drawn. So a row's bound
# is the largest of as many draws more.
DRAWS = 8
CHOICES = {
    "beta_start": [0.00085, 0.0001, 0.001], "beta_end": [0.012, 0.02], "beta_schedule": ["scaled_linear", "linear", "squaredcos_cap_v2"],
    "prediction_type": ["epsilon", "v_prediction", "sample"], "timestep_spacing": ["leading", "trailing", "linspace"], "steps_offset": [0, 1],
    "rescale_betas_zero_snr": [True, False], "final_sigmas_type": ["zero", "sigma_min"], "solver_order": [1, 2, 3],
    "solver_type": ["midpoint", "heun", "bh1", "bh2", "logrho"], "lower_order_final": [True, False], "euler_at_final": [True, False],
    "set_alpha_to_one": [True, False], "clip_sample": [True, False, False], "thresholding": [True, False, False], "skip_prk_steps": [True, False],
    "use_lu_lambdas": [True, False, False], "original_inference_steps": [50, 40],
}  # fmt: skip


def scheduler(name, config):
    """What `from_config` makes of a checkpoint's settings for a job's name."""
    sampler, _, spacing = name.rpartition("-")
    if spacing not in ("karras", "exponential", "beta"):
        sampler, spacing = name, None
    cls, more = CLASSES[sampler]
    if spacing:
        # A job's name decides, whatever levels the checkpoint has.
        more = more | {f"use_{kind}_sigmas": kind == spacing for kind in ("karras", "exponential", "beta")} | {"use_lu_lambdas": False}
    return getattr(diffusers, cls).from_config(config, **more)


def step_cases():
    for name in NEW:
        for config, steps in ((SD15, 5), (SD15, 8), ({}, 9), (V | {"timestep_spacing": "leading"}, 7), (V | {"timestep_spacing": "trailing"}, 6),
                              (V | {"timestep_spacing": "linspace"}, 16)):  # fmt: skip
            yield name, config, steps, {}
    for name in SPACED:
        for spacing in ("karras", "exponential", "beta"):
            yield f"{name}-{spacing}", SD15, 7, {}
        yield name, V | {"use_exponential_sigmas": True, "sigma_min": 0.1, "sigma_max": 9.5}, 11, {}
    for name in CLASSES:
        yield name, SD15, 9, {"strength": 0.6}
    third = SD15 | {"solver_order": 3}
    for name in ("dpmsolver++", "dpmsolver++-sde", "dpmsolver++-singlestep", "deis", "unipc"):
        for steps in (3, 7, 9, 17):
            yield name, third, steps, {}
        yield name, third | {"lower_order_final": False, "final_sigmas_type": "sigma_min"}, 12, {}
        yield name, third, 10, {"strength": 0.5}
        yield name, SD15 | {"solver_type": "heun", "euler_at_final": True}, 6, {}
    yield "dpmsolver++-singlestep", third | {"solver_type": "heun"}, 12, {}
    yield "unipc", third | {"solver_type": "bh1", "disable_corrector": [0, 2]}, 11, {}
    yield "unipc", SD15 | {"solver_type": "bh1"}, 6, {}
    yield "dpmsolver++", SD15 | {"use_lu_lambdas": True}, 9, {}
    zero = V | {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    for name in ("dpmsolver++", "unipc", "ddim", "ddpm", "lcm", "tcd", "heun", "euler", "euler_a"):
        yield name, zero, 5, {}
    for name in ("pndm",):
        for steps in (4, 6, 13):
            yield name, SD15 | {"skip_prk_steps": False}, steps, {}
        yield name, V | {"skip_prk_steps": False, "set_alpha_to_one": True, "steps_offset": 0}, 10, {}
    for name in ("heun", "ddpm", "ddim", "lcm"):
        yield name, SD15 | {"clip_sample": True, "clip_sample_range": 0.8}, 6, {}
    for name in CLASSES:
        if name not in ("euler_a", "heun", "dpm2", "dpm2_a", "pndm"):
            yield name, SD15 | {"prediction_type": "sample"}, 7, {}
    yield "ddim", SD15 | {"prediction_type": "sample", "timestep_spacing": "trailing"}, 5, {"eta": 0.5}
    yield "heun", SD15 | {"beta_schedule": "exp"}, 6, {}
    for betas in ("laplace", "sigmoid"):
        yield "ddpm", SD15 | {"beta_schedule": betas}, 7, {}
    for name in ("dpmsolver++", "dpmsolver++-sde", "dpmsolver++-singlestep", "deis", "unipc", "ddim", "ddpm", "lcm"):
        yield name, SD15 | {"thresholding": True, "clip_sample": True}, 6, {}
        yield name, SD15 | {"thresholding": True, "dynamic_thresholding_ratio": 0.7, "sample_max_value": 1.6}, 5, {}
    for variance in ("fixed_large", "fixed_small_log"):
        yield "ddpm", SD15 | {"variance_type": variance}, 6, {}
    for name in ("euler", "euler-karras"):
        yield name, SD15 | {"interpolation_type": "log_linear"}, 7, {}
    # The timestep of the largest noise level is cut off: the last digit of the betas decides.
    yield "dpmsolver++-singlestep-exponential", {}, 9, {}
    for name in ("dpmsolver++", "dpmsolver++-sde", "dpmsolver++-singlestep", "euler", "heun", "ddpm", "lcm", "tcd"):
        yield name, SD15, 5, {"timesteps": [979, 719, 499, 259, 19]}
    yield "euler", SD15, 4, {"sigmas": [12.5, 4.2, 1.3, 0.3, 0.0]}
    yield "euler", SD15 | {"use_karras_sigmas": True}, 3, {"sigmas": [9.0, 2.5, 0.7, 0.05]}
    for eta in (0.3, 1.0):
        yield "ddim", SD15, 6, {"eta": eta}
        yield "ddim", V | {"timestep_spacing": "trailing"}, 5, {"eta": eta}
        yield "tcd", SD15, 6, {"eta": eta}
        yield "tcd", V, 5, {"eta": eta}


def random_cases():
    """Settings as they come together by chance: what a class of diffusers reads, and what it does not."""
    chance = random.Random(RANDOM_SEED)
    for _ in range(RANDOM_ROWS):
        name, steps = chance.choice(list(CLASSES)), chance.randint(2, 12)
        config = {key: chance.choice(values) for key, values in CHOICES.items() if chance.random() < 0.6}
        if name in SPACED and chance.random() < 0.5:
            name += chance.choice(["-karras", "-exponential", "-beta"])
        more = {"strength": chance.choice([0.3, 0.55, 0.8])} if chance.random() < 0.3 else {}
        yield name, config, steps, more


random_rows = list(random_cases())


class Double:
    """A library for a scheduler's module, where single precision is double."""

    def __init__(self, library):
        self.library, self.float32 = library, library.float64

    def __getattr__(self, name):
        return getattr(self.library, name)


@contextlib.contextmanager
def in_double(module):
    libraries = {"torch": torch, "np": numpy}
    for name, library in libraries.items():
        setattr(module, name, Double(library))
    try:
        yield
    finally:
        for name, library in libraries.items():
            setattr(module, name, library)


SINGLE, STEPS, ALL = "single", "steps", "all"


def stepped(name, config, steps, more, given, double):
    """Timesteps, noise levels, and states before and after each step. `double`: what is in double precision, nothing (SINGLE), what a step computes with
    the tables of single precision (STEPS), or the tables as well (ALL)."""
    module = sys.modules[type(scheduler(name, config)).__module__]
    with in_double(module) if double == ALL else contextlib.nullcontext():
        built = scheduler(name, config)
        listed = {kind: more[kind] for kind in ("timesteps", "sigmas") if kind in more}
        built.set_timesteps(**(listed or {"num_inference_steps": steps}))
    calls = len(built.timesteps) if name == "heun" and listed else steps
    begin = (calls - int(calls * more.get("strength", 1.0))) * built.order
    if hasattr(built, "set_begin_index"):
        built.set_begin_index(begin)
    latents, states = given["schedule/latents"] * built.init_noise_sigma, []
    timesteps = built.timesteps[begin:]
    sigmas = built.sigmas[begin:] if hasattr(built, "sigmas") else None
    if double != SINGLE:
        for key, value in vars(built).items():
            if isinstance(value, torch.Tensor) and value.dtype == torch.float32:
                setattr(built, key, value.double())
        given, latents = {key: value.double() for key, value in given.items()}, latents.double()
    with in_double(module) if double != SINGLE else contextlib.nullcontext():
        for at, timestep in enumerate(timesteps):
            scaled = built.scale_model_input(latents, timestep)
            if "eta" in more:
                drawn = {"eta": more["eta"]}
            else:
                drawn = {"eta": 0.0} if name == "tcd" else {}
            latents = step(built, given["schedule/outputs"][at], timestep, latents, given["schedule/noise"][at], **drawn)
            if not latents.isfinite().all():
                assert at + 1 == len(timesteps), f"not finite at {at} of {len(timesteps)}"
                break
            states += [torch.stack([scaled, latents])]
    assert states, "no step"
    return timesteps, sigmas, torch.stack(states)


def relative_error(table, exact):
    """As the test measures it: of timesteps, noise levels, and each step's input and output, the largest difference of the largest value."""
    largest = lambda tensor: tensor.double().abs().flatten(2).amax(-1)  # noqa: E731
    count = min(len(table[2]), len(exact[2]))
    errors = [(largest(table[2][:count] - exact[2][:count]) / largest(exact[2][:count])).max()]
    for ours, theirs in zip(table[:2], exact[:2]):
        if ours is not None:
            errors.append((ours.double() - theirs.double()).abs().max() / theirs.double().abs().max())
    return float(max(errors))


def write_steps(file, rows):
    """States are those of double precision, with the tables of single precision. diffusers' own single precision is further from them than the test
    allows where noise levels are large, or lie close together: a step there is the small difference of large numbers. A row's `single` is how far; ours
    may be as far. Where it is the tables that single precision decides, those of double precision are kept as well, and ours may follow either."""
    given, out, cases, left_out = load_file(HERE / "samplers.safetensors"), {}, [], Counter()
    for index, (name, config, steps, more) in enumerate(rows):
        key = f"{index}/{name}"
        try:
            single, double, whole = (stepped(name, config, steps, more, given, kind) for kind in (SINGLE, STEPS, ALL))
        except (AssertionError, NotImplementedError, RuntimeError, ValueError) as error:
            assert rows is random_rows, (key, config)
            left_out[str(error)] += 1
            continue
        row = {"key": key, "scheduler": name, "steps": steps, "config": config} | more
        keep(out, key, double)
        if (error := relative_error(single, double)) > TOLERANCE:
            row["single"] = max(error, *(redrawn(name, config, steps, more, given, seed) for seed in range(DRAWS))) if rows is random_rows else error
        if rows is random_rows and TOLERANCE / 10 < (error := relative_error(single, whole)) < math.inf:
            row["single_of_all"] = error
            keep(out, f"{key}/all", whole)
        cases.append(row)
    rounded = [f"{case['key']}: {case.get('single', 0):.1e}, {case.get('single_of_all', 0):.1e}" for case in cases if "single" in case or "single_of_all" in case]
    print(f"{len(cases)} tables; diffusers in single precision is more than {TOLERANCE} from double in {len(rounded)}: {'; '.join(rounded)}")
    for error, count in left_out.most_common():
        print(f"left out, for diffusers does not run them: {count}: {error}")
    (HERE / f"{file}.json").write_text("[\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]\n")
    save_file({key: value.contiguous() for key, value in out.items()}, HERE / f"{file}.safetensors")


def redrawn(name, config, steps, more, given, seed):
    """How far single precision is from double for other latents, outputs and noise of the same shapes."""
    drawn = {key: normals(value.shape, seed * len(given) + place) for place, (key, value) in enumerate(given.items())}
    single, double = (stepped(name, config, steps, more, drawn, kind) for kind in (SINGLE, STEPS))
    return relative_error(single, double)


def keep(out, key, table):
    for name, tensor in zip(("timesteps", "sigmas", "states"), table):
        if tensor is not None:
            out[f"{key}/{name}"] = tensor.float()


PNDM = {"_class_name": "PNDMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
FILES = {
    "old": PNDM | {"steps_offset": 0, "clip_sample": True, "skip_prk_steps": False, "set_alpha_to_one": False},
    "bare": PNDM,
    "ddim": PNDM | {"_class_name": "DDIMScheduler", "steps_offset": 0, "clip_sample": True},
    "lcm": PNDM | {"_class_name": "LCMScheduler", "steps_offset": 7, "clip_sample": True, "original_inference_steps": 50},
    "sde": PNDM | {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True, "solver_order": 3,
                   "steps_offset": 1},
    "zero": PNDM | {"steps_offset": 1, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
    "good": PNDM | {"steps_offset": 1, "clip_sample": False, "skip_prk_steps": True, "set_alpha_to_one": False},
}  # fmt: skip
PIPELINES = {"generate": StableDiffusionPipeline, "from_image": StableDiffusionImg2ImgPipeline, "inpaint": StableDiffusionInpaintPipeline}


def job_cases():
    for file in ("old", "bare"):
        for pipeline in PIPELINES:
            for name in ("ddim", "ddpm", "tcd", "pndm"):
                strength = {"strength": 0.75} if pipeline != "generate" else {}
                yield file, pipeline, name, 8, strength
    for file, name in (("ddim", "ddim"), ("lcm", "lcm"), ("lcm", "ddim"), ("ddim", "euler"), ("sde", "dpmsolver++"), ("sde", "dpmsolver++-sde"), ("sde", "unipc"), ("sde", "euler_a")):  # fmt: skip
        for pipeline in ("generate", "inpaint"):
            yield file, pipeline, name, 6, {"strength": 1.0} if pipeline != "generate" else {}
    for name in ("euler", "euler_a", "dpmsolver++", "ddim"):
        yield "zero", "generate", name, 6, {}
    # The first level has no signal at all where the table ends without any.
    for name in ("ddim", "ddpm", "tcd", "lcm", "unipc", "euler"):
        for pipeline in ("from_image", "inpaint"):
            yield "zero", pipeline, name, 5, {"strength": 1.0}
    for name in (*NEW, "heun-beta", "dpm2-karras"):
        yield "good", "generate", name, 7, {}
        yield "good", "from_image", name, 9, {"strength": 0.45}
        yield "good", "inpaint", name, 6, {"strength": 0.7}
    yield "good", "inpaint", "dpm2", 5, {"strength": 1.0}
    yield "good", "generate", "ddim", 6, {"eta": 0.4}
    yield "good", "generate", "tcd", 5, {"eta": 0.3}
    yield "good", "from_image", "ddim", 8, {"eta": 0.9, "strength": 0.6}
    yield "good", "generate", "euler", 5, {"timesteps": [961, 722, 480, 243, 30]}
    yield "good", "from_image", "heun", 5, {"timesteps": [961, 722, 480, 243, 30], "strength": 0.9}
    yield "good", "inpaint", "ddpm", 5, {"timesteps": [961, 722, 480, 243, 30], "strength": 0.8}
    yield "good", "generate", "euler", 4, {"sigmas": [14.0, 5.0, 1.5, 0.4, 0.0]}
    yield "good", "generate", "dpmsolver++", 6, {"guidance_rescale": 0.7}
    yield "good", "generate", "euler", 5, {"guidance_scale": 0.0}
    for clip_skip in (0, 1, 2):
        yield "good", "generate", "deis", 5, {"clip_skip": clip_skip}
    yield "good", "from_image", "unipc", 6, {"clip_skip": 1, "strength": 0.8}
    for seed in (2**32 + 42, 2**53 - 1, 2**40):
        yield "good", "generate", "euler_a", 4, {"seed": seed}


@torch.no_grad()
def write_jobs():
    pixels, generated = starts.image(64, 64), starts.mask(64, 64)
    image, mask = Image.fromarray(pixels), Image.fromarray(generated)
    base = StableDiffusionPipeline.from_pretrained(HERE / "sd15", torch_dtype=torch.float32, safety_checker=None)
    # The pipeline looks for it where transformers 4 had it.
    base.text_encoder.text_model = SimpleNamespace(final_layer_norm=base.text_encoder.final_layer_norm)
    parts = {name: part for name, part in base.components.items() if name != "image_encoder"}
    out, cases = {"image": torch.from_numpy(pixels), "mask": torch.from_numpy(generated)}, []
    for index, (file, kind, name, steps, more) in enumerate(job_cases()):
        config = FILES[file]
        own = getattr(diffusers, config["_class_name"]).from_config(config)
        pipeline = PIPELINES[kind](**parts | {"scheduler": own}, requires_safety_checker=False)
        pipeline.set_progress_bar_config(disable=True)
        pipeline.scheduler = scheduler(name, pipeline.scheduler.config)
        words = {"prompt": PROMPT, "negative_prompt": NEGATIVE, "num_inference_steps": steps, "guidance_scale": 5.0, "output_type": "np"} | more
        words["generator"] = torch.Generator().manual_seed(words.pop("seed", 42))
        if kind == "generate":
            words |= {"height": 64, "width": 64}
        else:
            words["image"] = image
        if kind == "inpaint":
            words |= {"mask_image": mask, "height": 64, "width": 64}
        key = f"{index}/{file}/{kind}/{name}"
        made = (pipeline(**words).images * 255).round().astype("uint8")[0]
        out[key] = torch.from_numpy(numpy.ascontiguousarray(made[::2, ::2]))
        cases.append({"key": key, "file": file, "kind": kind, "scheduler": name, "steps": steps} | more)
    (HERE / "jobs.json").write_text(json.dumps({"files": FILES, "jobs": cases}) + "\n")
    save_file({key: value.contiguous() for key, value in out.items()}, HERE / "jobs.safetensors")


if __name__ == "__main__":
    write_steps("steps", step_cases())
    write_steps("steps_by_chance", random_rows)
    write_jobs()
