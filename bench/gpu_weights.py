"""Qwen-Image-Edit-2511's files at its own sizes with random weights, written as fast as the disk takes them.

Making 28 billion random numbers would take longer than writing them: every tensor is a stretch of the same few millions.
"""

import json
import os
import shutil
import struct
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from diffusers import AutoencoderKLQwenImage, FlowMatchEulerDiscreteScheduler, QwenImageTransformer2DModel
from engine import ROOT
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

sys.path[:0] = [str(ROOT / "models/train/edit"), str(ROOT / "models/train")]
import export  # noqa: E402
import words  # noqa: E402

BLOCKS = 60
WRITING_SECONDS = 40
"""That the transformer's files may take."""
WRITTEN = 1.5
"""Bytes of them for each in bf16: they are written in 8 bits as well."""
POOL = 1 << 23
WRITERS = 8
BYTES = {"BF16": 2, "F8_E4M3": 1, "F32": 4}
KEPT_FREE_BYTES = 4 << 30
"""Of the disk."""
IN_MEMORY = "/dev/shm"
MEMORY_FOR_OTHERS_BYTES = 24 << 30
"""What both sides take of the host's memory, where the files are in memory as well."""


def pools(pool):
    """Numbers as they lie in files, by what they are for: weights, gains of norms, 8-bit weights and their scales."""
    normals = torch.randn(pool, generator=torch.Generator().manual_seed(1))
    eight = (normals * 50).clamp(-440, 440).to(torch.float8_e4m3fn)
    weights, gains = (normals * 0.02).bfloat16(), (normals * 0.02 + 1).bfloat16()
    kinds = {"weight": weights, "gain": gains, "F8_E4M3": eight, "F32": normals.abs() * 1e-5 + 4e-4}
    return {kind: memoryview(numbers.view(torch.uint8).numpy()) for kind, numbers in kinds.items()}


def write(path, tensors, pool):
    """A safetensors file of [(name, dtype, shape)]."""
    table, end = {}, 0
    for name, dtype, shape in tensors:
        begin, end = end, end + BYTES[dtype] * torch.Size(shape).numel()
        table[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    header = json.dumps(table).encode()
    header += b" " * (-len(header) % 8)
    with open(path, "wb", buffering=0) as file:
        file.write(struct.pack("<Q", len(header)) + header)
        for name, dtype, shape in tensors:
            kind = dtype if dtype != "BF16" else "gain" if "norm" in name and len(shape) == 1 and name.endswith("weight") else "weight"
            numbers, left = pool[kind], BYTES[dtype] * torch.Size(shape).numel()
            while left:
                left -= file.write(numbers[: min(left, len(numbers))])


def shards(directory, stem, shapes, pool):
    """`shapes` in bf16, a file a block and one for the rest, with their index."""
    directory.mkdir(parents=True, exist_ok=True)
    files = {}
    for name, shape in shapes.items():
        block = [part for part in name.split(".") if part.isdigit()][:1]
        key = f"{name.split('.' + block[0] + '.')[0]}.{block[0]}" if block else "rest"
        files.setdefault(f"{stem}-{key}.safetensors", []).append((name, "BF16", shape))
    with ThreadPoolExecutor(WRITERS) as writers:
        list(writers.map(lambda item: write(directory / item[0], item[1], pool), files.items()))
    index = {name: file for file, tensors in files.items() for name, _, _ in tensors}
    table = {"metadata": {"total_size": bytes_of(shapes)}, "weight_map": index}
    (directory / f"{stem}.safetensors.index.json").write_text(json.dumps(table))


def shapes_of(model):
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def bytes_of(shapes):
    return sum(BYTES["BF16"] * torch.Size(shape).numel() for shape in shapes.values())


def config_of(tokenizer, tiny):
    """Qwen2.5-VL 7B's, or for a rehearsal as small as it gets."""
    ids = tokenizer.convert_tokens_to_ids
    text = {
        "vocab_size": 152_064, "hidden_size": 3584, "intermediate_size": 18_944, "num_hidden_layers": 28, "num_attention_heads": 28,
        "num_key_value_heads": 4, "rms_norm_eps": 1e-6, "bos_token_id": 0, "eos_token_id": 0, "tie_word_embeddings": False,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3] if tiny else [16, 24, 24]},
    }  # fmt: skip
    vision = {
        "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584,
        "fullatt_block_indexes": [7, 15, 23, 31],
    }  # fmt: skip
    if tiny:
        text |= {"vocab_size": len(tokenizer), "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
                 "num_key_value_heads": 2}  # fmt: skip
        vision |= {
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 40,
            "num_heads": 2,
            "out_hidden_size": 64,
            "fullatt_block_indexes": [1],
        }
    return Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, image_token_id=ids("<|image_pad|>"), video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"), vision_end_token_id=ids("<|vision_end|>"), tie_word_embeddings=False,
    )  # fmt: skip


def transformer_of(tiny, blocks):
    """Sizes without numbers."""
    small = {"num_attention_heads": 2, "attention_head_dim": 16, "joint_attention_dim": 64, "axes_dims_rope": (4, 8, 4)} if tiny else {}
    with torch.device("meta"):
        return QwenImageTransformer2DModel(num_layers=blocks, zero_cond_t=True, guidance_embeds=False, **small)


def room_in(place):
    """Bytes that can be written there."""
    free = shutil.disk_usage(place).free - KEPT_FREE_BYTES
    if place != IN_MEMORY:
        return free
    available = int(Path("/proc/meminfo").read_text().split("MemAvailable:")[1].split()[0]) * 1024
    return min(free, available - MEMORY_FOR_OTHERS_BYTES)


def roomiest():
    """Memory or disk."""
    return max((place for place in (tempfile.gettempdir(), IN_MEMORY) if os.path.isdir(place)), key=room_in)


def all_but_the_transformer(directory, tiny, pool):
    """In bf16; returns how many bytes a second were written."""
    start = time.perf_counter()
    with torch.device("meta"):
        encoder = Qwen2_5_VLForConditionalGeneration(config_of(words.write(directory), tiny))
    shapes = shapes_of(encoder)
    shards(directory / "text_encoder", "model", shapes, pool)
    encoder.config.save_pretrained(directory / "text_encoder")
    seconds = time.perf_counter() - start
    small = {"base_dim": 8, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1} if tiny else {}
    AutoencoderKLQwenImage(attn_scales=[], **small).bfloat16().save_pretrained(directory / "vae")
    FlowMatchEulerDiscreteScheduler(**export.SCHEDULE).save_pretrained(directory / "scheduler")
    (directory / "model_index.json").write_text('{"_class_name": "QwenImageEditPlusPipeline"}\n')
    return bytes_of(shapes) / seconds


def affordable_blocks(place, bytes_a_second):
    """As many as there is room and time for: the real model's, where it can be."""
    one, two = (bytes_of(shapes_of(transformer_of(False, blocks))) for blocks in (1, 2))
    writable = min(room_in(place), WRITING_SECONDS * bytes_a_second / WRITTEN)
    return max(1, min(BLOCKS, 1 + int((writable - one) // (two - one))))


def whole(directory, transformer, pool):
    """The transformer in bf16."""
    shards(directory / "transformer", "diffusion_pytorch_model", shapes_of(transformer), pool)
    transformer.save_config(directory / "transformer")


def eight_bit(path, transformer, pool):
    """The transformer in one file as LightX2V writes it: the blocks' matrices in e4m3, a scale a row."""
    tensors = []
    for name, shape in shapes_of(transformer).items():
        quantised = name.startswith("transformer_blocks.") and name.endswith(".weight") and len(shape) == 2
        tensors.append((name, "F8_E4M3" if quantised else "BF16", shape))
        if quantised:
            tensors.append((f"{name}_scale", "F32", (shape[0], 1)))
    write(path, tensors, pool)
