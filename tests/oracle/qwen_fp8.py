"""Writes tests/fixtures/qwen/rounded.safetensors: 8-bit layers as a GPU has them, whose tokens are rounded to 8 bits as well.

    python tests/oracle/qwen_fp8.py    seconds on a CPU, after qwen.py; the result is committed

diffusers' transformer with each 8-bit layer replaced by LightX2V's arithmetic (`MMWeightWfp8channelAfp8channeldynamicSgl`): each token over its largest
magnitude / 448, rounded to e4m3; the product rounded to bf16, times both scales, plus the bias. All in double precision (`exact`), and six times more
with inputs that are off by 3e-6 of themselves, as far as another order of f32's sums goes (`runs`). Last bits decide here and there to which side a
value is rounded, and that is a sixteenth of the value: how far the runs are from the first is how far a right implementation may be.
"""

import torch
from diffusers import AutoencoderKLQwenImage, FlowMatchEulerDiscreteScheduler, QwenImageTransformer2DModel
from qwen import HERE, LIGHTNING, forward, normals, pipeline_of
from safetensors.torch import load_file, save_file
from torch import nn

OFF = 3e-6
SPELLINGS = ("channel", "channel_flat", "tensor", "bare")


class Rounded(nn.Module):
    """A linear layer with an 8-bit weight (out, in) and its scale, (out, 1) or one number."""

    def __init__(self, bits, scale, bias, low_rank):
        super().__init__()
        self.bits, self.scale, self.bias = bits.double(), scale.flatten().double(), bias.double()
        self.low_rank = low_rank

    def forward(self, tokens):
        # The scale is f32's, and so is what is divided by it.
        scale = (tokens.float().abs().amax(-1, keepdim=True) / 448).clamp(min=1e-12)
        rounded = (tokens.float() / scale).to(torch.float8_e4m3fn).to(tokens.dtype)
        product = (rounded @ self.bits.T).to(torch.bfloat16).to(tokens.dtype)
        output = product * scale.to(tokens.dtype) * self.scale + self.bias
        # A LoRA's matrices stand beside the weight, and get the tokens as they are.
        for down, up in self.low_rank:
            output = output + tokens @ down.double().T @ up.double().T
        return output


def low_rank(lora):
    """Down and up matrices of a LoRA by module, alpha in the latter, as diffusers reads the file."""
    transformer = QwenImageTransformer2DModel.from_pretrained(HERE / "edit/transformer", torch_dtype=torch.float32)
    vae = AutoencoderKLQwenImage.from_pretrained(HERE / "edit/vae")
    pipeline = pipeline_of(transformer, vae, FlowMatchEulerDiscreteScheduler(**LIGHTNING))
    pipeline.load_lora_weights(HERE / "loras", weight_name=f"{lora}.safetensors", adapter_name=lora)
    adapted = {name: module for name, module in pipeline.transformer.named_modules() if hasattr(module, "lora_A") and lora in module.lora_A}
    return {name: [(module.lora_A[lora].weight, module.lora_B[lora].weight * module.scaling[lora])] for name, module in adapted.items()}


def rounded(spelling, beside):
    """The transformer of a fixture's file, with `Rounded` where the file has 8 bits, and these matrices beside them."""
    tensors = load_file(HERE / f"fp8/{spelling}.safetensors")
    tensors = {name.removeprefix("model.diffusion_model."): value for name, value in tensors.items()}
    transformer = QwenImageTransformer2DModel.from_pretrained(HERE / "edit/transformer", torch_dtype=torch.float32).double().eval()
    for name, bits in tensors.items():
        if bits.dtype != torch.float8_e4m3fn or not name.endswith(".weight"):
            continue
        module = name.removesuffix(".weight")
        scale = tensors.get(f"{module}.weight_scale", tensors.get(f"{module}.scale_weight", torch.tensor(1.0)))
        above, _, last = module.rpartition(".")
        setattr(transformer.get_submodule(above), last, Rounded(bits, scale, tensors[f"{module}.bias"], beside.pop(module, [])))
    assert not beside, f"a LoRA adapts layers that are not in 8 bits: {beside.keys()}"
    return transformer


def seen(transformer, inputs):
    inputs = dict(inputs)
    forward(transformer, inputs, "seen")
    return inputs["seen"]


@torch.no_grad()
def main():
    given, out = load_file(HERE / "expected.safetensors"), {}
    given = {name: given[name].double() for name in ("text/positive", "forward/tokens")}
    for name in (*SPELLINGS, "channel_lightning"):
        spelling, _, lora = name.partition("_light")
        transformer = rounded(spelling, low_rank("lightning") if lora else {})
        out[f"{name}/exact"] = seen(transformer, given)
        runs = [seen(transformer, {key: value * (1 + normals(value.shape, seed, OFF).double()) for key, value in given.items()}) for seed in range(6)]
        out[f"{name}/runs"] = torch.stack(runs)
    out = {name: value.float().contiguous() for name, value in out.items()}
    save_file(out, HERE / "rounded.safetensors")
    (HERE / "rounded.safetensors").chmod(0o644)


if __name__ == "__main__":
    main()
