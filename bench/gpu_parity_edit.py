"""The try-on model's stages on a GPU against diffusers and transformers, with whole weights, 8-bit weights and a LoRA."""

import sys
import tempfile
from functools import partial
from pathlib import Path

import torch
from diffusers import AutoencoderKLQwenImage, QwenImageEditPlusPipeline, QwenImageTransformer2DModel
from engine import ROOT
from gpu_stages import Stages, compared
from safetensors.torch import load_file
from transformers import Qwen2_5_VLForConditionalGeneration

sys.path[:0] = [str(ROOT / part) for part in ("tests/oracle", "models/train/edit", "models/train")]
import export  # noqa: E402
import qwen_text  # noqa: E402
import words  # noqa: E402

FIXTURES = ROOT / "tests/fixtures"
GRIDS = [(7, 5), (6, 6), (3, 8)]
"""In tokens: the output, then references."""
SIDES = [(384, 384), (320, 448)]
"""Of images, (width, height), that the text encoder is shown as they are: Pillow's versions differ in how they make others smaller."""
INSTRUCTION = "Dress the person in image 1 in the garment of image 2."
EIGHT_BIT = {"fp8, a scale a row": "channel", "fp8, a scale a matrix": "tensor", "fp8 without scales": "bare"}


def checkpoint(directory):
    """One directory out of two fixtures: the text encoder is one of its own."""
    for part in [*(FIXTURES / "qwen/edit").iterdir(), *(FIXTURES / "qwen-text").iterdir()]:
        if part.suffix != ".safetensors":
            (directory / part.name).symlink_to(part)
    return directory


def stored_in(path):
    return {name.removeprefix("model.diffusion_model."): value for name, value in load_file(path).items()}


def whole(path):
    """8-bit weights times their scales."""
    stored = {name: value.float() for name, value in stored_in(path).items()}
    scales = {name: value for name, value in stored.items() if name.endswith(("weight_scale", "scale_weight"))}
    state = {name: value for name, value in stored.items() if name not in scales and name != "scaled_fp8"}
    for name, scale in scales.items():
        state[name.rsplit(".", 1)[0] + ".weight"] *= scale.reshape(-1, 1)
    return state


def rounded(_module, inputs):
    """As LightX2V gives a layer its tokens: e4m3 numbers, a scale a token."""
    (tokens,) = inputs
    scale = (tokens.float().abs().amax(-1, keepdim=True) / export.LARGEST).clamp(min=1e-12)
    return ((tokens.float() / scale).to(torch.float8_e4m3fn).float() * scale).to(tokens.dtype)


class Diffusers:
    """The stages as diffusers has them; inputs and outputs as crates/engine/bench/edit.rs says."""

    def __init__(self, directory, device, eight_bit=None, lora=None):
        self.device, self.eight_bit, self.hooks = device, eight_bit, []
        transformer = QwenImageTransformer2DModel.from_pretrained(directory / "transformer", torch_dtype=torch.float32)
        if eight_bit:
            transformer.load_state_dict(whole(eight_bit))
        encoder = Qwen2_5_VLForConditionalGeneration.from_pretrained(directory / "text_encoder", torch_dtype=torch.float32).eval()
        tokenizer = words.new_tokenizer()
        self.pipeline = QwenImageEditPlusPipeline(
            None, AutoencoderKLQwenImage.from_pretrained(directory / "vae", torch_dtype=torch.float32),
            qwen_text.told_what_is_a_image(encoder), tokenizer, qwen_text.Processor(tokenizer, words.new_image_processor()), transformer,
        ).to(device)  # fmt: skip
        if lora:
            self.pipeline.load_lora_weights(lora.parent, weight_name=lora.name)

    def __call__(self, dtype):
        while self.hooks:
            self.hooks.pop().remove()
        self.pipeline.to(dtype=dtype)
        return lambda name, inputs: {key: value.float() for key, value in getattr(self, name)(dtype, **inputs).items()}

    def with_rounded_tokens(self, dtype):
        """What 8-bit products come to: they round what goes into a layer, too."""
        stages = self(dtype)
        for name in (name for name, value in stored_in(self.eight_bit).items() if value.dtype == torch.float8_e4m3fn and value.dim() == 2):
            layer = self.pipeline.transformer.get_submodule(name.removesuffix(".weight"))
            self.hooks.append(layer.register_forward_pre_hook(rounded))
        return stages

    def velocity(self, dtype, tokens, text, grids, timestep):
        told = torch.tensor([timestep], device=self.device, dtype=dtype) / 1000
        sides = [[(1, *grid) for grid in grids.tolist()]]
        tokens, text = tokens.to(self.device, dtype), text.to(self.device, dtype)
        seen = self.pipeline.transformer(tokens, encoder_hidden_states=text, timestep=told, img_shapes=sides, return_dict=False)[0]
        return {"velocity": seen[:, : grids[0].prod()]}

    def statistics(self, dtype):
        both = (self.pipeline.vae.config.latents_mean, self.pipeline.vae.config.latents_std)
        return [torch.tensor(numbers, device=self.device, dtype=dtype).view(1, -1, 1, 1, 1) for numbers in both]

    def decode(self, dtype, tokens, grids):
        rows, columns = grids[0].tolist()
        latents = self.pipeline._unpack_latents(tokens.to(self.device, dtype), 16 * rows, 16 * columns, 8)
        mean, std = self.statistics(dtype)
        return {"pixels": self.pipeline.vae.decode(latents * std + mean, return_dict=False)[0][:, :, 0]}

    def reference(self, dtype, image):
        pixels = (image.to(self.device).float() / 127.5 - 1).to(dtype).permute(2, 0, 1)[None, :, None]
        mean, std = self.statistics(dtype)
        latents = (self.pipeline.vae.encode(pixels).latent_dist.mode() - mean) / std
        _, channels, _, height, width = latents.shape
        return {"tokens": self.pipeline._pack_latents(latents, 1, channels, height, width)}

    def hidden(self, _dtype, prompt, **images):
        shown = [qwen_text.Image.fromarray(image.numpy()) for image in images.values()]
        return {"states": self.pipeline.encode_prompt(prompt, image=shown, device=self.device)[0]}


def looks():
    given = load_file(FIXTURES / "qwen/expected.safetensors")
    grids = torch.tensor(GRIDS)
    yield "DiT velocity", "velocity", {"tokens": given["forward/tokens"], "text": given["text/positive"], "grids": grids, "timestep": 761.3}


def others():
    given = load_file(FIXTURES / "qwen/expected.safetensors")
    tokens = given["forward/tokens"][:, : GRIDS[0][0] * GRIDS[0][1]]
    yield "VAE decode", "decode", {"tokens": tokens, "grids": torch.tensor(GRIDS[:1])}
    yield "VAE encode", "reference", {"image": given["resized/person"]}
    images = {str(number): as_bytes(qwen_text.IMAGES["person"].resize(side)) for number, side in enumerate(SIDES)}
    yield "hidden states", "hidden", {"prompt": INSTRUCTION} | images


def as_bytes(image):
    return torch.from_numpy(qwen_text.np.asarray(image).copy())


def rows(run):
    lora = FIXTURES / "qwen/loras"
    variants = {"whole weights": {}}
    variants |= {title: {"transformer": FIXTURES / f"qwen/fp8/{name}.safetensors"} for title, name in EIGHT_BIT.items()}
    variants |= {f"LoRA {name}": {"lora": lora / f"{name}.safetensors"} for name in ("lightning", "diffusers", "others")}
    with tempfile.TemporaryDirectory() as directory:
        directory = checkpoint(Path(directory))
        for title, options in variants.items():
            diffusers = Diffusers(directory, run.device, options.get("transformer"), options.get("lora"))
            cases = list(looks()) + ([] if options else list(others()))
            start = partial(run.ours, run.edit, directory, **options)
            with start(dtype="f32") as exact, start(dtype="bf16") as half:
                ours = {torch.float32: Stages(exact), torch.bfloat16: Stages(half)}
                near = diffusers.with_rounded_tokens if "transformer" in options else None
                yield from compared(run, f"try-on, {title}", cases, diffusers, ours, near)
