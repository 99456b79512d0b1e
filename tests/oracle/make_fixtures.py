"""Writes tests/fixtures/sd: tiny random checkpoints, LoRA files and what diffusers computes with them, for crates/engine/tests/it/parity.

    python tests/oracle/make_fixtures.py    about a minute on a CPU; the result is committed

Needs torch, diffusers, transformers and peft; made with torch 2.11.0, diffusers 0.42.1, transformers 5.23.0, peft 0.21.2.
Every parameter is a seeded normal number, norms and biases as well: zeros and ones would hide mistakes of order.
"""

import json
import shutil
from collections import Counter
from pathlib import Path

import prompts
import starts
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    UniPCMultistepScheduler,
    UNet2DConditionModel,
)
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

HERE = Path(__file__).resolve().parent.parent / "fixtures" / "sd"
START, END = "<|startoftext|>", "<|endoftext|>"
WIDTH, HEIGHT = 104, 72  # divisible by 8, but the latents' sides (13 and 9) are odd
WORDS = "a the of in red blue green cat dog lighthouse dusk paper sea over under small bright old storm and with it's 7".split()
PROMPTS = {
    "empty": "",
    "one_word": "cat",
    "mixed": "A  bright, OLD lighthouse over the sea; it's 7 o'clock — größe 東京 🎨!",
    "fits": " ".join(["cat"] * 75),
    "one_too_many": " ".join(["cat"] * 76),
    "long": " ".join(WORDS[i % len(WORDS)] for i in range(200)),
}
PROMPT, NEGATIVE = "a small lighthouse over the sea", "storm, dog"


def normals(shape, seed, scale=1.0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def randomize(model, seed, dtype):
    """Overwrites every parameter: matrices keep the variance of their input, gains lie around one."""
    for index, (name, parameter) in enumerate(sorted(model.named_parameters())):
        shape = parameter.shape
        if "embedding" in name and "time" not in name:
            values = normals(shape, seed + index, 0.5)
        elif len(shape) > 1:
            values = normals(shape, seed + index, (shape.numel() / shape[0]) ** -0.5)
        elif name.endswith("weight"):
            values = 1 + normals(shape, seed + index, 0.2)
        else:
            values = normals(shape, seed + index, 0.1)
        parameter.data = values.to(dtype)
    return model.to(dtype).eval()


def tokenizer():
    """CLIP's byte-pair encoding over a few words."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {byte: chr(byte) for byte in kept}
    letters |= {byte: chr(256 + n) for n, byte in enumerate(b for b in range(256) if b not in letters)}
    merges, pieces = [], [[*word[:-1], word[-1] + "</w>"] for word in WORDS if word.isalpha()]
    while pairs := Counter(pair for piece in pieces for pair in zip(piece, piece[1:], strict=False)):
        left, right = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append((left, right))
        for piece in pieces:
            while (left, right) in (joints := list(zip(piece, piece[1:], strict=False))):
                at = joints.index((left, right))
                piece[at : at + 2] = [left + right]
    tokens = [letters[b] for b in range(256)]
    tokens += [t + "</w>" for t in tokens] + list(dict.fromkeys("".join(m) for m in merges)) + [START, END]
    return {token: index for index, token in enumerate(tokens)}, merges


def checkpoint(name, seed, *, widths, unet, text, schedule, pad, tokenizer_json):
    """A directory as diffusers saves it, with every float format among its files; returns the pipeline in float32."""
    directory = HERE / name
    vocab, merges = tokenizer()
    clip = CLIPTokenizer(vocab=vocab, merges=merges, pad_token=pad, model_max_length=77)
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=widths, layers_per_block=1, norm_num_groups=8, cross_attention_dim=24,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"), **unet,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(4, 4, 8, 12), norm_num_groups=4, sample_size=64, layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(vocab), hidden_size=24, intermediate_size=48, num_hidden_layers=2, num_attention_heads=3,
            bos_token_id=vocab[START], eos_token_id=vocab[END], pad_token_id=vocab[pad], **text,
        )  # fmt: skip
    )
    pipeline = StableDiffusionPipeline(
        vae=randomize(vae, seed + 1000, torch.bfloat16), text_encoder=randomize(text, seed + 2000, torch.float32),
        tokenizer=clip, unet=randomize(unet, seed + 3000, torch.float16), scheduler=schedule, safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.save_pretrained(directory)
    (directory / "tokenizer" / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False))
    (directory / "tokenizer" / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    pipeline = StableDiffusionPipeline.from_pretrained(directory, torch_dtype=torch.float32, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    if not tokenizer_json:
        (directory / "tokenizer" / "tokenizer.json").unlink()
    return pipeline


def text_hidden(pipeline, prompt):
    tokens = pipeline.tokenizer(prompt, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    return tokens, pipeline.text_encoder(tokens)[0]


def stages(pipeline, out):
    """Tokens, text states, UNet and VAE on inputs that are given."""
    for name, prompt in PROMPTS.items():
        tokens, hidden = text_hidden(pipeline, prompt)
        out[f"tokens/{name}"], out[f"text/{name}"] = tokens.to(torch.int32), hidden
    text = torch.cat([text_hidden(pipeline, p)[1] for p in (NEGATIVE, PROMPT)])
    for batch, height, width in ((1, 9, 13), (4, 9, 13), (1, 8, 8)):
        latents = normals((batch, 4, height, width), 7 + batch)
        key = f"unet/{batch}x{height}x{width}"
        out[f"{key}/latents"] = latents
        for timestep in (1.0, 333.25, 999.0) if batch == 1 else (500.0,):
            steps = torch.tensor(timestep)
            out[f"{key}/{timestep}/plain"] = pipeline.unet(latents, steps, text[1:].repeat(batch, 1, 1)).sample
            both = text.repeat_interleave(batch, 0)
            negative, positive = pipeline.unet(torch.cat([latents] * 2), steps, both).sample.chunk(2)
            out[f"{key}/{timestep}/guided"] = negative + 7.5 * (positive - negative)
        if batch > 1:
            continue  # images are decoded one by one
        decoded = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
        out[f"vae/{batch}x{height}x{width}"] = decoded
        out[f"pixels/{batch}x{height}x{width}"] = pixels(pipeline.image_processor.postprocess(decoded, "np"))


def pixels(images):
    """(N, H, W, 3) bytes, rounded as `numpy_to_pil` rounds."""
    return torch.from_numpy((images * 255).round().astype("uint8"))


def first_images(base):
    return [
        ("dpmsolver++", DPMSolverMultistepScheduler.from_config(base), 5, 7.5, 1),
        ("dpmsolver++-karras", DPMSolverMultistepScheduler.from_config(base, use_karras_sigmas=True), 5, 7.5, 1),
        ("ddim", DDIMScheduler.from_config(base), 5, 7.5, 1),
        ("euler", EulerDiscreteScheduler.from_config(base), 5, 1.0, 1),
        ("euler_a", EulerAncestralDiscreteScheduler.from_config(base), 5, 7.5, 4),
    ]


def start_samplers(base):
    named = SCHEDULES | SAMPLERS
    kept = ("dpmsolver++", "dpmsolver++-karras", "dpmsolver++-sde", "unipc", "ddim", "euler", "euler_a", "lcm")
    return {name: named[name][0].from_config(base, **named[name][1]) for name in kept}


def images(pipeline, out, cases):
    """Whole generations from seeds, image n by seed + n."""
    for name, scheduler, steps, guidance, count in cases:
        pipeline.scheduler = scheduler
        seeds = [torch.Generator().manual_seed(42 + n) for n in range(count)]
        generated = pipeline(
            PROMPT, negative_prompt=NEGATIVE, height=HEIGHT, width=WIDTH, num_inference_steps=steps,
            guidance_scale=guidance, num_images_per_prompt=count, generator=seeds, output_type="np",
        ).images  # fmt: skip
        out[f"image/{name}"] = pixels(generated)


def lora(names, shapes, rank, seed, style):
    """A LoRA of the modules `names`; `style` turns module, matrix ('down' or 'up') into a key."""
    tensors = {}
    for index, name in enumerate(names):
        out, *rest = shapes[name]
        tensors[style(name, "down")] = normals((rank, *rest), seed + 2 * index, (sum(rest) or 1) ** -0.5)
        tensors[style(name, "up")] = normals((out, rank, *([1] * (len(rest) - 1))), seed + 2 * index + 1, 0.5)
    return tensors


def write_loras(pipeline, directory):
    unet = {n.removesuffix(".weight"): tuple(p.shape) for n, p in pipeline.unet.named_parameters() if n.endswith("weight")}
    text = {n.removesuffix(".weight"): tuple(p.shape) for n, p in pipeline.text_encoder.named_parameters()}
    attention = [n for n in unet if n.split(".")[-1] in ("to_q", "to_k", "to_v") or n.endswith("to_out.0")]
    rest = [n for n in unet if ".ff.net." in n or ".proj_" in n or n.endswith(("conv1", "conv_shortcut", "time_emb_proj"))]
    encoder = [n for n in text if n.endswith("_proj") and len(text[n]) == 2]

    def peft(component):
        return lambda module, matrix: f"{component}.{module}.lora_{'A' if matrix == 'down' else 'B'}.weight"

    def kohya(prefix):
        return lambda module, matrix: f"{prefix}_{module.replace('.', '_')}.lora_{matrix}.weight"

    def processor(module, matrix):
        attn, projection = module.removesuffix(".0").rsplit(".", 1)
        return f"unet.{attn}.processor.{projection}_lora.{matrix}.weight"

    with_text = lora(attention, unet, 4, 100, peft("unet")) | lora(encoder, text, 2, 300, peft("text_encoder"))
    save_file(with_text, directory / "peft.safetensors")
    told = {"unet.r": 4, "unet.lora_alpha": 10, "unet.target_modules": sorted(attention), "unet.peft_type": "LORA"}
    header = {"format": "pt", "lora_adapter_metadata": json.dumps(told)}
    save_file(lora(attention, unet, 4, 500, peft("unet")), directory / "peft_alpha.safetensors", metadata=header)
    convolutions = lora(attention + rest, unet, 3, 700, kohya("lora_unet")) | lora(encoder, text, 3, 900, kohya("lora_te_text_model"))
    alphas = {key.replace("lora_down.weight", "alpha"): torch.tensor(1.5) for key in convolutions if key.endswith("lora_down.weight")}
    save_file(convolutions | alphas, directory / "kohya.safetensors")
    save_file(lora(attention, unet, 2, 1100, processor), directory / "processor.safetensors")
    old = {key.replace(".lora_A.", ".lora_linear_layer.down.").replace(".lora_B.", ".lora_linear_layer.up."): value
           for key, value in lora(encoder, text, 2, 1300, peft("text_encoder")).items()}  # fmt: skip
    dotted = {key.replace(".lora_A.", ".lora.down.").replace(".lora_B.", ".lora.up."): value
              for key, value in lora(attention[:8], unet, 5, 1500, peft("unet")).items()}  # fmt: skip
    save_file(old | dotted, directory / "linear_layer.safetensors")


def loras(pipeline, out):
    """Text states and UNet output with LoRAs of every format, alone and together."""
    directory = HERE / "loras"
    directory.mkdir()
    write_loras(pipeline, directory)
    mixes = {
        "peft": {"peft": 1.0},
        "peft_alpha": {"peft_alpha": 0.7},
        "kohya": {"kohya": 0.8},
        "processor": {"processor": 1.0},
        "linear_layer": {"linear_layer": 1.0},
        "three": {"peft": 0.6, "kohya": -0.5, "peft_alpha": 0.4},
    }
    latents, plain = out["unet/1x9x13/latents"], text_hidden(pipeline, PROMPT)[1]
    for mix, scales in mixes.items():
        for name in scales:
            pipeline.load_lora_weights(directory, weight_name=f"{name}.safetensors", adapter_name=name)
        pipeline.set_adapters(list(scales), list(scales.values()))
        hidden = text_hidden(pipeline, PROMPT)[1]
        assert torch.equal(hidden, plain) == (mix in ("peft_alpha", "processor")), f"{mix} and the text encoder"
        out[f"lora/{mix}/text"] = hidden
        out[f"lora/{mix}/unet"] = pipeline.unet(latents, torch.tensor(500.0), hidden).sample
        pipeline.unload_lora_weights()
    (directory / "mixes.json").write_text(json.dumps(mixes, indent=2) + "\n")


SCHEDULES = {
    "dpmsolver++": (DPMSolverMultistepScheduler, {}),
    "dpmsolver++-karras": (DPMSolverMultistepScheduler, {"use_karras_sigmas": True}),
    "ddim": (DDIMScheduler, {}),
    "euler": (EulerDiscreteScheduler, {}),
    "euler_a": (EulerAncestralDiscreteScheduler, {}),
}
SAMPLERS = {
    "dpmsolver++-sde": (DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}),
    "dpmsolver++-sde-karras": (DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True}),
    "unipc": (UniPCMultistepScheduler, {}),
    "unipc-karras": (UniPCMultistepScheduler, {"use_karras_sigmas": True}),
    "euler-karras": (EulerDiscreteScheduler, {"use_karras_sigmas": True}),
    "lcm": (LCMScheduler, {}),
}


def schedules(file, classes, out):
    """Tables and every step of every schedule, over configurations as checkpoints have them."""
    sd15 = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1,
            "clip_sample": False, "set_alpha_to_one": False}  # fmt: skip
    configs = {"sd15": sd15, "defaults": {}, "cosine": sd15 | {"beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -5.1}}
    configs["dpm"] = sd15 | {"final_sigmas_type": "sigma_min", "lower_order_final": False, "use_karras_sigmas": True}
    configs["first_order"] = sd15 | {"solver_order": 1, "euler_at_final": True}
    for spacing in ("linspace", "leading", "trailing"):
        configs[f"v_{spacing}"] = sd15 | {"prediction_type": "v_prediction", "timestep_spacing": spacing}
    outputs, noise = normals((50, 1, 2, 2, 3), 11), normals((50, 1, 2, 2, 3), 12)
    out["schedule/latents"], out["schedule/outputs"], out["schedule/noise"] = normals((1, 2, 2, 3), 13), outputs, noise
    cases = []
    for (name, config), (scheduler, (cls, more)) in [(c, k) for c in configs.items() for k in classes.items()]:
        for steps in (1, 2, 4, 20, 50) if name == "sd15" else (7, 16):
            built = cls.from_config(config | more)
            built.set_timesteps(steps)
            if hasattr(built, "set_begin_index"):
                built.set_begin_index(0)  # or the first of two equal timesteps would be skipped
            key = f"schedule/{name}/{scheduler}/{steps}"
            count = steps
            if name == "dpm" and scheduler.startswith("unipc"):
                count = len(built.timesteps) - 1  # where nothing changes any more it divides zero by zero
            latents, states = out["schedule/latents"] * built.init_noise_sigma, []
            for index, timestep in enumerate(built.timesteps[:count]):
                scaled = built.scale_model_input(latents, timestep)
                latents = step(built, outputs[index], timestep, latents, noise[index])
                states += [torch.stack([scaled, latents])]
            out[f"{key}/timesteps"], out[f"{key}/states"] = built.timesteps.float(), torch.stack(states)
            assert out[f"{key}/states"].isfinite().all(), key
            if hasattr(built, "sigmas"):
                out[f"{key}/sigmas"] = built.sigmas.float()
            cases.append({"key": key, "scheduler": scheduler, "steps": steps, "config": config})
    (HERE / f"{file}.json").write_text(json.dumps(cases, indent=1) + "\n")
    save_file({key: value.contiguous() for key, value in out.items()}, HERE / f"{file}.safetensors")


def step(scheduler, output, timestep, latents, noise, **more):
    module = __import__(scheduler.__module__, fromlist=["randn_tensor"])
    if not hasattr(module, "randn_tensor"):
        return scheduler.step(output, timestep, latents, **more).prev_sample
    drawn, module.randn_tensor = module.randn_tensor, lambda *_, **__: noise
    try:
        return scheduler.step(output, timestep, latents, **more).prev_sample
    finally:
        module.randn_tensor = drawn


@torch.no_grad()
def main():
    shutil.rmtree(HERE, ignore_errors=True)
    HERE.mkdir(parents=True)
    sd15_schedule = PNDMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1,
                                  skip_prk_steps=True)  # fmt: skip
    sd15 = checkpoint("sd15", 1, widths=(16, 24, 32), unet={"attention_head_dim": 4}, text={"hidden_act": "quick_gelu"}, schedule=sd15_schedule,
                      pad=END, tokenizer_json=True)  # fmt: skip
    out = {}
    stages(sd15, out)
    loras(sd15, out)
    base = sd15.scheduler.config
    images(sd15, out, first_images(base))
    out["noise/42"] = normals((1, 4, 9, 13), 42)
    out["noise/3000000000"] = normals((1, 4, 8, 8), 3_000_000_000)
    save_file({key: value.contiguous() for key, value in out.items()}, HERE / "sd15.safetensors")

    sd2_schedule = DPMSolverMultistepScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
                                               prediction_type="v_prediction")  # fmt: skip
    heads = {"attention_head_dim": [2, 4, 3], "use_linear_projection": True}
    sd2 = checkpoint("sd2", 5, widths=(8, 16, 24), unet=heads, text={"hidden_act": "gelu"}, schedule=sd2_schedule, pad="!", tokenizer_json=False)
    out = {}
    stages(sd2, out)
    images(sd2, out, first_images(sd2.scheduler.config))
    save_file({key: value.contiguous() for key, value in out.items()}, HERE / "sd2.safetensors")

    schedules("schedules", SCHEDULES, {})
    out = {}
    samplers = [(name, cls.from_config(base, **more), 5, 7.5, 2) for name, (cls, more) in SAMPLERS.items()]
    images(sd15, out, samplers)
    schedules("samplers", SAMPLERS, out)
    prompts.write(sd15, normals, HERE)
    starts.write(sd15, start_samplers(base), HERE)
    starts.write_tiles(sd15, normals((1, 4, 9, 13), 8), HERE)
    size = sum(file.stat().st_size for file in HERE.rglob("*") if file.is_file())
    print(f"{size / 1e6:.2f} MB in {HERE}")


if __name__ == "__main__":
    main()
