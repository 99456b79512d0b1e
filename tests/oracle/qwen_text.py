"""Writes tests/fixtures/qwen-text: a tiny random Qwen2.5-VL with tokenizer and image processor, and what transformers and diffusers
compute with them, for crates/engine/tests/it/parity/qwen_text.rs.

    python tests/oracle/qwen_text.py    some seconds on a CPU; the result is committed

Made with torch 2.11.0, transformers 5.23.0, diffusers 0.42.1, pillow 13.0.0. Every parameter is a seeded normal number.
Pillow 13 makes some images narrower after it has made them lower, which changes their last bits. Diffusers 0.42.1 does not show transformers 5 which tokens are images, and then it counts positions as in plain text;
version 4 found out for itself. The oracle shows it.
"""

import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from diffusers import QwenImageEditPlusPipeline
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus import calculate_dimensions
from PIL import Image
from qwen import IMAGES, randomize
from safetensors.torch import load_file, save_file
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "models/train/edit"), str(ROOT / "models/train")]
import words  # noqa: E402

HERE = ROOT / "tests/fixtures/qwen-text"
CONDITION_AREA = 168 * 168  # in place of 384 * 384; six tokens a side: one whole window and several that are cut
PROMPTS = {
    "plain": ("Dress the person in image 1 in the garment of image 2.", ["person", "garment"]),
    "blank": (" ", ["person", "garment"]),
    "odd": ("Größe XL's 衣服…\n\n  7, <|ok|>?", ["garment", "shoes", "person"]),
    "alone": ("put it on", ["shoes"]),
}
RESIZED = [(96, 128, 50, 31), (120, 75, 121, 200), (70, 70, 70, 33), (96, 128, 13, 128), (31, 17, 64, 90),
           # The height is first where it shrinks by more than twice what the width does: at, above and below that.
           (60, 80, 50, 60), (60, 80, 50, 59), (60, 80, 50, 61), (60, 80, 75, 79), (90, 80, 91, 81), (200, 90, 80, 20)]  # fmt: skip


def text_encoder(tokenizer):
    ids = tokenizer.convert_tokens_to_ids
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer) + 3, "hidden_size": 48, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 6,
            "num_key_value_heads": 2, "max_position_embeddings": 1024, "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]},
        },
        vision_config={
            "depth": 3, "hidden_size": 24, "intermediate_size": 20, "num_heads": 2, "out_hidden_size": 48, "patch_size": 14,
            "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 112, "fullatt_block_indexes": [1],
        },
        image_token_id=ids("<|image_pad|>"), video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"), vision_end_token_id=ids("<|vision_end|>"), tie_word_embeddings=False,
    )  # fmt: skip
    randomize(Qwen2_5_VLForConditionalGeneration(config), 6000).save_pretrained(HERE / "text_encoder", max_shard_size="120KB")
    old_names(HERE / "text_encoder")
    return told_what_is_a_image(Qwen2_5_VLForConditionalGeneration.from_pretrained(HERE / "text_encoder", torch_dtype=torch.float32).eval())


def told_what_is_a_image(encoder):
    forward = encoder.forward

    def told(input_ids, **kwargs):
        return forward(input_ids, mm_token_type_ids=(input_ids == encoder.config.image_token_id).int(), **kwargs)

    encoder.forward = told
    return encoder


def old_names(directory):
    """The names that the real checkpoint has: transformers renames them when it reads and writes."""
    names = [name for path in directory.glob("*.safetensors") for name in load_file(path)]
    assert any(name.startswith("visual.") for name in names) and any(name.startswith("model.layers.") for name in names), names[:4]


class Processor:
    """transformers' Qwen2VLProcessor without its video half, which needs torchvision."""

    def __init__(self, tokenizer, images):
        self.tokenizer, self.images = tokenizer, images

    def __call__(self, text, images, padding, return_tensors):
        shown = self.images(images, return_tensors="pt")
        (text,) = text
        for grid in shown["image_grid_thw"]:
            text = text.replace("<|image_pad|>", "<|placeholder|>" * (int(grid.prod()) // 4), 1)
        inputs = self.tokenizer([text.replace("<|placeholder|>", "<|image_pad|>")], return_tensors="pt")
        inputs.update(shown)
        return inputs


def condition(image):
    width, height = calculate_dimensions(CONDITION_AREA, image.width / image.height)
    return VaeImageProcessor(vae_scale_factor=16).resize(image, height, width)


@torch.no_grad()
def main():
    shutil.rmtree(HERE, ignore_errors=True)
    HERE.mkdir(parents=True)
    tokenizer = words.write(HERE)
    images = words.new_image_processor()
    encoder = text_encoder(tokenizer)
    out = {}
    for name, image in IMAGES.items():
        shown = images(condition(image), return_tensors="pt")
        out[f"patches/{name}"] = shown["pixel_values"][::9].contiguous()
        out[f"vision/{name}"] = encoder.model.visual(shown["pixel_values"], grid_thw=shown["image_grid_thw"]).pooler_output
        out[f"grid/{name}"] = shown["image_grid_thw"][0]
        out[f"input/{name}"] = torch.from_numpy(np.asarray(image).copy())
    pipeline = QwenImageEditPlusPipeline(None, None, encoder, tokenizer, Processor(tokenizer, images), None)
    for key, (prompt, names) in PROMPTS.items():
        shown = [condition(IMAGES[name]) for name in names]
        out[f"hidden/{key}"], _ = pipeline.encode_prompt(prompt, image=shown, device="cpu")
    for index, (width, height, wide, high) in enumerate(RESIZED):
        image = Image.fromarray(np.random.default_rng(index).integers(0, 256, (height, width, 3), np.uint8))
        out[f"resize/{index}/input"] = torch.from_numpy(np.asarray(image).copy())
        for name, filter_ in [("lanczos", Image.LANCZOS), ("bicubic", Image.BICUBIC)]:
            out[f"resize/{index}/{name}"] = torch.from_numpy(np.asarray(image.resize((wide, high), filter_)).copy())
    save_file({k: v.contiguous() for k, v in out.items()}, HERE / "expected.safetensors")


if __name__ == "__main__":
    main()
