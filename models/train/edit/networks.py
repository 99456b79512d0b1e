"""The shapes of tiny-edit's networks, and the autoencoder's one-frame path at the speed of its 2D convolutions."""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel
from diffusers.models.autoencoders import autoencoder_kl_qwenimage
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

LATENT_CHANNELS = 8
TEXT_WIDTH = 64
CONDITION_PX = 72 * 96
"""Images are shown to the text encoder in this many pixels (384x384 in the real model)."""
REFERENCE_PX = 96 * 128
"""Images are references in this many pixels (1024x1024 in the real model)."""


def one_frame_convolution(self, x, cache_x=None):
    """A causal 3D convolution of a single frame sees zeros before it: only its last slice in time counts."""
    left, right, top, bottom = self._padding[:4]
    weight = self.weight[:, :, -1]
    frame = F.conv2d(F.pad(x[:, :, 0], (left, right, top, bottom)), weight, self.bias, self.stride[1:])
    return frame.unsqueeze(2)


def new_vae(mean=None, std=None):
    autoencoder_kl_qwenimage.QwenImageCausalConv3d.forward = one_frame_convolution
    return AutoencoderKLQwenImage(
        base_dim=16, z_dim=LATENT_CHANNELS, dim_mult=[1, 2, 3, 3], num_res_blocks=1, attn_scales=[],
        temperal_downsample=[False, True, True], latents_mean=mean or [0.0] * LATENT_CHANNELS, latents_std=std or [1.0] * LATENT_CHANNELS,
    )  # fmt: skip


def new_transformer():
    return QwenImageTransformer2DModel(
        patch_size=2, in_channels=4 * LATENT_CHANNELS, out_channels=LATENT_CHANNELS, num_layers=6,
        attention_head_dim=32, num_attention_heads=4, joint_attention_dim=TEXT_WIDTH, axes_dims_rope=(8, 12, 12),
        guidance_embeds=False, zero_cond_t=True,
    )  # fmt: skip


def new_text_encoder(tokenizer):
    """Random weights: what it says of the images is a fixed random projection of them, which the transformer learns to read."""
    ids = tokenizer.convert_tokens_to_ids
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer), "hidden_size": TEXT_WIDTH, "intermediate_size": 128, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 1024, "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]}, "tie_word_embeddings": False,
            "bos_token_id": ids("<|im_start|>"), "eos_token_id": ids("<|im_end|>"),
        },
        vision_config={
            "depth": 2, "hidden_size": 48, "intermediate_size": 96, "num_heads": 3, "out_hidden_size": TEXT_WIDTH,
            "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 112, "fullatt_block_indexes": [1],
        },
        image_token_id=ids("<|image_pad|>"), video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"), vision_end_token_id=ids("<|vision_end|>"), tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(41)
    return Qwen2_5_VLForConditionalGeneration(config).eval()


def to_tensor(images):
    """(n, h, w, 3) uint8 to (n, 3, 1, h, w) from -1 to 1: the autoencoder's images are films of one frame."""
    return (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1).unsqueeze(2).contiguous()


def pack(latents):
    """(B, C, h, w) to (B, (h/2)(w/2), 4C)."""
    b, c, h, w = latents.shape
    return latents.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // 4, 4 * c)


def unpack(tokens, h, w):
    """The inverse of `pack`; h and w in latents."""
    b, _, c = tokens.shape
    return tokens.view(b, h // 2, w // 2, c // 4, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(b, c // 4, h, w)
