"""What the transformer is trained on, computed once: latents of all images and the text encoder's hidden states.

    python prepare.py DATA AUTOENCODER.pt OUT.pt       a few minutes; resumes nothing

Writes `latents` (n, 3, 8, 16, 12) f16, each channel with mean 0 and deviation 1, their `mean` and `std`, and `hidden`
(n, 2, tokens, 64) f16: under the instruction, and under the single blank that the pipeline's users give as negative prompt.
"""

import sys

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus import calculate_dimensions
from networks import CONDITION_PX, new_text_encoder, new_vae, to_tensor
from people import load
from PIL import Image
from words import DROPPED, INSTRUCTION, new_image_processor, new_tokenizer, template

from common import restore, save


@torch.no_grad()
def averaged(vae, state):
    for p, shadow in zip(vae.parameters(), state["ema"]):
        p.copy_(shadow)
    return vae.eval()


def condition(image):
    """As the pipeline shows an image to its text encoder, before the processor."""
    width, height = calculate_dimensions(CONDITION_PX, image.shape[1] / image.shape[0])
    return VaeImageProcessor(vae_scale_factor=16).resize(Image.fromarray(np.asarray(image)), height, width)


def token_ids(tokenizer, prompt, grids):
    text = template().format("".join(f"Picture {n + 1}: <|vision_start|>{'<|image_pad|>' * (int(g.prod()) // 4)}<|vision_end|>" for n, g in enumerate(grids)) + prompt)
    return tokenizer(text, return_tensors="pt").input_ids


@torch.no_grad()
def hidden_states(encoder, tokenizer, processor, pairs, prompt):
    """pairs: (n, 2, h, w, 3) uint8, person and garment. Returns (n, tokens, 64)."""
    shown = processor([condition(p) for pair in pairs for p in pair], return_tensors="pt")
    ids = token_ids(tokenizer, prompt, shown["image_grid_thw"][:2]).repeat(len(pairs), 1)
    kinds = (ids == encoder.config.image_token_id).int()
    out = encoder(
        input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=shown["pixel_values"], image_grid_thw=shown["image_grid_thw"],
        mm_token_type_ids=kinds, output_hidden_states=True, use_cache=False, logits_to_keep=1,
    )  # fmt: skip
    return out.hidden_states[-1][:, DROPPED:]


@torch.no_grad()
def main():
    directory, checkpoint, out = sys.argv[1:4]
    torch.set_num_threads(1)
    images = load(directory)
    vae = averaged(new_vae(), restore(checkpoint))
    flat = images.reshape(-1, *images.shape[2:])
    latents = torch.cat([vae.encode(to_tensor(flat[i : i + 60])).latent_dist.mode()[:, :, 0] for i in range(0, len(flat), 60)])
    mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    latents = ((latents - mean[:, None, None]) / std[:, None, None]).unflatten(0, (-1, 3))
    print("mean", mean.tolist(), "std", std.tolist(), flush=True)
    tokenizer, processor = new_tokenizer(), new_image_processor()
    encoder = new_text_encoder(tokenizer)
    hidden = []
    for i in range(0, len(images), 50):
        both = [hidden_states(encoder, tokenizer, processor, images[i : i + 50, :2], prompt) for prompt in (INSTRUCTION, " ")]
        longest = max(h.shape[1] for h in both)
        padded = [torch.nn.functional.pad(h, (0, 0, 0, longest - h.shape[1])) for h in both]
        hidden.append(torch.stack(padded, 1).half())
        lengths = [h.shape[1] for h in both]
    save(out, {"latents": latents.half(), "mean": mean, "std": std, "hidden": torch.cat(hidden), "lengths": lengths})
    print(len(images), "examples; hidden states", tuple(hidden[0].shape), "lengths", lengths)


if __name__ == "__main__":
    main()
