"""Writes tests/fixtures/gguf: blocks of every format and what they stand for, and GGUF files of tiny transformers and text
encoders of FLUX.1, Z-Image and FLUX.2 klein with what diffusers computes with their weights made whole, for crates/engine/tests/it/parity/gguf.rs.

    python tests/oracle/gguf_files.py [OUT_DIR SEED]    a minute on a CPU; the result of seed 1 is committed

All else is that of tests/fixtures/flux, z-image and flux2. Blocks are made whole by PyPI's gguf, the reference of ggml-org.
It packs no weights in the formats of 256 values: blocks of those are random bits with scales that suit a layer. Made with gguf 0.19.0, torch 2.11.0,
transformers 5.23.0, diffusers 0.42.1.
"""

import json
import tempfile

import flux
import flux2
import numpy as np
import torch
import z_image
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel, GGUFQuantizationConfig
from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel, ZImagePipeline, ZImageTransformer2DModel
from flows import ROOT, begin, images
from gguf import GGMLQuantizationType as Format
from gguf import GGUFReader, GGUFWriter, quants
from gguf.constants import GGML_QUANT_SIZES
from qwen import randomize
from safetensors.torch import save_file
from transformers import AutoTokenizer, CLIPTextModel, CLIPTokenizer, Qwen3Config, Qwen3ForCausalLM, T5Config, T5EncoderModel

SMALL = [Format.Q4_0, Format.Q8_0, Format.Q5_1, Format.Q4_1, Format.Q5_0]
LARGE = [Format.Q4_K, Format.Q6_K, Format.Q5_K]
# Where the f16 scales of a block stand.
SCALES = {Format.Q4_0: [0], Format.Q4_1: [0, 2], Format.Q5_0: [0], Format.Q5_1: [0, 2], Format.Q8_0: [0], Format.Q4_K: [0, 2], Format.Q5_K: [0, 2],
          Format.Q6_K: [208]}  # fmt: skip


def random_blocks(rng, rows, columns, kind, scales):
    """(rows, bytes): random bits, and in place of the scales those that `scales` draws, f16."""
    values, size = GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (rows, columns // values, size), dtype=np.uint8)
    for place, at in enumerate(SCALES[kind]):
        blocks[:, :, at : at + 2] = scales(place, blocks.shape[:2]).astype(np.float16)[..., None].view(np.uint8)
    return blocks.reshape(rows, -1)


def for_a_layer(kind, columns):
    """Scales that give values of about the size that weights of so many columns have, around 0."""
    spread = {Format.Q4_K: 150.0, Format.Q5_K: 310.0, Format.Q6_K: 1400.0}[kind] * columns**0.5
    return lambda place, shape: np.full(shape, [1, {Format.Q4_K: 7.5, Format.Q5_K: 15.5}.get(kind)][place] / spread)


def write_blocks(target, rng):
    out = {}
    for kind in SMALL + LARGE:
        blocks = random_blocks(rng, 3, 512, kind, lambda place, shape: rng.normal(size=shape) * 10.0 ** rng.integers(-7, 3, shape))
        out[f"{kind.name.lower()}/blocks"] = torch.from_numpy(blocks)
        out[f"{kind.name.lower()}/values"] = torch.from_numpy(quants.dequantize(blocks, kind))
    save_file(out, target / "blocks.safetensors")


class Packing:
    """A GGUF file, and what is in it."""

    def __init__(self, file, architecture, rng):
        self.writer, self.rng, self.used, self.number = GGUFWriter(file, architecture), rng, set(), 0
        self.writer.add_array("general.tags", ["text-to-image", "quantised"])
        self.writer.add_array("test.numbers", [1, 2, 3])
        self.writer.add_quantization_version(2)

    def matrix(self, name, parts):
        """One matrix of a model's layers `parts`, one below the other, whose weights become those that its blocks stand for."""
        columns = parts[0].shape[1]
        kinds = LARGE if columns % 256 == 0 else SMALL if columns % 32 == 0 else [Format.BF16, Format.F16]
        kind = kinds[self.number % len(kinds)]
        self.number += 1
        packed = []
        for part in parts:
            if kind in LARGE:
                blocks = random_blocks(self.rng, *part.shape, kind, for_a_layer(kind, columns))
            else:
                blocks = quants.quantize(part.numpy(), kind)
            part.copy_(torch.from_numpy(quants.dequantize(blocks, kind).astype(np.float32)))
            packed.append(blocks)
        self.used.add(kind.name)
        self.add(name, np.concatenate(packed), kind)

    def add(self, name, data, kind=None):
        self.writer.add_tensor(name, np.ascontiguousarray(data), raw_dtype=kind if data.dtype == np.uint8 else None)

    def vector(self, name, tensor, kind=Format.F32):
        data = quants.quantize(tensor.numpy(), kind)
        tensor.copy_(torch.from_numpy(quants.dequantize(data, kind).astype(np.float32)))
        self.add(name, data, kind)


def write_file(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def pack_flux(file, model, rng):
    """The names of the first release, as most files of FLUX have them."""
    packing = Packing(file, "flux", rng)
    layers = flux.first_release(model) | {old: [ours] for old, ours in flux.OUTSIDE.items()}
    for old, parts in layers.items():
        parts = [model.get_submodule(part) for part in parts]
        packing.matrix(f"{old}.weight", [part.weight.data for part in parts])
        bias = [part.bias.data for part in parts]
        if old == "double_blocks.0.img_mod.lin":
            packing.vector(f"{old}.bias", bias[0], Format.Q8_0)
        else:
            packing.add(f"{old}.bias", torch.cat(bias).numpy())
    for kind, names in flux.NORMS.items():
        old = kind.replace("single_transformer_blocks", "single_blocks").replace("transformer_blocks", "double_blocks")
        for ours, theirs in names:
            packing.vector(f"{old}.0.{theirs}.scale", model.get_submodule(f"{kind}.0.{ours}").weight.data, Format.F32)
    scale, shift = (half.data for half in model.norm_out.linear.weight.chunk(2))
    packing.matrix("final_layer.adaLN_modulation.1.weight", [shift, scale])
    packing.add("final_layer.adaLN_modulation.1.bias", torch.cat(model.norm_out.linear.bias.data.chunk(2)[::-1]).numpy())
    write_file(packing.writer)
    return packing.used


def pack_z_image(file, model, rng):
    """The names of the first release behind a prefix, something of another model next to them, and a vector that nothing reads."""
    packing = Packing(file, "lumina2", rng)
    done = set()
    for name, parameter in model.named_parameters():
        block, attention, part = name.rpartition(".attention.to_")
        old = "model.diffusion_model." + z_image.old_name(name)
        if attention and part[0] in "qkv":
            if block not in done:
                done.add(block)
                parts = [model.get_submodule(f"{block}.attention.to_{letter}").weight.data for letter in "qkv"]
                packing.matrix(f"model.diffusion_model.{block}.attention.qkv.weight", parts)
        elif name == "x_pad_token":
            # Some converters leave leading ones out.
            packing.vector(old, parameter.data[0], Format.F32)
        elif parameter.ndim == 2 and name.endswith(".weight"):
            packing.matrix(old.replace("norm_q", "q_norm").replace("norm_k", "k_norm"), [parameter.data])
        else:
            packing.vector(old.replace("norm_q", "q_norm").replace("norm_k", "k_norm"), parameter.data, Format.F16 if parameter.ndim == 2 else Format.F32)
    packing.add("model.diffusion_model.norm_final.weight", np.ones(7, np.float32))
    packing.add("first_stage_model.decoder.conv_in.bias", np.zeros(5, np.float32))
    write_file(packing.writer)
    return packing.used


def pack_flux2(file, model, rng):
    """The names of the first release."""
    packing = Packing(file, "flux", rng)
    layers = flux2.first_release(model) | {old: [ours] for old, ours in flux2.MODULATIONS.items()}
    for old, parts in layers.items():
        packing.matrix(f"{old}.weight", [model.get_submodule(part).weight.data for part in parts])
    for kind, names in flux.NORMS.items():
        old = kind.replace("single_transformer_blocks", "single_blocks").replace("transformer_blocks", "double_blocks")
        for ours, theirs in names:
            packing.vector(f"{old}.0.{theirs}.scale", model.get_submodule(f"{kind}.0.{ours}").weight.data, Format.F32)
    scale, shift = (half.data for half in model.norm_out.linear.weight.chunk(2))
    packing.matrix("final_layer.adaLN_modulation.1.weight", [shift, scale])
    write_file(packing.writer)
    return packing.used


# llama.cpp's names of a layer's tensors, and transformers'.
T5 = {"attn_norm": "layer.0.layer_norm", "attn_q": "layer.0.SelfAttention.q", "attn_k": "layer.0.SelfAttention.k", "attn_v": "layer.0.SelfAttention.v",
      "attn_o": "layer.0.SelfAttention.o", "attn_rel_b": "layer.0.SelfAttention.relative_attention_bias", "ffn_norm": "layer.1.layer_norm",
      "ffn_gate": "layer.1.DenseReluDense.wi_0", "ffn_up": "layer.1.DenseReluDense.wi_1", "ffn_down": "layer.1.DenseReluDense.wo"}  # fmt: skip
QWEN3 = {"attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
         "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm", "ffn_norm": "post_attention_layernorm",
         "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}  # fmt: skip


def pack_encoder(file, architecture, rng, blocks, outside):
    """A text encoder under llama.cpp's names. `blocks`: (prefix, its layers, their names); `outside`: what stands in no layer."""
    packing = Packing(file, architecture, rng)
    prefix, layers, names = blocks
    everything = [(f"{prefix}.{number}.{old}", layer, ours) for number, layer in enumerate(layers) for old, ours in names.items()]
    for name, layer, ours in everything + outside:
        if "rel_b" in name and ".0." not in name:
            continue
        weight = layer.get_submodule(ours).weight.data
        if weight.ndim == 1 or "rel_b" in name:
            packing.vector(f"{name}.weight", weight)
        else:
            packing.matrix(f"{name}.weight", [weight])
    write_file(packing.writer)


def made(target, model, seed):
    target.mkdir()
    model = randomize(model, seed).float().eval().requires_grad_(False)
    model.save_config(target)
    return model


def encoder(target, model, seed):
    model = randomize(model, seed).float().eval().requires_grad_(False)
    (target / "text_encoder.json").write_text(model.config.to_json_string())
    return model


def flux_pipeline(target, seed, rng):
    source = ROOT / "tests/fixtures/flux"
    config = json.loads((source / "transformer/config.json").read_text())
    config |= {
        "num_attention_heads": 2, "attention_head_dim": 32, "axes_dims_rope": (8, 12, 12), "num_layers": 1, "num_single_layers": 1,
        "joint_attention_dim": 32,
    }  # fmt: skip
    model = made(target, FluxTransformer2DModel.from_config(config), seed)
    clip = CLIPTextModel.from_pretrained(source / "text_encoder", torch_dtype=torch.float32).eval()
    config = T5Config.from_pretrained(source / "text_encoder_2")
    config.update({"d_model": 32, "d_kv": 16, "d_ff": 64})
    t5 = encoder(target, T5EncoderModel(config), seed + 70)
    outside = [("token_embd", t5, "shared"), ("enc.output_norm", t5, "encoder.final_layer_norm")]
    pack_encoder(target / "text_encoder.gguf", "t5encoder", rng, ("enc.blk", t5.encoder.block, T5), outside)
    tokenizers = CLIPTokenizer.from_pretrained(source / "tokenizer"), AutoTokenizer.from_pretrained(source / "tokenizer_2")
    vae = AutoencoderKL.from_pretrained(source / "vae", torch_dtype=torch.float32).eval()
    return FluxPipeline(scheduler(source), vae, clip, tokenizers[0], t5, tokenizers[1], model)


def z_image_pipeline(target, seed, rng):
    source = ROOT / "tests/fixtures/z-image"
    config = json.loads((source / "transformer/config.json").read_text())
    config |= {"dim": 32, "n_heads": 2, "n_kv_heads": 2, "axes_dims": [4, 6, 6], "n_layers": 1, "n_refiner_layers": 1, "cap_feat_dim": 32}
    model = made(target, ZImageTransformer2DModel.from_config(config), seed)
    # Its width is in diffusers' code: most of its values are 0, so that the repository stays small.
    weight = model.t_embedder.mlp[0].weight.data
    weight *= 6 * (torch.rand(weight.shape, generator=torch.Generator().manual_seed(seed)) < 0.02)
    config = Qwen3Config.from_pretrained(source / "text_encoder")
    config.update({"hidden_size": 32, "head_dim": 16, "intermediate_size": 64})
    language = encoder(target, Qwen3ForCausalLM(config), seed + 70).model
    outside = [("token_embd", language, "embed_tokens"), ("output_norm", language, "norm")]
    pack_encoder(target / "text_encoder.gguf", "qwen3", rng, ("blk", language.layers, QWEN3), outside)
    vae = AutoencoderKL.from_pretrained(source / "vae", torch_dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(source / "tokenizer")
    tokenizer.chat_template = z_image.TEMPLATE
    return ZImagePipeline(scheduler(source), vae, language, tokenizer, model)


def flux2_pipeline(target, seed, rng):
    source = ROOT / "tests/fixtures/flux2"
    config = json.loads((source / "transformer/config.json").read_text())
    config |= {
        "num_attention_heads": 2, "attention_head_dim": 16, "axes_dims_rope": (4, 4, 4, 4), "num_layers": 1, "num_single_layers": 1, "mlp_ratio": 2.0,
        "joint_attention_dim": 96,
    }  # fmt: skip
    model = made(target, Flux2Transformer2DModel.from_config(config), seed)
    config = Qwen3Config.from_pretrained(source / "text_encoder")
    config.update({"hidden_size": 32, "head_dim": 16, "intermediate_size": 64})
    language = encoder(target, Qwen3ForCausalLM(config), seed + 70)
    outside = [("token_embd", language.model, "embed_tokens"), ("output_norm", language.model, "norm")]
    pack_encoder(target / "text_encoder.gguf", "qwen3", rng, ("blk", language.model.layers, QWEN3), outside)
    tokenizer = AutoTokenizer.from_pretrained(source / "tokenizer")
    tokenizer.chat_template = flux2.TEMPLATE
    vae = AutoencoderKLFlux2.from_pretrained(source / "vae", torch_dtype=torch.float32).eval()
    return flux2.Klein(scheduler(source), vae, language, tokenizer, model, is_distilled=True)


def scheduler(source):
    return FlowMatchEulerDiscreteScheduler.from_pretrained(source / "scheduler")


def case(prompt, lora, token):
    return {"prompt": prompt, "lora": lora, "scale": 0.7 if lora else 1.0, "steps": 3, "seeds": [11], "dynamic": False, "width": 3 * token, "height": 4 * token}


def with_fused(model, file, scale, run):
    kept = {name: parameter.clone() for name, parameter in model.named_parameters()}
    z_image.apply_fused(model, file)
    for name, parameter in model.named_parameters():
        parameter.data = kept[name] + (parameter.data - kept[name]) * scale
    result = run()
    for name, parameter in model.named_parameters():
        parameter.data = kept[name]
    return result


def write(target, pipeline, pack, rng, lora, changed, **more):
    """The file, a LoRA and images of both."""
    pipeline.set_progress_bar_config(disable=True)
    used = pack(target / "transformer.gguf", pipeline.transformer, rng)
    token = 2 * pipeline.vae_scale_factor
    cases = [case("a red mug", None, token), case("snow, and more of it", lora.name, token)]
    out = {"expected/0": images(pipeline, cases[0], **more), "expected/1": changed(lambda: images(pipeline, cases[1], **more), cases[1]["scale"])}
    assert not torch.equal(out["expected/0"], out["expected/1"])
    (target / "cases.json").write_text(json.dumps({"prompts": [], "dynamic": {}, "cases": cases}, indent=1) + "\n")
    save_file(out, target / "expected.safetensors")
    return used, cases, out


def as_diffusers_reads_it(target, pipeline, case, expected):
    """How far the image is off this one. diffusers' own loader makes blocks whole in f16, and wants padding tokens with all their dimensions; its
    converter of FLUX has the real model's sizes in its code."""
    with tempfile.TemporaryDirectory() as directory:
        file = f"{directory}/transformer.gguf"
        writer = GGUFWriter(file, "lumina2")
        for tensor in GGUFReader(target / "transformer.gguf").tensors:
            data = tensor.data[None] if tensor.name.endswith("x_pad_token") else tensor.data
            writer.add_tensor(tensor.name, np.ascontiguousarray(data), raw_dtype=tensor.tensor_type if data.dtype == np.uint8 else None)
        write_file(writer)
        quantised = GGUFQuantizationConfig(compute_dtype=torch.float32)
        pipeline.transformer = ZImageTransformer2DModel.from_single_file(file, config=str(target), quantization_config=quantised, torch_dtype=torch.float32)
    return (images(pipeline, case).int() - expected.int()).abs().max().item()


@torch.no_grad()
def main():
    target, seed = begin("gguf")
    rng = np.random.default_rng(seed)
    write_blocks(target, rng)

    ours = target / "flux"
    pipeline = flux_pipeline(ours, 1000 * seed, rng)
    lora = ours / flux.write_lora(ours, pipeline, "kohya", 1000 * seed + 100)

    def with_kohya(run, scale):
        changed = flux.Kohya(pipeline, lora, scale)
        result = run()
        changed.undo()
        return result

    used, _, _ = write(ours, pipeline, pack_flux, rng, lora, with_kohya, max_sequence_length=flux.TOKENS)

    ours = target / "z-image"
    pipeline = z_image_pipeline(ours, 1000 * seed + 500, rng)
    lora = ours / z_image.write_lora(ours, pipeline.transformer, "fused", 1000 * seed + 600)
    more, cases, out = write(ours, pipeline, pack_z_image, rng, lora, lambda run, scale: with_fused(pipeline.transformer, lora, scale, run))
    assert {kind.name for kind in SMALL + LARGE} <= used | more, used | more
    print("diffusers' own loader is off by", as_diffusers_reads_it(ours, pipeline, cases[0], out["expected/0"]), "of 255")

    # With numbers of its own: the other files stay as they were.
    ours = target / "flux2"
    own = np.random.default_rng(seed + 1)
    pipeline = flux2_pipeline(ours, 1000 * seed + 700, own)
    lora = ours / flux2.write_lora(ours, pipeline.transformer, "kohya", 1000 * seed + 800)

    def with_lora(run, scale):
        pipeline.load_lora_weights(ours, weight_name=lora.name, adapter_name="it")
        pipeline.set_adapters("it", scale)
        result = run()
        pipeline.unload_lora_weights()
        return result

    write(ours, pipeline, pack_flux2, own, lora, with_lora)
    for path in target.rglob("*.*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


if __name__ == "__main__":
    main()
