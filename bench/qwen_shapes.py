"""Writes a checkpoint of Qwen-Image-Edit-2511's transformer, with so many blocks, whose values are all zero, as a sparse file: for counting.

    python3 bench/qwen_shapes.py DIRECTORY BLOCKS [fp8]

With fp8 the weights of the blocks' layers are e4m3, with a scale for each row, as checkpoints in 8 bits have them.
Needs nothing but Python. All else is the bundled try-on model's, with the sizes of the text changed in the transformer alone: a look is all that
is counted. Latents have the bundled VAE's channels, 8 and not 16.
"""
import json
import pathlib
import shutil
import sys

from sd15_shapes import write

TINY = pathlib.Path(__file__).parent.parent / "models/tiny-edit"
WIDTH = 3072
HEADS = 24
# Where the published model has 3584, those of the text: here what the bundled encoder gives.
TEXT_WIDTH = json.loads((TINY / "transformer/config.json").read_text())["joint_attention_dim"]
# Inputs and outputs of a block's layers, in widths.
LAYERS = {
    "img_mod.1": (1, 6), "txt_mod.1": (1, 6),
    "attn.to_q": (1, 1), "attn.to_k": (1, 1), "attn.to_v": (1, 1), "attn.to_out.0": (1, 1),
    "attn.add_q_proj": (1, 1), "attn.add_k_proj": (1, 1), "attn.add_v_proj": (1, 1), "attn.to_add_out": (1, 1),
    "img_mlp.net.0.proj": (1, 4), "img_mlp.net.2": (4, 1), "txt_mlp.net.0.proj": (1, 4), "txt_mlp.net.2": (4, 1),
}


def transformer(blocks, fp8):
    config = json.loads((TINY / "transformer/config.json").read_text())
    tensors = {}

    def linear(name, inputs, outputs):
        tensors[f"{name}.weight"] = ("BF16", [outputs, inputs])
        tensors[f"{name}.bias"] = ("BF16", [outputs])

    linear("img_in", config["in_channels"], WIDTH)
    linear("txt_in", TEXT_WIDTH, WIDTH)
    tensors["txt_norm.weight"] = ("BF16", [TEXT_WIDTH])
    linear("time_text_embed.timestep_embedder.linear_1", 256, WIDTH)
    linear("time_text_embed.timestep_embedder.linear_2", WIDTH, WIDTH)
    linear("norm_out.linear", WIDTH, 2 * WIDTH)
    linear("proj_out", WIDTH, config["patch_size"] ** 2 * config["out_channels"])
    for block in range(blocks):
        name = f"transformer_blocks.{block}"
        for layer, (inputs, outputs) in LAYERS.items():
            linear(f"{name}.{layer}", inputs * WIDTH, outputs * WIDTH)
            if fp8:
                tensors[f"{name}.{layer}.weight"] = ("F8_E4M3", [outputs * WIDTH, inputs * WIDTH])
                tensors[f"{name}.{layer}.weight_scale"] = ("F32", [outputs * WIDTH])
        for norm in ("norm_q", "norm_k", "norm_added_q", "norm_added_k"):
            tensors[f"{name}.attn.{norm}.weight"] = ("BF16", [WIDTH // HEADS])
    return tensors


def main(directory, blocks, fp8):
    for part in ("text_encoder", "tokenizer", "processor", "scheduler", "vae"):
        shutil.copytree(TINY / part, directory / part, dirs_exist_ok=True)
    shutil.copy(TINY / "model_index.json", directory)
    write(directory / "transformer/diffusion_pytorch_model.safetensors", transformer(blocks, fp8))
    sizes = {"attention_head_dim": WIDTH // HEADS, "axes_dims_rope": [16, 56, 56], "num_attention_heads": HEADS, "num_layers": blocks}
    config = json.loads((TINY / "transformer/config.json").read_text()) | sizes
    (directory / "transformer/config.json").write_text(json.dumps(config, indent=2))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:] == ["fp8"])
