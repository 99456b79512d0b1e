"""A checkpoint under the names of Stable Diffusion's first release; used by adapters.py and tests/conformance.

diffusers' converter of single-file checkpoints decides what the old names mean.
"""

import torch
from diffusers import StableDiffusionPipeline
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
)
from safetensors.torch import load_file, save_file

OLD_RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
              "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}  # fmt: skip


def old_names(unet):
    """Old names of the UNet's modules, by diffusers' names; verified by diffusers' converter."""
    levels, layers = len(unet.down_blocks), unet.config.layers_per_block
    names = {"conv_in": "input_blocks.0.0", "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
             "conv_norm_out": "out.0", "conv_out": "out.2"}  # fmt: skip
    if getattr(unet, "add_embedding", None) is not None:
        names |= {"add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2"}

    def block(new, old, part, model):
        for name, module in model.named_modules():
            if getattr(module, "weight", None) is not None:
                names[f"{new}.{name}"] = f"{old}.{OLD_RESNET[name] if part == 'resnets' else name}"

    for level in range(levels):
        for layer in range(layers):
            for place, part in enumerate(("resnets", "attentions")):
                for module in getattr(unet.down_blocks[level], part, [None] * layers)[layer : layer + 1]:
                    if module is not None:
                        block(f"down_blocks.{level}.{part}.{layer}", f"input_blocks.{level * (layers + 1) + 1 + layer}.{place}", part, module)
        if level + 1 < levels:
            names[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{(level + 1) * (layers + 1)}.0.op"
        for layer in range(layers + 1):
            number = level * (layers + 1) + layer
            for place, part in enumerate(("resnets", "attentions")):
                for module in getattr(unet.up_blocks[level], part, [None] * (layers + 1))[layer : layer + 1]:
                    if module is not None:
                        block(f"up_blocks.{level}.{part}.{layer}", f"output_blocks.{number}.{place}", part, module)
        if level + 1 < levels:
            part = 2 if hasattr(unet.up_blocks[level], "attentions") else 1
            names[f"up_blocks.{level}.upsamplers.0.conv"] = f"output_blocks.{level * (layers + 1) + layers}.{part}.conv"
    for number, (part, place) in enumerate((("resnets", 0), ("attentions", 0), ("resnets", 1))):
        block(f"mid_block.{part}.{place}", f"middle_block.{number}", part, getattr(unet.mid_block, part)[place])

    state, config = unet.state_dict(), dict(unet.config) | {"class_embed_type": None}
    config["addition_embed_type"] = config.get("addition_embed_type")
    old = {f"model.diffusion_model.{names[key.rsplit('.', 1)[0]]}.{key.rsplit('.', 1)[1]}": value for key, value in state.items()}
    back = convert_ldm_unet_checkpoint(dict(old), config)
    assert back.keys() == state.keys() and all(torch.equal(back[key], state[key]) for key in state), "the old names are wrong"
    return names


OLD_VAE = [("conv_norm_out", "norm_out"), ("mid_block.resnets.0", "mid.block_1"), ("mid_block.resnets.1", "mid.block_2"),
           ("mid_block.attentions.0.group_norm", "mid.attn_1.norm"), ("mid_block.attentions.0.to_q", "mid.attn_1.q"),
           ("mid_block.attentions.0.to_k", "mid.attn_1.k"), ("mid_block.attentions.0.to_v", "mid.attn_1.v"),
           ("mid_block.attentions.0.to_out.0", "mid.attn_1.proj_out"), ("conv_shortcut", "nin_shortcut"),
           ("upsamplers.0.conv", "upsample.conv"), ("downsamplers.0.conv", "downsample.conv"), ("resnets", "block")]  # fmt: skip


def old_vae_names(vae, config):
    """The VAE's tensors under their old names; verified by diffusers' converter."""
    levels = len(config.block_out_channels)
    old_vae = {}
    for key, value in vae.items():
        name = key
        for new_part, old_part in OLD_VAE:
            name = name.replace(new_part, old_part)
        for level in range(levels):
            name = name.replace(f"up_blocks.{level}.", f"up.{levels - 1 - level}.").replace(f"down_blocks.{level}.", f"down.{level}.")
        if "attn_1" in name and name.endswith("weight") and value.dim() == 2:
            value = value[:, :, None, None]
        old_vae[f"first_stage_model.{name}"] = value
    back = convert_ldm_vae_checkpoint(dict(old_vae), dict(config))
    assert back.keys() == vae.keys() and all(torch.equal(back[key], vae[key]) for key in vae), "the VAE's old names are wrong"
    return old_vae


def single_file(checkpoint, file):
    """Writes a checkpoint's directory as the first release would have, dtypes kept; verified by diffusers' converters."""
    load = lambda part, name: load_file(checkpoint / part / f"{name}.safetensors")  # noqa: E731
    pipeline = StableDiffusionPipeline.from_pretrained(checkpoint, torch_dtype=torch.float32, safety_checker=None)
    unet, vae, text = load("unet", "diffusion_pytorch_model"), load("vae", "diffusion_pytorch_model"), load("text_encoder", "model")
    names = old_names(pipeline.unet)
    old = {f"model.diffusion_model.{names[key.rsplit('.', 1)[0]]}.{key.rsplit('.', 1)[1]}": value for key, value in unet.items()}
    old_vae = old_vae_names(vae, pipeline.vae.config)
    with_level = {key if key.startswith("text_model.") else f"text_model.{key}": value for key, value in text.items()}
    old_text = {f"cond_stage_model.transformer.{key}": value for key, value in with_level.items()}
    back = convert_ldm_clip_checkpoint(dict(old_text))
    assert back.keys() == with_level.keys(), "the text encoder's old names are wrong"
    extra = {"alphas_cumprod": torch.linspace(1, 0, 1000), "model_ema.decay": torch.tensor(0.9999)}
    whole = {key: value.contiguous() for key, value in (old | old_vae | old_text | extra).items()}
    save_file(whole, file)
