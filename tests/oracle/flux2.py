"""Writes tests/fixtures/flux2: a tiny random FLUX.2 klein with all its parts, LoRA files, and what diffusers computes with them, for
crates/engine/tests/it/parity/flux2.rs.

    python tests/oracle/flux2.py [OUT_DIR SEED]    a minute on a CPU; the result of seed 1 is committed

Dimensions, weights and cases follow from the seed, and no two widths are equal. The test reads what it finds: another seed's directory in place of
the committed one asks for other numbers. Made with torch 2.11.0, transformers 5.23.0, diffusers 0.42.1, peft 0.21.2.
"""

import json
import shutil
import sys

import numpy as np
import torch
from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux2KleinPipeline, Flux2Transformer2DModel
from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu
from flows import ROOT, begin, finish, images, pair, saved
from PIL import Image
from qwen import normals, randomize
from safetensors.torch import save_file
from transformers import AddedToken, Qwen3Config, Qwen3ForCausalLM

sys.path[:0] = [str(ROOT / "models/train/edit"), str(ROOT / "models/train")]
import words  # noqa: E402

SIZES = [
    {"heads": 3, "axes": (2, 4, 2, 6), "ratio": 3.0, "hidden": 28, "query_heads": 3, "key_heads": 1, "head": 10, "qwen": 8, "latents": 4, "vae": (4, 8, 16), "decoder": None, "double": 2, "single": 3},
    {"heads": 2, "axes": (4, 2, 4, 2), "ratio": 2.5, "hidden": 20, "query_heads": 4, "key_heads": 2, "head": 6, "qwen": 4, "latents": 3, "vae": (4, 8, 12), "decoder": (4, 4, 8), "double": 3, "single": 2},
    {"heads": 5, "axes": (2, 2, 2, 2), "ratio": 3.5, "hidden": 36, "query_heads": 2, "key_heads": 2, "head": 8, "qwen": 4, "latents": 5, "vae": (4, 4, 8, 12), "decoder": None, "double": 1, "single": 4},
]  # fmt: skip
# Of the real checkpoint; the pipeline has the shift from a fit of its own.
SCHEDULE = {"num_train_timesteps": 1000, "shift": 3.0, "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15,
            "base_image_seq_len": 256, "max_image_seq_len": 4096, "time_shift_type": "exponential"}  # fmt: skip
FIXED = {"num_train_timesteps": 1000, "shift": 3.0, "use_dynamic_shifting": False}
# Qwen3's, as far as it is about one user's turn that is to be answered without thinking.
TEMPLATE = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}{%- endif %}"
)
THOUGHT = ["<think>", "</think>"]
PROMPTS = ["a red mug", "Größe XL's 衣服…\n\n  7, <|ok|>?", "", "snow, and more of it " * 7, "\n a woman wearing a striped t-shirt, 24 words or so: " * 4]
# Steps and tokens of an image, to both sides of where the fit ends.
LENGTHS = [(4, 4096), (4, 4300), (4, 4301), (1, 60), (8, 16), (50, 12_000)]
# Of all rows of a text's states, which are 512, so many apart are kept; some are of its words, and most of its padding.
EVERY = 31


def tokenizer(target):
    """The words of the bundled models with the two tokens that an answer without thinking begins with."""
    made = words.write(target)
    shutil.rmtree(target / "processor")
    made.add_tokens([AddedToken(token, special=False, normalized=False) for token in THOUGHT])
    config = target / "tokenizer/tokenizer_config.json"
    described = json.loads(config.read_text())
    described["added_tokens_decoder"] |= {str(made.convert_tokens_to_ids(token)): {"content": token, "special": False} for token in THOUGHT}
    config.write_text(json.dumps(described, indent=2) + "\n")
    made.chat_template = TEMPLATE
    return made


def text_encoder(target, vocabulary, size, seed):
    config = Qwen3Config(
        vocab_size=vocabulary + 5, hidden_size=size["hidden"], intermediate_size=44, num_hidden_layers=size["qwen"],
        num_attention_heads=size["query_heads"], num_key_value_heads=size["key_heads"], head_dim=size["head"], max_position_embeddings=4096,
        rms_norm_eps=1e-6, tie_word_embeddings=True, rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )  # fmt: skip
    randomize(Qwen3ForCausalLM(config), seed).save_pretrained(target / "text_encoder")
    return Qwen3ForCausalLM.from_pretrained(target / "text_encoder", torch_dtype=torch.float32).eval()


def transformer(target, size, seed):
    model = Flux2Transformer2DModel(
        in_channels=4 * size["latents"], num_layers=size["double"], num_single_layers=size["single"], attention_head_dim=sum(size["axes"]),
        num_attention_heads=size["heads"], joint_attention_dim=3 * size["hidden"], mlp_ratio=size["ratio"], axes_dims_rope=size["axes"],
        guidance_embeds=False,
    )  # fmt: skip
    randomize(model, seed).save_pretrained(target / "transformer")
    return Flux2Transformer2DModel.from_pretrained(target / "transformer", torch_dtype=torch.float32).eval()


def autoencoder(target, size, seed):
    levels, channels = len(size["vae"]), 4 * size["latents"]
    vae = AutoencoderKLFlux2(
        block_out_channels=size["vae"], decoder_block_out_channels=size["decoder"], norm_num_groups=4, sample_size=64, layers_per_block=1,
        latent_channels=size["latents"], down_block_types=("DownEncoderBlock2D",) * levels, up_block_types=("UpDecoderBlock2D",) * levels,
    )  # fmt: skip
    randomize(vae, seed)
    vae.bn.running_mean = normals((channels,), seed + 500, 0.4).to(torch.bfloat16)
    vae.bn.running_var = normals((channels,), seed + 501, 0.5).exp().to(torch.bfloat16)
    vae.save_pretrained(target / "vae")
    return AutoencoderKLFlux2.from_pretrained(target / "vae", torch_dtype=torch.float32).eval()


class Klein(Flux2KleinPipeline):
    """Of a text encoder with fewer layers than 36 the same quarters are taken."""

    def encode_prompt(self, *args, **more):
        layers = self.text_encoder.config.num_hidden_layers
        return super().encode_prompt(*args, **(more | {"text_encoder_out_layers": tuple(layers * part // 4 for part in (1, 2, 3))}))


def checkpoint(target, size, seed):
    made = tokenizer(target)
    encoder = text_encoder(target, len(made), size, seed + 6000)
    scheduler = FlowMatchEulerDiscreteScheduler(**SCHEDULE)
    scheduler.save_pretrained(target / "scheduler")
    vae = autoencoder(target, size, seed + 5000)
    pipeline = Klein(scheduler, vae, encoder, made, transformer(target, size, seed + 4000), is_distilled=True)
    saved(target, pipeline)
    index = {"_class_name": "Flux2KleinPipeline", "_diffusers_version": "0.42.1", "is_distilled": True}
    (target / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    return pipeline


DOUBLE = [("attn.to_out.0", "img_attn.proj"), ("attn.to_add_out", "txt_attn.proj"), ("ff.linear_in", "img_mlp.0"), ("ff.linear_out", "img_mlp.2"),
          ("ff_context.linear_in", "txt_mlp.0"), ("ff_context.linear_out", "txt_mlp.2")]  # fmt: skip
JOINT = [("img_attn.qkv", ["attn.to_q", "attn.to_k", "attn.to_v"]), ("txt_attn.qkv", ["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"])]
SINGLE = [("attn.to_qkv_mlp_proj", "linear1"), ("attn.to_out", "linear2")]
OUTSIDE = {
    "img_in": "x_embedder", "txt_in": "context_embedder", "time_in.in_layer": "time_guidance_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_guidance_embed.timestep_embedder.linear_2", "final_layer.linear": "proj_out",
}  # fmt: skip
# What kohya's trainer does not adapt.
MODULATIONS = {
    "double_stream_modulation_img.lin": "double_stream_modulation_img.linear", "double_stream_modulation_txt.lin": "double_stream_modulation_txt.linear",
    "single_stream_modulation.lin": "single_stream_modulation.linear",
}  # fmt: skip


def first_release(model):
    """Names of layers as of the first release, and the layers here that each of them is, one after the other."""
    layers = {old: [ours] for old, ours in OUTSIDE.items()}
    for number in range(len(model.transformer_blocks)):
        layers |= {f"double_blocks.{number}.{old}": [f"transformer_blocks.{number}.{ours}"] for ours, old in DOUBLE}
        layers |= {f"double_blocks.{number}.{old}": [f"transformer_blocks.{number}.{part}" for part in parts] for old, parts in JOINT}
    for number in range(len(model.single_transformer_blocks)):
        layers |= {f"single_blocks.{number}.{old}": [f"single_transformer_blocks.{number}.{ours}"] for ours, old in SINGLE}
    return layers


def write_lora(target, model, spelling, seed):
    tensors = {}
    if spelling == "diffusers":
        for number, (name, module) in enumerate(model.named_modules()):
            if isinstance(module, torch.nn.Linear):
                names = [f"transformer.{name}.lora_{side}.weight" for side in "AB"]
                tensors[names[0]], tensors[names[1]] = pair(*module.weight.shape, seed + 2 * number)
    else:
        layers = first_release(model)
        if spelling == "comfyui":
            layers |= {old: [ours] for old, ours in MODULATIONS.items()}
        for number, (old, parts) in enumerate(layers.items()):
            rows = sum(model.get_submodule(part).weight.shape[0] for part in parts)
            columns = model.get_submodule(parts[0]).weight.shape[1]
            down, up = pair(rows, columns, seed + 2 * number)
            if spelling == "comfyui":
                tensors |= {f"diffusion_model.{old}.lora_A.weight": down, f"diffusion_model.{old}.lora_B.weight": up}
            else:
                prefix = f"lora_unet_{old.replace('.', '_')}"
                tensors |= {f"{prefix}.lora_down.weight": down, f"{prefix}.lora_up.weight": up, f"{prefix}.alpha": torch.tensor(2.0, dtype=torch.bfloat16)}
    file = target / f"{spelling}.safetensors"
    save_file(tensors, file)
    return file.name


def drawn(width, height, seed):
    """Smooth colours with a border of noise: what is cut off shows."""
    small = normals((3, 5, 5), seed).unsqueeze(0)
    smooth = torch.nn.functional.interpolate(small, size=(height, width), mode="bilinear")[0] * 60 + 128
    noise = normals((3, height, width), seed + 1, 40.0)
    noise[:, 6:-6, 6:-6] /= 8
    return (smooth + noise).clamp(0, 255).round().to(torch.uint8).permute(1, 2, 0).contiguous()


def cases_of(rng, token, loras):
    """Two sizes from text, LoRAs, then edits of one image and of two of different sizes, which are no multiples of a token, and one with a LoRA."""
    cases, edits = [], [(None, [(77, 70)]), (None, [(64, 90), (99, 65)]), (loras[2], [(80, 66)])]
    for number, (lora, shown) in enumerate([(None, []), (None, []), (None, []), *((lora, []) for lora in loras), *edits]):
        cases.append({
            "prompt": PROMPTS[number % len(PROMPTS)], "lora": lora, "scale": [1.0, 0.7][number % 2], "steps": [4, 1, 3, 2][number % 4],
            "seeds": [int(rng.integers(0, 2**32)) + n for n in range(1 + number % 2)], "dynamic": number == 2, "images": shown,
            "width": token * int(rng.integers(3, 8)), "height": token * int(rng.integers(3, 8)),
        })  # fmt: skip
    return cases


def stages(pipeline, out, size):
    channels = 4 * size["latents"]
    for number, prompt in enumerate(PROMPTS):
        states, text_ids = pipeline.encode_prompt(prompt, device="cpu")
        out[f"text/{number}"] = states[:, ::EVERY]
        if number == 3:
            continue
        height, width, time = ((4, 7, 1000.0), (5, 3, 433.25), (3, 6, 1.0), None, (3, 4, 767.5))[number]
        latents = normals((1, channels, height, width), 17 + number)
        ids, tokens = pipeline._prepare_latent_ids(latents), pipeline._pack_latents(latents)
        if number == 4:
            references = [normals((1, channels, 2, 5), 117), normals((1, channels, 4, 3), 118)]
            out |= {f"reference/{place}": reference for place, reference in enumerate(references)}
            ids = torch.cat([ids, pipeline._prepare_image_ids(references)], 1)
            tokens = torch.cat([tokens, *(pipeline._pack_latents(reference) for reference in references)], 1)
        velocity = pipeline.transformer(tokens, states, torch.tensor([time / 1000]), ids, text_ids).sample[:, : height * width]
        out[f"latents/{number}"], out[f"time/{number}"] = latents, torch.tensor([time])
        out[f"velocity/{number}"] = velocity.transpose(1, 2).reshape(latents.shape)
        if number < 2:
            mean, deviation = pipeline.vae.bn.running_mean, torch.sqrt(pipeline.vae.bn.running_var + pipeline.vae.config.batch_norm_eps)
            unscaled = latents * deviation.view(1, -1, 1, 1) + mean.view(1, -1, 1, 1)
            out[f"decoded/{number}"] = pipeline.vae.decode(pipeline._unpatchify_latents(unscaled)).sample
    for number, (steps, tokens) in enumerate(LENGTHS):
        for kind, settings in (("sigmas", SCHEDULE), ("fixed_sigmas", FIXED)):
            scheduler = FlowMatchEulerDiscreteScheduler(**settings)
            scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=compute_empirical_mu(tokens, steps))
            out[f"{kind}/{number}"] = scheduler.sigmas
    shown = drawn(77, 70, 7)
    token = 2 * pipeline.vae_scale_factor
    width, height = (side // token * token for side in (77, 70))
    pixels = pipeline.image_processor.preprocess(Image.fromarray(shown.numpy()), height=height, width=width, resize_mode="crop")
    out["shown"], out["encoded"] = shown, pipeline._pack_latents(pipeline._encode_vae_image(pixels, None))


@torch.no_grad()
def main():
    target, seed = begin("flux2")
    size = SIZES[seed % len(SIZES)]
    pipeline = checkpoint(target, size, 1000 * seed)
    rng = np.random.default_rng(seed)
    out = {}
    stages(pipeline, out, size)
    loras = [write_lora(target, pipeline.transformer, spelling, 1000 * seed + 100) for spelling in ("diffusers", "comfyui", "kohya")]
    cases = cases_of(rng, 2 ** len(size["vae"]), loras)
    for number, case in enumerate(cases):
        pipeline.scheduler = FlowMatchEulerDiscreteScheduler(**(FIXED if case["dynamic"] else SCHEDULE))
        if case["lora"]:
            pipeline.load_lora_weights(target, weight_name=case["lora"], adapter_name="it")
            pipeline.set_adapters("it", case["scale"])
        shown = [drawn(*sides, 1000 * number + place) for place, sides in enumerate(case["images"])]
        out |= {f"image/{number}/{place}": pixels for place, pixels in enumerate(shown)}
        more = {"image": [Image.fromarray(pixels.numpy()) for pixels in shown]} if shown else {}
        out[f"expected/{number}"] = images(pipeline, case, **more)
        if case["lora"]:
            pipeline.unload_lora_weights()
        case["images"] = len(shown)
    described = {"prompts": PROMPTS, "dynamic": FIXED | {"_class_name": "FlowMatchEulerDiscreteScheduler"}, "lengths": LENGTHS, "every": EVERY, "cases": cases}
    finish(target, described, out)


if __name__ == "__main__":
    main()
