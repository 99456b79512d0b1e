"""Z-Image-Turbo, FLUX.1-schnell, FLUX.2 klein 4B and SDXL at their own sizes, random weights, ours in bf16 (SDXL: f16), against diffusers with the same files.

One side after the other, because a card may not hold both. Runs where it is asked for by name: it writes 75 GB, model after model.
"""

import statistics
import tempfile
from pathlib import Path

import flow
import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from engine import PEER, TINY
from gpu_run import Memory
from gpu_weights import POOL, pools, roomiest, shapes_of, shards
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

WARM_UP, RUNS = 2, 5
TIED = ("lm_head.weight", "encoder.embed_tokens.weight")
"""Tensors that are others as well: no file has them."""


def sdxl(_directory, scale):
    tokenizer = CLIPTokenizer.from_pretrained(str(TINY / "tokenizer"))
    wide = scale == "whole"
    common = {"vocab_size": 49_408 if wide else len(tokenizer)}
    first = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12, "hidden_act": "quick_gelu"}
    second = {"hidden_size": 1280, "intermediate_size": 5120, "num_attention_heads": 20, "num_hidden_layers": 32, "hidden_act": "gelu", "projection_dim": 1280}
    unet = {
        "sample_size": 128, "block_out_channels": (320, 640, 1280), "layers_per_block": 2, "cross_attention_dim": 2048, "attention_head_dim": [5, 10, 20],
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), "transformer_layers_per_block": [1, 2, 10],
    }  # fmt: skip
    if not wide:
        first |= {"hidden_size": 32, "intermediate_size": 40, "num_attention_heads": 2, "num_hidden_layers": 2}
        second |= {"hidden_size": 48, "intermediate_size": 40, "num_attention_heads": 2, "num_hidden_layers": 2, "projection_dim": 48}
        unet |= {"sample_size": 8, "block_out_channels": (32, 64, 64), "cross_attention_dim": 80, "transformer_layers_per_block": [1, 1, 1], "norm_num_groups": 8,
                 "attention_head_dim": [2, 4, 4]}  # fmt: skip
    width = second["projection_dim"] + 6 * 256
    with flow.on(scale):
        encoders = CLIPTextModel(CLIPTextConfig(**first, **common)), CLIPTextModelWithProjection(CLIPTextConfig(**second, **common))
        unet = UNet2DConditionModel(
            use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=256, projection_class_embeddings_input_dim=width, **unet
        )
    widths = (128, 256, 512, 512) if wide else (8,) * 4
    vae = AutoencoderKL(
        block_out_channels=widths, layers_per_block=2 if wide else 1, sample_size=1024, scaling_factor=0.13025, norm_num_groups=min(32, widths[0]),
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    )  # fmt: skip
    return StableDiffusionXLPipeline(
        vae=vae, text_encoder=encoders[0], text_encoder_2=encoders[1], tokenizer=tokenizer, tokenizer_2=tokenizer, unet=unet,
        scheduler=EulerDiscreteScheduler(), add_watermarker=False,
    )  # fmt: skip


def works(side):
    """By family: what makes it, and (name, what it is, the line that both sides are given)."""
    flows = lambda family, steps, name: [
        (f"{name}_look", f"one forward of the transformer, {side}x{side}", "look {0} {0} {1} {2}".format(side, *flow.LATENTS[family])),
        (f"{name}_{steps}_steps", f"an image, {side}x{side}, {steps} steps", f"generate {side} {side} {steps}"),
    ]
    images = [("sdxl_step", f"guided UNet step, {side}x{side}", f"unet {side} 2"), ("sdxl_30_steps", f"an image, {side}x{side}, 30 steps", f"generate {side} 30 1")]
    return {
        "z-image": (flow.z_image, flows("z-image", 8, "z_image")), "flux": (flow.flux, flows("flux", 4, "flux")),
        "flux2": (flow.flux2, flows("flux2", 4, "flux2_klein")), "sdxl": (sdxl, images),
    }  # fmt: skip


def written(directory, pipeline, pool):
    """The pipeline's files; what has no numbers gets those of the pool."""
    pipeline.save_config(directory)
    for name, part in pipeline.components.items():
        if not isinstance(part, torch.nn.Module) or next(part.parameters()).device.type != "meta":
            if part is not None and hasattr(part, "save_pretrained"):
                (part.bfloat16() if isinstance(part, torch.nn.Module) else part).save_pretrained(directory / name)
            continue
        is_transformers = hasattr(part.config, "save_pretrained")
        shapes = {tensor: shape for tensor, shape in shapes_of(part).items() if tensor not in TIED}
        shards(directory / name, "model" if is_transformers else "diffusion_pytorch_model", shapes, pool)
        part.config.save_pretrained(directory / name) if is_transformers else part.save_config(directory / name)


def measured(run, start, lines):
    """Of a process that has the device for itself: what it computes in, medians by the name of the work, and MiB."""
    warm_up, runs = (0, 1) if run.rehearse else (WARM_UP, RUNS)
    with Memory(run.device) as memory, start() as child:
        memory.process_id = child.process.pid
        found = {name: statistics.median([child.time(line) for _ in range(warm_up + runs)][warm_up:]) for name, _, line in lines}
        return child.computes_in, found, memory.peak_mib()


def rows(run):
    side, scale = (64, "tiny") if run.rehearse else (1024, "whole")
    pool = pools(1 << 16 if run.rehearse else POOL)
    for family, (make, lines) in works(side).items():
        with tempfile.TemporaryDirectory(dir=roomiest()) as directory:
            directory = Path(directory)
            written(directory, make(directory, scale), pool)
            sides = [lambda: run.ours(run.engine, directory), lambda: run.peer("sdxl" if family == "sdxl" else "flow", directory)]
            (ours_in, ours, our_mib), (peer_in, theirs, their_mib) = (measured(run, start, lines) for start in sides)
        for name, what, _ in lines:
            yield run.row(f"{name}: {what}; ours in {ours_in}", "seconds", ours[name], f"{PEER}, {peer_in}", theirs[name])
        yield run.row(f"{family}_peak_memory: all of it, at most; ours in {ours_in}", "MiB", our_mib, f"{PEER}, {peer_in}", their_mib)
