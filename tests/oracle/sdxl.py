"""Writes tests/fixtures/sdxl: a tiny random Stable Diffusion XL, and what diffusers computes with it, for crates/engine/tests/it/parity/sdxl.

    python tests/oracle/sdxl.py    a minute on a CPU; the result is committed

No two widths of it are equal, so that no layer can take another's place. `cases.json` says what each image was asked for.
"""

import json
import shutil

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
    UniPCMultistepScheduler,
    UNet2DConditionModel,
)
from make_fixtures import END, HERE, NEGATIVE, PROMPT, PROMPTS, START, normals, pixels, randomize, tokenizer
from PIL import Image
from safetensors.torch import save_file
from starts import SIZE, image, mask
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

OUT = HERE.parent / "sdxl"
SCHEDULERS = {
    "euler": (EulerDiscreteScheduler, {}),
    "euler_a": (EulerAncestralDiscreteScheduler, {}),
    "dpmsolver++": (DPMSolverMultistepScheduler, {}),
    "dpmsolver++-karras": (DPMSolverMultistepScheduler, {"use_karras_sigmas": True}),
    "unipc": (UniPCMultistepScheduler, {}),
    "ddim": (DDIMScheduler, {}),
    "lcm": (LCMScheduler, {}),
}
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1, "timestep_spacing": "leading"}
UNET = {
    "sample_size": 9, "block_out_channels": (8, 16, 24), "layers_per_block": 1, "norm_num_groups": 4, "cross_attention_dim": 32,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), "transformer_layers_per_block": [1, 2, 3],
    "attention_head_dim": [2, 4, 3], "use_linear_projection": True, "addition_embed_type": "text_time", "addition_time_embed_dim": 6,
    "projection_class_embeddings_input_dim": 54,
}  # fmt: skip
# Segmind's: other numbers of transformer blocks up than down, and Vega's, without a middle.
UNEVEN = {"transformer_layers_per_block": [1, [2, 1], 1], "reverse_transformer_layers_per_block": [[1, 2], [3, 1, 2], 1], "layers_per_block": [1, 2, 1]}
VARIANTS = {"inpaint": {"in_channels": 9}, "uneven": UNEVEN, "vega": {"mid_block_type": None, "transformer_layers_per_block": [0, 1, 2]}}
# What is asked for, and what differs from this one.
PLAIN = {"scheduler": "euler", "steps": 4, "guidance_scale": 7.0, "width": 104, "height": 72, "count": 1, "negative_prompt": NEGATIVE}
CASES = {
    "euler": {"count": 2},
    "unguided": {"guidance_scale": 0.0, "negative_prompt": ""},
    "one": {"guidance_scale": 1.0, "steps": 1},
    "zeros": {"negative_prompt": ""},
    "square": {"width": 64, "height": 64, "seed": 3_000_000_000, "steps": 7},
    "large": {"width": 136, "height": 160, "steps": 2},
    "sizes": {"original_size": [512, 768], "crops_coords_top_left": [16, 40], "target_size": [96, 80]},
    "original_only": {"original_size": [4096, 64]},
    "clip_skip": {"clip_skip": 1},
    "euler_a": {"scheduler": "euler_a", "count": 2},
    "dpmsolver++": {"scheduler": "dpmsolver++", "steps": 5},
    "dpmsolver++-karras": {"scheduler": "dpmsolver++-karras", "steps": 5},
    "unipc": {"scheduler": "unipc"},
    "ddim": {"scheduler": "ddim"},
    "lcm": {"scheduler": "lcm", "guidance_scale": 1.0},
    "from_image": {"start": "image", "strength": 0.6, "steps": 8},
    "from_image_whole": {"start": "image", "strength": 1.0, "original_size": [200, 100]},
    "from_image_ddim": {"start": "image", "strength": 0.8, "scheduler": "ddim"},
    "inpaint": {"start": "mask", "strength": 1.0, "steps": 6},
    "inpaint_part": {"start": "mask", "strength": 0.6, "steps": 8, "scheduler": "dpmsolver++"},
    "inpaint_unguided": {"start": "mask", "strength": 0.8, "guidance_scale": 1.0, "scheduler": "euler_a", "steps": 6},
    "inpainting_unet": {"unet": "inpaint", "start": "mask", "strength": 1.0},
    "inpainting_unet_part": {"unet": "inpaint", "start": "mask", "strength": 0.7, "steps": 6, "scheduler": "dpmsolver++"},
    "uneven": {"unet": "uneven"},
    "vega": {"unet": "vega"},
}  # fmt: skip


def checkpoint():
    """A directory as diffusers saves it; returns the pipeline in float32."""
    vocab, merges = tokenizer()
    common = {"vocab_size": len(vocab), "bos_token_id": vocab[START]}
    first = CLIPTextModel(
        CLIPTextConfig(hidden_size=12, intermediate_size=28, num_hidden_layers=3, num_attention_heads=3, projection_dim=10,
                       eos_token_id=vocab[END], pad_token_id=vocab[END], hidden_act="quick_gelu", **common)
    )  # fmt: skip
    # As the real one: 2 is not its end.
    second = CLIPTextModelWithProjection(
        CLIPTextConfig(hidden_size=20, intermediate_size=36, num_hidden_layers=4, num_attention_heads=5, projection_dim=18,
                       eos_token_id=2, pad_token_id=1, hidden_act="gelu", **common)
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(4, 4, 8, 12), norm_num_groups=4, sample_size=64, layers_per_block=1, scaling_factor=0.13025,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    clips = [CLIPTokenizer(vocab=vocab, merges=merges, pad_token=pad, model_max_length=77) for pad in (END, "!")]
    pipeline = StableDiffusionXLPipeline(
        vae=randomize(vae, 7000, torch.bfloat16), text_encoder=randomize(first, 8000, torch.float32), tokenizer=clips[0],
        text_encoder_2=randomize(second, 9000, torch.float16), tokenizer_2=clips[1], scheduler=EulerDiscreteScheduler(**SCHEDULE),
        unet=randomize(UNet2DConditionModel(**UNET), 6000, torch.float16), add_watermarker=False,
    )  # fmt: skip
    pipeline.save_pretrained(OUT)
    for name in ("tokenizer", "tokenizer_2"):
        (OUT / name / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False))
        (OUT / name / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    # One tokenizer is read from the new file, one from the old ones.
    (OUT / "tokenizer_2/tokenizer.json").unlink()
    return StableDiffusionXLPipeline.from_pretrained(OUT, torch_dtype=torch.float32, add_watermarker=False)


def variant(name, seed):
    model = randomize(UNet2DConditionModel(**(UNET | VARIANTS[name])), seed, torch.float16)
    model.save_pretrained(OUT / "variants" / name / "unet")
    return model.float()


def texts(pipeline, out):
    """States and pooled text, the negative one first."""
    for name, prompt in PROMPTS.items():
        positive, _, pooled, _ = pipeline.encode_prompt(prompt, device="cpu", do_classifier_free_guidance=False)
        out[f"text/{name}"], out[f"pooled/{name}"] = positive, pooled
    for name, negative, skip in (("zeros", None, None), ("negative", NEGATIVE, None), ("skip1", NEGATIVE, 1), ("skip2", NEGATIVE, 2)):
        positive, negative, pooled, negative_pooled = pipeline.encode_prompt(PROMPT, device="cpu", negative_prompt=negative, clip_skip=skip)
        out[f"text/{name}"] = torch.cat([negative, positive])
        out[f"pooled/{name}"] = torch.cat([negative_pooled, pooled])


def stages(pipeline, out):
    """UNet and VAE on inputs that are given."""
    positive, negative, pooled, negative_pooled = pipeline.encode_prompt(PROMPT, device="cpu", negative_prompt=NEGATIVE)
    for batch, height, width in ((1, 9, 13), (3, 9, 13), (1, 8, 8)):
        latents = normals((batch, 4, height, width), 17 + batch)
        key = f"unet/{batch}x{height}x{width}"
        out[f"{key}/latents"] = latents
        sizes = torch.tensor([[8.0 * height, 8.0 * width, 5, 3, 700, 1400]])
        for timestep in (1.0, 333.25, 999.0) if batch == 1 else (500.0,):
            predicted = []
            for states, text in ((negative, negative_pooled), (positive, pooled)):
                added = {"text_embeds": text.repeat(batch, 1), "time_ids": sizes.repeat(batch, 1)}
                states = states.repeat(batch, 1, 1)
                predicted.append(pipeline.unet(latents, torch.tensor(timestep), states, added_cond_kwargs=added).sample)
            out[f"{key}/{timestep}/plain"] = predicted[1]
            out[f"{key}/{timestep}/guided"] = predicted[0] + 7.5 * (predicted[1] - predicted[0])
        if batch == 1:
            out[f"vae/{height}x{width}"] = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample


def generated(components, case):
    """One call for each seed, as a job's images are generated."""
    start = case.get("start")
    pipeline = {None: StableDiffusionXLPipeline, "image": StableDiffusionXLImg2ImgPipeline, "mask": StableDiffusionXLInpaintPipeline}[start]
    pipeline = pipeline(**components, add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    scheduler, more = SCHEDULERS[case["scheduler"]]
    pipeline.scheduler = scheduler.from_config(components["scheduler"].config, **more)
    asked = {"num_inference_steps": case["steps"], "guidance_scale": case["guidance_scale"], "output_type": "np",
             "negative_prompt": case["negative_prompt"] or None, "clip_skip": case.get("clip_skip")}  # fmt: skip
    for name in ("original_size", "crops_coords_top_left", "target_size"):
        if name in case:
            asked[name] = tuple(case[name])
    if start is None:
        asked |= {"width": case["width"], "height": case["height"]}
    else:
        asked |= {"image": Image.fromarray(image(*SIZE)), "strength": case["strength"]}
    if start == "mask":
        asked |= {"mask_image": Image.fromarray(mask(*SIZE)), "width": SIZE[0], "height": SIZE[1]}
    seed = case.get("seed", 42)
    generators = [torch.Generator().manual_seed(seed + n) for n in range(case["count"])]
    return torch.cat([pixels(pipeline(PROMPT, generator=generator, **asked).images) for generator in generators])


@torch.no_grad()
def main():
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    pipeline = checkpoint()
    out = {}
    texts(pipeline, out)
    stages(pipeline, out)
    components = {name: part for name, part in pipeline.components.items() if name not in ("image_encoder", "feature_extractor")}
    variants = {name: variant(name, 5000 + 300 * index) for index, name in enumerate(VARIANTS)}
    cases = {name: PLAIN | case for name, case in CASES.items()}
    for name, case in cases.items():
        unet = variants.get(case.get("unet"), pipeline.unet)
        out[f"image/{name}"] = generated(components | {"unet": unet}, case)
    (OUT / "cases.json").write_text(json.dumps(cases, indent=1) + "\n")
    save_file({key: value.contiguous() for key, value in out.items()}, OUT / "expected.safetensors")
    size = sum(file.stat().st_size for file in OUT.rglob("*") if file.is_file())
    print(f"{size / 1e6:.2f} MB in {OUT}")


if __name__ == "__main__":
    main()
