"""Writes a checkpoint of Stable Diffusion 1.5's shapes, with a ControlNet beside it, whose values are all zero, as sparse files: for counting, not for generating.

    python3 bench/sd15_shapes.py DIRECTORY

Needs nothing but Python. Configurations, tokenizer and scheduler are the bundled model's, with the sizes changed.
"""
import json
import math
import pathlib
import shutil
import sys

TINY = pathlib.Path(__file__).parent.parent / "models/tiny-sd"
WIDTHS = [320, 640, 1280, 1280]
VAE_WIDTHS = [128, 256, 512, 512]
HINT_WIDTHS = [16, 32, 96, 256]
TEXT_WIDTH = 768
TIME_WIDTH = 4 * WIDTHS[0]
BYTES = {"F8_E4M3": 1, "F16": 2, "BF16": 2, "F32": 4}


class Tensors(dict):
    """Format and shape by name."""

    def tensor(self, name, *shape):
        self[name] = ("F16", list(shape))

    def linear(self, name, outputs, inputs, bias=True):
        self.tensor(f"{name}.weight", outputs, inputs)
        if bias:
            self.tensor(f"{name}.bias", outputs)

    def conv(self, name, outputs, inputs, kernel):
        self.tensor(f"{name}.weight", outputs, inputs, kernel, kernel)
        self.tensor(f"{name}.bias", outputs)

    def norm(self, name, channels):
        self.tensor(f"{name}.weight", channels)
        self.tensor(f"{name}.bias", channels)

    def resnet(self, name, inputs, outputs, time):
        self.norm(f"{name}.norm1", inputs)
        self.conv(f"{name}.conv1", outputs, inputs, 3)
        if time:
            self.linear(f"{name}.time_emb_proj", outputs, TIME_WIDTH)
        self.norm(f"{name}.norm2", outputs)
        self.conv(f"{name}.conv2", outputs, outputs, 3)
        if inputs != outputs:
            self.conv(f"{name}.conv_shortcut", outputs, inputs, 1)

    def transformer(self, name, channels):
        self.norm(f"{name}.norm", channels)
        self.conv(f"{name}.proj_in", channels, channels, 1)
        block = f"{name}.transformer_blocks.0"
        for norm in "123":
            self.norm(f"{block}.norm{norm}", channels)
        for attention, context in (("attn1", channels), ("attn2", TEXT_WIDTH)):
            for part, inputs in (("to_q", channels), ("to_k", context), ("to_v", context)):
                self.linear(f"{block}.{attention}.{part}", channels, inputs, bias=False)
            self.linear(f"{block}.{attention}.to_out.0", channels, channels)
        self.linear(f"{block}.ff.net.0.proj", 8 * channels, channels)
        self.linear(f"{block}.ff.net.2", channels, 4 * channels)
        self.conv(f"{name}.proj_out", channels, channels, 1)

    def vae_middle(self, name, channels):
        self.resnet(f"{name}.resnets.0", channels, channels, time=False)
        self.norm(f"{name}.attentions.0.group_norm", channels)
        for part in ("to_q", "to_k", "to_v", "to_out.0"):
            self.linear(f"{name}.attentions.0.{part}", channels, channels)
        self.resnet(f"{name}.resnets.1", channels, channels, time=False)


def way_down(tensors):
    """Up to the middle and with it; the channels of every layer that the way up looks at."""
    tensors.conv("conv_in", WIDTHS[0], 4, 3)
    tensors.linear("time_embedding.linear_1", TIME_WIDTH, WIDTHS[0])
    tensors.linear("time_embedding.linear_2", TIME_WIDTH, TIME_WIDTH)
    inputs = WIDTHS[0]
    skips = [inputs]
    for level, width in enumerate(WIDTHS):
        last = level == len(WIDTHS) - 1
        for layer in range(2):
            tensors.resnet(f"down_blocks.{level}.resnets.{layer}", inputs, width, time=True)
            if not last:
                tensors.transformer(f"down_blocks.{level}.attentions.{layer}", width)
            inputs = width
            skips.append(width)
        if not last:
            tensors.conv(f"down_blocks.{level}.downsamplers.0.conv", width, width, 3)
            skips.append(width)
    for layer in range(2):
        tensors.resnet(f"mid_block.resnets.{layer}", inputs, inputs, time=True)
    tensors.transformer("mid_block.attentions.0", inputs)
    return skips


def unet():
    tensors = Tensors()
    skips = way_down(tensors)
    inputs = WIDTHS[-1]
    for level, width in enumerate(reversed(WIDTHS)):
        for layer in range(3):
            tensors.resnet(f"up_blocks.{level}.resnets.{layer}", inputs + skips.pop(), width, time=True)
            if level > 0:
                tensors.transformer(f"up_blocks.{level}.attentions.{layer}", width)
            inputs = width
        if level < len(WIDTHS) - 1:
            tensors.conv(f"up_blocks.{level}.upsamplers.0.conv", width, width, 3)
    tensors.norm("conv_norm_out", WIDTHS[0])
    tensors.conv("conv_out", 4, WIDTHS[0], 3)
    return tensors


def controlnet():
    """The way down of a UNet, a convolution over each layer's output, and those over the image, which is eight times as large as the latents."""
    tensors = Tensors()
    for index, channels in enumerate(way_down(tensors)):
        tensors.conv(f"controlnet_down_blocks.{index}", channels, channels, 1)
    tensors.conv("controlnet_mid_block", WIDTHS[-1], WIDTHS[-1], 1)
    image = "controlnet_cond_embedding"
    tensors.conv(f"{image}.conv_in", HINT_WIDTHS[0], 3, 3)
    for index, (width, next_width) in enumerate(zip(HINT_WIDTHS, HINT_WIDTHS[1:])):
        tensors.conv(f"{image}.blocks.{2 * index}", width, width, 3)
        tensors.conv(f"{image}.blocks.{2 * index + 1}", next_width, width, 3)
    tensors.conv(f"{image}.conv_out", WIDTHS[0], HINT_WIDTHS[-1], 3)
    return tensors


def vae():
    tensors = Tensors()
    for side, widths, outside, layers in (("encoder", VAE_WIDTHS, (3, 8), 2), ("decoder", VAE_WIDTHS[::-1], (4, 3), 3)):
        block, sampler = ("down_blocks", "downsamplers") if side == "encoder" else ("up_blocks", "upsamplers")
        inputs = widths[0]
        tensors.conv(f"{side}.conv_in", inputs, outside[0], 3)
        for level, width in enumerate(widths):
            for layer in range(layers):
                tensors.resnet(f"{side}.{block}.{level}.resnets.{layer}", inputs, width, time=False)
                inputs = width
            if level < len(widths) - 1:
                tensors.conv(f"{side}.{block}.{level}.{sampler}.0.conv", width, width, 3)
        tensors.vae_middle(f"{side}.mid_block", VAE_WIDTHS[-1])
        tensors.norm(f"{side}.conv_norm_out", inputs)
        tensors.conv(f"{side}.conv_out", outside[1], inputs, 3)
    tensors.conv("quant_conv", 8, 8, 1)
    tensors.conv("post_quant_conv", 4, 4, 1)
    return tensors


def text_encoder():
    tensors = Tensors()
    model = "text_model"
    tensors.tensor(f"{model}.embeddings.token_embedding.weight", 49408, TEXT_WIDTH)
    tensors.tensor(f"{model}.embeddings.position_embedding.weight", 77, TEXT_WIDTH)
    for index in range(12):
        layer = f"{model}.encoder.layers.{index}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            tensors.linear(f"{layer}.self_attn.{part}", TEXT_WIDTH, TEXT_WIDTH)
        tensors.norm(f"{layer}.layer_norm1", TEXT_WIDTH)
        tensors.norm(f"{layer}.layer_norm2", TEXT_WIDTH)
        tensors.linear(f"{layer}.mlp.fc1", 4 * TEXT_WIDTH, TEXT_WIDTH)
        tensors.linear(f"{layer}.mlp.fc2", TEXT_WIDTH, 4 * TEXT_WIDTH)
    tensors.norm(f"{model}.final_layer_norm", TEXT_WIDTH)
    return tensors


def write(path, tensors):
    """`tensors`: format and shape by name."""
    header, offset = {}, 0
    for name, (dtype, shape) in tensors.items():
        size = BYTES[dtype] * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + offset)


def configure(directory, part, **changes):
    config = json.loads((TINY / part / "config.json").read_text()) | changes
    (directory / part / "config.json").write_text(json.dumps(config, indent=2))


def main(directory):
    write(directory / "unet/diffusion_pytorch_model.safetensors", unet())
    write(directory / "controlnet/diffusion_pytorch_model.safetensors", controlnet())
    write(directory / "vae/diffusion_pytorch_model.safetensors", vae())
    write(directory / "text_encoder/model.safetensors", text_encoder())
    configure(directory, "unet", attention_head_dim=8, block_out_channels=WIDTHS, cross_attention_dim=TEXT_WIDTH, layers_per_block=2,
              sample_size=64, norm_num_groups=32, down_block_types=["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
              up_block_types=["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3)
    of_unet = json.loads((directory / "unet/config.json").read_text())
    shared = ("attention_head_dim", "block_out_channels", "cross_attention_dim", "down_block_types", "in_channels", "layers_per_block", "norm_num_groups")
    of_image = {"_class_name": "ControlNetModel", "conditioning_embedding_out_channels": HINT_WIDTHS}
    (directory / "controlnet/config.json").write_text(json.dumps(of_image | {name: of_unet[name] for name in shared}, indent=2))
    configure(directory, "vae", block_out_channels=VAE_WIDTHS, layers_per_block=2, norm_num_groups=32, sample_size=512)
    configure(directory, "text_encoder", hidden_size=TEXT_WIDTH, intermediate_size=4 * TEXT_WIDTH, num_attention_heads=12,
              num_hidden_layers=12, vocab_size=49408, projection_dim=TEXT_WIDTH)
    shutil.copy(TINY / "model_index.json", directory)
    for part in ("tokenizer", "scheduler"):
        shutil.copytree(TINY / part, directory / part, dirs_exist_ok=True)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
