"""Writes tests/fixtures/qwen: a tiny random Qwen-Image-Edit-2511 without its text encoder, LoRA and fp8 files, and what diffusers
computes with them, for crates/engine/tests/it/parity/qwen.rs.

    python tests/oracle/qwen.py    half a minute on a CPU; the result is committed

Made with torch 2.11.0, diffusers 0.42.1, peft 0.21.2. Every parameter is a seeded normal number.
"""

import copy
import json
import math
import shutil
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImageEditPlusPipeline,
    QwenImageTransformer2DModel,
)
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as reference
from PIL import Image
from safetensors.torch import save_file

HERE = Path(__file__).resolve().parent.parent / "fixtures" / "qwen"
REFERENCE_AREA = 128 * 128  # in place of 1024 * 1024
WIDTH, HEIGHT = 80, 112
HIDDEN = 24
# Of the real checkpoint.
SCHEDULE = {"base_image_seq_len": 256, "base_shift": 0.5, "max_image_seq_len": 8192, "max_shift": 0.9, "num_train_timesteps": 1000,
            "shift": 1.0, "shift_terminal": 0.02, "time_shift_type": "exponential", "use_dynamic_shifting": True}  # fmt: skip
# Of the authors of the Lightning weights.
LIGHTNING = SCHEDULE | {"base_shift": math.log(3), "max_shift": math.log(3), "shift_terminal": None}


def normals(shape, seed, scale=1.0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def randomize(model, seed):
    for index, (name, parameter) in enumerate(sorted(model.named_parameters())):
        shape = parameter.shape
        if name.endswith("gamma") or ("norm" in name and len(shape) == 1 and name.endswith("weight")):
            values = 1 + normals(shape, seed + index, 0.2)
        elif len(shape) > 1:
            values = normals(shape, seed + index, (shape.numel() / shape[0]) ** -0.5)
        else:
            values = normals(shape, seed + index, 0.1)
        parameter.data = values.to(torch.bfloat16)
    return model.to(torch.bfloat16).eval()


def checkpoint():
    transformer = QwenImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=HIDDEN, axes_dims_rope=(4, 8, 4), zero_cond_t=True,
    )  # fmt: skip
    vae = AutoencoderKLQwenImage(
        base_dim=4, z_dim=4, dim_mult=[1, 2, 2, 4], num_res_blocks=1, temperal_downsample=[False, True, True],
        latents_mean=[-0.7, 0.2, 0.45, -0.1], latents_std=[1.8, 0.6, 1.2, 2.4],
    )  # fmt: skip
    scheduler = FlowMatchEulerDiscreteScheduler(**SCHEDULE)
    randomize(transformer, 4000).save_pretrained(HERE / "edit" / "transformer", max_shard_size="80KB")
    randomize(vae, 5000).save_pretrained(HERE / "edit" / "vae")
    scheduler.save_pretrained(HERE / "edit" / "scheduler")
    index = {"_class_name": "QwenImageEditPlusPipeline", "_diffusers_version": "0.42.1"}
    (HERE / "edit" / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    transformer = QwenImageTransformer2DModel.from_pretrained(HERE / "edit" / "transformer", torch_dtype=torch.float32)
    vae = AutoencoderKLQwenImage.from_pretrained(HERE / "edit" / "vae", torch_dtype=torch.float32)
    return pipeline_of(transformer, vae, scheduler)


def pipeline_of(transformer, vae, scheduler):
    return QwenImageEditPlusPipeline(
        scheduler=scheduler, vae=vae, transformer=transformer, text_encoder=None, tokenizer=None, processor=None
    )


def image(width, height, seed):
    """Waves, so that resampling has something to do."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [128 + 90 * np.sin(x / (3 + seed + k) + k) * np.cos(y / (5 + 2 * k) + seed) for k in range(3)]
    return Image.fromarray(np.stack(waves, -1).round().clip(0, 255).astype("uint8"))


IMAGES = {"person": image(96, 128, 1), "garment": image(120, 75, 4), "shoes": image(70, 70, 9)}


class Recorder:
    """What passes between the parts of a pipeline during one call."""

    def __init__(self, pipeline, out, key):
        self.pipeline, self.out, self.key = pipeline, out, key
        self.transformer, self.calls, self.steps, self.hooks = pipeline.transformer, 0, 0, []

    def __enter__(self):
        def block(_module, _inputs, output):
            if self.calls == 0:
                self.out[f"{self.key}/block0/text"], self.out[f"{self.key}/block0/image"] = output

        def velocity(_module, _inputs, output):
            self.out[f"{self.key}/velocity/{self.calls}"] = output[0]
            self.calls += 1

        first = self.transformer.transformer_blocks[0]
        self.hooks = [first.register_forward_hook(block), self.transformer.register_forward_hook(velocity)]
        step, prepare, scheduler = self.pipeline.scheduler.step, self.pipeline.prepare_latents, self.pipeline.scheduler

        def stepped(model_output, *args, **kwargs):
            self.out[f"{self.key}/guided/{self.steps}"] = model_output
            self.steps += 1
            return step(model_output, *args, **kwargs)

        def prepared(*args, **kwargs):
            latents, references = prepare(*args, **kwargs)
            self.out[f"{self.key}/noise"], self.out[f"{self.key}/references"] = latents, references
            return latents, references

        scheduler.step, self.pipeline.prepare_latents = stepped, prepared
        return self

    def __exit__(self, *_):
        for hook in self.hooks:
            hook.remove()
        del self.pipeline.scheduler.step, self.pipeline.prepare_latents


def generate(pipeline, out, key, images, steps, guidance, seed):
    """One generation with everything on its way."""
    words = {
        "image": [IMAGES[name] for name in images], "prompt_embeds": out["text/positive"], "width": WIDTH, "height": HEIGHT,
        "negative_prompt_embeds": out["text/negative"] if guidance > 1 else None, "true_cfg_scale": guidance,
        "num_inference_steps": steps,
    }  # fmt: skip
    with Recorder(pipeline, out, key):
        out[f"{key}/latents"] = pipeline(**words, generator=torch.Generator().manual_seed(seed), output_type="latent").images
    generated = pipeline(**words, generator=torch.Generator().manual_seed(seed), output_type="np").images
    out[f"{key}/image"] = torch.from_numpy((generated * 255).round().astype("uint8"))


def write_loras(pipeline, out):
    """Lightning's bare keys with alpha; diffusers' own; ComfyUI's prefix, on modulation and the layers outside of the blocks."""
    directory = HERE / "loras"
    directory.mkdir()
    linears = [(n, m) for n, m in pipeline.transformer.named_modules() if isinstance(m, torch.nn.Linear)]
    shapes = {name: module.weight.shape for name, module in linears}
    lightning = [name for name in shapes if ".attn." in name or "_mlp." in name]
    others = [name for name in shapes if name not in lightning]
    assert len(lightning) == 12 * len(pipeline.transformer.transformer_blocks)

    def write(file, modules, rank, seed, style, alpha):
        tensors = {}
        for index, module in enumerate(modules):
            rows, columns = shapes[module]
            down, up = style(module)
            tensors[down] = normals((rank, columns), seed + 2 * index, columns**-0.5).to(torch.bfloat16)
            tensors[up] = normals((rows, rank), seed + 2 * index + 1, 0.3).to(torch.bfloat16)
            if alpha is not None:
                tensors[f"{module}.alpha"] = torch.tensor(alpha, dtype=torch.bfloat16)
        save_file(tensors, directory / f"{file}.safetensors")

    write("lightning", lightning, 4, 100, lambda m: (f"{m}.lora_down.weight", f"{m}.lora_up.weight"), 2.0)
    write("diffusers", lightning, 3, 500, lambda m: (f"transformer.{m}.lora_A.weight", f"transformer.{m}.lora_B.weight"), None)
    write("others", others, 2, 900, lambda m: (f"diffusion_model.{m}.lora_A.weight", f"diffusion_model.{m}.lora_B.weight"), None)
    for name in ("lightning", "diffusers", "others"):
        pipeline.load_lora_weights(directory, weight_name=f"{name}.safetensors", adapter_name=name)
        pipeline.set_adapters([name], [0.8])
        forward(pipeline.transformer, out, f"lora/{name}")
        pipeline.unload_lora_weights()


def forward(transformer, out, key):
    """One look at tokens that are given: an output of 7x5 tokens, references of 6x6 and 3x8."""
    shapes = [[(1, 7, 5), (1, 6, 6), (1, 3, 8)]]
    words = {"encoder_hidden_states": out["text/positive"], "img_shapes": shapes, "return_dict": False}
    seen = transformer(hidden_states=out["forward/tokens"], timestep=torch.tensor([0.7613]), **words)[0]
    out[key] = seen[:, : 7 * 5]


def write_fp8(pipeline, out):
    """The spellings of 8-bit files, each with what diffusers computes from the same numbers made whole."""
    directory = HERE / "fp8"
    directory.mkdir()
    quantised = (".attn.", "img_mlp", "txt_mlp", "img_mod", "txt_mod")
    state = pipeline.transformer.state_dict()
    for spelling in ("channel", "channel_flat", "tensor", "bare"):
        tensors, whole = {}, {}
        for name, value in state.items():
            if not (any(part in name for part in quantised) and name.endswith(".weight") and value.dim() == 2):
                tensors[name], whole[name] = value.to(torch.bfloat16), value
                continue
            module = name.removesuffix(".weight")
            if spelling.startswith("channel"):
                scale = (value.abs().amax(1, keepdim=True) / 448).clamp(min=1e-5)
            elif spelling == "tensor":
                scale = value.abs().amax() / 448
            else:
                scale = torch.tensor(1.0)
            bits = (value / scale).to(torch.float8_e4m3fn)
            tensors[name], whole[name] = bits, bits.float() * scale
            if spelling == "channel":
                tensors[f"{module}.weight_scale"] = scale
            elif spelling == "channel_flat":
                tensors[f"{module}.weight_scale"] = scale.flatten()
            elif spelling == "tensor":
                tensors[f"{module}.scale_weight"] = scale
        if spelling == "tensor":
            tensors = {f"model.diffusion_model.{name}": value for name, value in tensors.items()}
            tensors["scaled_fp8"] = torch.empty(0, dtype=torch.float8_e4m3fn)
        save_file(tensors, directory / f"{spelling}.safetensors")
        transformer = copy.deepcopy(pipeline.transformer)
        transformer.load_state_dict(whole)
        forward(transformer, out, f"fp8/{spelling}")
        if spelling == "channel":
            adapted = pipeline_of(transformer, pipeline.vae, pipeline.scheduler)
            adapted.load_lora_weights(HERE / "loras", weight_name="lightning.safetensors", adapter_name="lightning")
            forward(adapted.transformer, out, "fp8/channel_lightning")


def schedules():
    """Sigmas by configuration, steps and number of the output's tokens."""
    out = {}
    for name, config in (("base", SCHEDULE), ("lightning", LIGHTNING)):
        lengths, shifts = ("base_image_seq_len", "max_image_seq_len"), ("base_shift", "max_shift")
        for steps in (1, 4, 8, 40):
            for tokens in (35, 3072, 3600, 4096, 4144):
                if steps == 1 and config["shift_terminal"]:
                    continue  # the stretch divides by zero
                scheduler = FlowMatchEulerDiscreteScheduler(**config)
                mu = reference.calculate_shift(tokens, *(config[key] for key in lengths + shifts))
                scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
                out[f"{name}/{steps}/{tokens}"] = scheduler.sigmas
    return out


def write(tensors, file):
    save_file({key: value.clone().contiguous() for key, value in tensors.items()}, HERE / file)


@torch.no_grad()
def main():
    shutil.rmtree(HERE, ignore_errors=True)
    HERE.mkdir(parents=True)
    reference.VAE_IMAGE_SIZE = REFERENCE_AREA
    pipeline = checkpoint()
    pipeline.set_progress_bar_config(disable=True)
    out = {"text/positive": normals((1, 11, HIDDEN), 1), "text/negative": normals((1, 7, HIDDEN), 2)}
    for name, image in IMAGES.items():
        out[f"input/{name}"] = torch.from_numpy(np.array(image))
        width, height = reference.calculate_dimensions(REFERENCE_AREA, image.width / image.height)
        out[f"resized/{name}"] = torch.from_numpy(np.array(pipeline.image_processor.resize(image, height, width)))
    out["forward/tokens"] = normals((1, 7 * 5 + 6 * 6 + 3 * 8, 16), 3)
    generate(pipeline, out, "base", ["person", "garment"], 4, 4.0, seed=42)
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler(**LIGHTNING)
    generate(pipeline, out, "lightning", ["person", "garment", "shoes"], 4, 1.0, seed=7)
    forward(pipeline.transformer, out, "forward/zero_cond_t")
    earlier = QwenImageTransformer2DModel.from_config(pipeline.transformer.config, zero_cond_t=False)
    earlier.load_state_dict(pipeline.transformer.state_dict())
    forward(earlier.eval(), out, "forward/one_moment")
    write_loras(pipeline, out)
    write_fp8(pipeline, out)
    write(out, "expected.safetensors")
    write(schedules(), "schedules.safetensors")
    for path in HERE.rglob("*.safetensors"):
        path.chmod(0o644)


if __name__ == "__main__":
    main()
