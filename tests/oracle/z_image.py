"""Writes tests/fixtures/z-image: a tiny random Z-Image-Turbo with all its parts, LoRA files, and what diffusers computes with them, for
crates/engine/tests/it/parity/z_image.rs.

    python tests/oracle/z_image.py [OUT_DIR SEED]    a minute on a CPU; the result of seed 1 is committed

Dimensions, weights and cases follow from the seed, and no two widths are equal. The test reads what it finds: another seed's directory in place of
the committed one asks for other numbers. Made with torch 2.11.0, transformers 5.23.0, diffusers 0.42.1, peft 0.21.2.
"""

import shutil
import sys

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline, ZImageTransformer2DModel
from flows import RANK, ROOT, autoencoder, begin, finish, images, pair, saved
from qwen import normals, randomize
from safetensors.torch import load_file, save_file
from transformers import Qwen3Config, Qwen3ForCausalLM

sys.path[:0] = [str(ROOT / "models/train/edit"), str(ROOT / "models/train")]
import words  # noqa: E402

SIZES = [
    {"heads": 3, "axes": [4, 6, 6], "hidden": 20, "query_heads": 4, "key_heads": 2, "head": 6, "latents": 5, "vae": (4, 8, 12), "layers": 2, "refiners": 1},
    {"heads": 2, "axes": [8, 4, 12], "hidden": 28, "query_heads": 3, "key_heads": 1, "head": 10, "latents": 4, "vae": (4, 4, 8, 12), "layers": 3, "refiners": 2},
    {"heads": 4, "axes": [2, 4, 4], "hidden": 36, "query_heads": 2, "key_heads": 2, "head": 8, "latents": 7, "vae": (4, 8, 16), "layers": 1, "refiners": 1},
]  # fmt: skip
# Of the real checkpoint.
SCHEDULE = {"num_train_timesteps": 1000, "shift": 3.0, "use_dynamic_shifting": False}
DYNAMIC = {"num_train_timesteps": 1000, "use_dynamic_shifting": True, "base_shift": 0.4, "max_shift": 1.3, "base_image_seq_len": 16, "max_image_seq_len": 64}
# Qwen3's, as far as it is about one user's turn that is to be thought about.
TEMPLATE = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}{%- endif %}"
)
PROMPTS = ["a red mug", "Größe XL's 衣服…\n\n  7, <|ok|>?", "", "snow, and more of it " * 7, "\n a woman wearing a striped t-shirt, 24 words or so: " * 4]


def text_encoder(target, tokenizer, size, seed):
    config = Qwen3Config(
        vocab_size=len(tokenizer) + 5, hidden_size=size["hidden"], intermediate_size=44, num_hidden_layers=3, num_attention_heads=size["query_heads"],
        num_key_value_heads=size["key_heads"], head_dim=size["head"], max_position_embeddings=4096, rms_norm_eps=1e-6, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )  # fmt: skip
    randomize(Qwen3ForCausalLM(config), seed).save_pretrained(target / "text_encoder")
    return Qwen3ForCausalLM.from_pretrained(target / "text_encoder", torch_dtype=torch.float32).eval().model


def transformer(target, size, seed):
    model = ZImageTransformer2DModel(
        in_channels=size["latents"], dim=size["heads"] * sum(size["axes"]), n_layers=size["layers"], n_refiner_layers=size["refiners"],
        n_heads=size["heads"], n_kv_heads=size["heads"], cap_feat_dim=size["hidden"], axes_dims=size["axes"], axes_lens=[224, 16, 24],
    )  # fmt: skip
    randomize(model, seed)
    # Its width is in diffusers' code: most of its half million values are 0, so that the repository stays small.
    for name in ("t_embedder.mlp.0.weight", "t_embedder.mlp.2.weight"):
        parameter = model.get_parameter(name)
        kept = torch.rand(parameter.shape, generator=torch.Generator().manual_seed(seed)) < 0.02
        parameter.data = torch.where(kept, parameter.data * 6, torch.zeros_like(parameter.data))
    model.save_pretrained(target / "transformer")
    return ZImageTransformer2DModel.from_pretrained(target / "transformer", torch_dtype=torch.float32).eval()


def checkpoint(target, size, seed):
    tokenizer = words.write(target)
    shutil.rmtree(target / "processor")
    tokenizer.chat_template = TEMPLATE
    encoder = text_encoder(target, tokenizer, size, seed + 6000)
    scheduler = FlowMatchEulerDiscreteScheduler(**SCHEDULE)
    scheduler.save_pretrained(target / "scheduler")
    pipeline = ZImagePipeline(scheduler, autoencoder(target, size, seed + 5000), encoder, tokenizer, transformer(target, size, seed + 4000))
    return saved(target, pipeline)


def old_name(name):
    for ours, old in ((".attention.to_out.0", ".attention.out"), ("all_x_embedder.2-1", "x_embedder"), ("all_final_layer.2-1.", "final_layer.")):
        name = name.replace(ours, old)
    return name


def write_lora(target, model, spelling, seed):
    """A LoRA in each spelling of its modules; `fused` are those of the first release, in which queries, keys and values are one layer."""
    tensors = {}
    number = 0

    def add(prefix, ends, rows, columns, alpha=None):
        nonlocal number
        number += 2
        tensors[f"{prefix}.{ends[0]}"], tensors[f"{prefix}.{ends[1]}"] = pair(rows, columns, seed + number)
        if alpha is not None:
            tensors[f"{prefix}.alpha"] = torch.tensor(alpha, dtype=torch.bfloat16)

    peft, kohya = ("lora_A.weight", "lora_B.weight"), ("lora_down.weight", "lora_up.weight")
    for name, module in model.named_modules():
        if not isinstance(module, torch.nn.Linear) or "t_embedder" in name:
            continue
        rows, columns = module.weight.shape
        attention = ".attention." in name
        if spelling == "diffusers":
            add(f"transformer.{name}", peft, rows, columns)
        elif spelling == "comfyui" and (attention or ".feed_forward." in name):
            add(f"diffusion_model.{name}", peft, rows, columns)
        elif spelling == "kohya" and (attention or ".feed_forward." in name):
            add(f"lora_unet_{name.replace('.', '_')}", kohya, rows, columns, 2.0)
        elif spelling == "fused" and attention:
            if name.endswith("to_q"):
                add(f"lora_unet_{name.removesuffix('to_q').replace('.', '_')}qkv", kohya, 3 * rows, columns, 1.5)
            elif name.endswith("to_out.0"):
                add(f"lora_unet_{old_name(name).replace('.', '_')}", kohya, rows, columns, 1.5)
    file = target / f"{spelling}.safetensors"
    save_file(tensors, file)
    return file.name


def apply_fused(model, file):
    """diffusers drops or refuses fused layers of this spelling: what they mean is the product's rows, added to the weights."""
    tensors = load_file(file)
    for name, module in model.named_modules():
        if not isinstance(module, torch.nn.Linear) or ".attention." not in name:
            continue
        block, part = name.rsplit(".attention.", 1)
        fused = f"lora_unet_{block.replace('.', '_')}_attention_" + ("out" if part == "to_out.0" else "qkv")
        down, up = tensors[f"{fused}.lora_down.weight"].float(), tensors[f"{fused}.lora_up.weight"].float()
        change = up @ down * (tensors[f"{fused}.alpha"].item() / RANK)
        if part != "to_out.0":
            change = change.chunk(3)["qkv".index(part[-1])]
        module.weight.data += change


def cases_of(rng, token, loras):
    """Sizes, steps, prompts and adapters, no two alike: with and without padding of image and text."""
    cases = []
    for number, lora in enumerate([None, None, None, *loras]):
        cases.append({
            "prompt": PROMPTS[number % len(PROMPTS)], "lora": lora, "scale": [1.0, 0.7][number % 2], "steps": [8, 1, 5, 4][number % 4],
            "seeds": [int(rng.integers(0, 2**32)) + n for n in range(1 + number % 2)], "dynamic": number == 2,
            "width": token * (8 if number == 1 else int(rng.integers(3, 9))), "height": token * (4 if number == 1 else int(rng.integers(3, 9))),
        })  # fmt: skip
    return cases


def stages(pipeline, out, size):
    for number, prompt in enumerate(PROMPTS):
        (states,) = pipeline.encode_prompt(prompt, device="cpu", do_classifier_free_guidance=False)[0]
        out[f"text/{number}"] = states
    for number, (height, width, time) in enumerate(((8, 16, 1.0), (10, 6, 433.25), (12, 22, 1000.0))):
        latents = normals((1, size["latents"], height, width), 17 + number)
        text = out[f"text/{number}"]
        velocity = pipeline.transformer([latents[0].unsqueeze(1)], torch.tensor([(1000 - time) / 1000]), [text])[0][0].squeeze(1)
        out[f"latents/{number}"], out[f"velocity/{number}"], out[f"time/{number}"] = latents, -velocity.unsqueeze(0), torch.tensor([time])
        if number == 2:
            continue
        unscaled = latents / pipeline.vae.config.scaling_factor + pipeline.vae.config.shift_factor
        out[f"decoded/{number}"] = pipeline.vae.decode(unscaled).sample


@torch.no_grad()
def main():
    target, seed = begin("z-image")
    size = SIZES[seed % len(SIZES)]
    pipeline = checkpoint(target, size, 1000 * seed)
    rng = np.random.default_rng(seed)
    out = {}
    stages(pipeline, out, size)
    loras = [write_lora(target, pipeline.transformer, spelling, 1000 * seed + 100) for spelling in ("diffusers", "comfyui", "kohya", "fused")]
    cases = cases_of(rng, 2 ** len(size["vae"]), loras)
    for number, case in enumerate(cases):
        pipeline.scheduler = FlowMatchEulerDiscreteScheduler(**(DYNAMIC if case["dynamic"] else SCHEDULE))
        if case["lora"] == "fused.safetensors":
            assert case["scale"] == [1.0, 0.7][number % 2]
            kept = {name: parameter.clone() for name, parameter in pipeline.transformer.named_parameters()}
            apply_fused(pipeline.transformer, target / case["lora"])
            if case["scale"] != 1.0:
                for name, parameter in pipeline.transformer.named_parameters():
                    parameter.data = kept[name] + (parameter.data - kept[name]) * case["scale"]
        elif case["lora"]:
            pipeline.load_lora_weights(target, weight_name=case["lora"], adapter_name="it")
            pipeline.set_adapters("it", case["scale"])
        out[f"expected/{number}"] = images(pipeline, case)
        if case["lora"] and case["lora"] != "fused.safetensors":
            pipeline.unload_lora_weights()
    finish(target, {"prompts": PROMPTS, "dynamic": DYNAMIC, "cases": cases}, out)


if __name__ == "__main__":
    main()
