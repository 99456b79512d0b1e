"""Writes tests/fixtures/flux: a tiny random FLUX.1-schnell with all its parts, LoRA files, and what diffusers computes with them, for
crates/engine/tests/it/parity/flux.rs.

    python tests/oracle/flux.py [OUT_DIR SEED]    a minute on a CPU; the result of seed 1 is committed

Dimensions, weights and cases follow from the seed, and no two widths are equal. The test reads what it finds: another seed's directory in place of
the committed one asks for other numbers. Made with torch 2.11.0, transformers 5.23.0, diffusers 0.42.1, peft 0.21.2.
"""

import math
from collections import Counter

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from flows import RANK, autoencoder, begin, finish, images, pair, saved
from make_fixtures import END, START
from make_fixtures import tokenizer as clip_words
from qwen import normals, randomize
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, PreTrainedTokenizerFast, T5Config, T5EncoderModel

SIZES = [
    {"heads": 2, "axes": (4, 6, 8), "clip": 12, "clip_heads": 3, "t5": 20, "t5_heads": 3, "head": 8, "latents": 5, "vae": (4, 8, 12), "double": 1, "single": 2},
    {"heads": 3, "axes": (2, 4, 6), "clip": 20, "clip_heads": 2, "t5": 28, "t5_heads": 2, "head": 6, "latents": 4, "vae": (4, 4, 8, 12), "double": 2, "single": 1},
    {"heads": 4, "axes": (4, 2, 2), "clip": 24, "clip_heads": 4, "t5": 36, "t5_heads": 5, "head": 4, "latents": 6, "vae": (4, 8, 16), "double": 1, "single": 1},
]  # fmt: skip
# Of the real checkpoint, and of the one with guidance.
SCHEDULE = {"num_train_timesteps": 1000, "shift": 1.0, "use_dynamic_shifting": False, "base_shift": 0.5, "max_shift": 1.15,
            "base_image_seq_len": 256, "max_image_seq_len": 4096}  # fmt: skip
DYNAMIC = SCHEDULE | {"use_dynamic_shifting": True, "shift": 3.0, "base_image_seq_len": 16, "max_image_seq_len": 64}
PROMPTS = ["a red mug", "Größe XL's 衣服…\n\n  7, <|ok|>?", "", "snow, and more of it " * 12, "  a woman wearing  a striped t-shirt, 24 words or so: " * 3]
TEXT = " ".join([*PROMPTS, "a pink dress in the garden, a man wearing a dotted blue shirt, best quality, many words that any prompt may have"])
TOKENS = 256


def t5_tokenizer(target):
    """Pieces of a unigram model over marked spaces, as T5's; its real one has a normalizer that is a table of SentencePiece's."""
    # Not trained: the trainer's threads would make another vocabulary each time.
    words = [f"▁{word}" for word in TEXT.split()]
    counts = Counter("".join(words)) + Counter({word: 20 * count for word, count in Counter(words).items()})
    pieces = sorted(counts, key=lambda piece: (-counts[piece], piece))[:150]
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((piece, math.log(counts[piece] / counts.total())) for piece in pieces)]
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=2, byte_fallback=False))
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>"])
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(" {2,}", " ")])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", tokenizer.token_to_id("</s>"))])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>", unk_token="<unk>", model_max_length=TOKENS)
    fast.save_pretrained(target / "tokenizer_2")
    return fast


def text_encoders(target, size, seed):
    vocab, merges = clip_words()
    clip = CLIPTextModel(
        CLIPTextConfig(vocab_size=len(vocab), hidden_size=size["clip"], intermediate_size=28, num_hidden_layers=2, projection_dim=10,
                       num_attention_heads=size["clip_heads"], bos_token_id=vocab[START], eos_token_id=2, pad_token_id=vocab[END],
                       hidden_act="quick_gelu")
    )  # fmt: skip
    randomize(clip, seed).save_pretrained(target / "text_encoder")
    tokenizer = CLIPTokenizer(vocab=vocab, merges=merges, pad_token=END, model_max_length=77)
    tokenizer.save_pretrained(target / "tokenizer")
    tokenizer_2 = t5_tokenizer(target)
    t5 = T5EncoderModel(
        T5Config(vocab_size=len(tokenizer_2) + 3, d_model=size["t5"], d_kv=size["head"], d_ff=44, num_layers=2, num_heads=size["t5_heads"],
                 feed_forward_proj="gated-gelu", relative_attention_num_buckets=32, relative_attention_max_distance=128)
    )  # fmt: skip
    randomize(t5, seed + 500).save_pretrained(target / "text_encoder_2")
    clip = CLIPTextModel.from_pretrained(target / "text_encoder", torch_dtype=torch.float32).eval()
    t5 = T5EncoderModel.from_pretrained(target / "text_encoder_2", torch_dtype=torch.float32).eval()
    return clip, tokenizer, t5, tokenizer_2


def transformer(target, size, seed):
    model = FluxTransformer2DModel(
        in_channels=4 * size["latents"], num_layers=size["double"], num_single_layers=size["single"], attention_head_dim=sum(size["axes"]),
        num_attention_heads=size["heads"], joint_attention_dim=size["t5"], pooled_projection_dim=size["clip"], guidance_embeds=False,
        axes_dims_rope=size["axes"],
    )  # fmt: skip
    randomize(model, seed).save_pretrained(target / "transformer")
    return FluxTransformer2DModel.from_pretrained(target / "transformer", torch_dtype=torch.float32).eval()


def checkpoint(target, size, seed):
    clip, tokenizer, t5, tokenizer_2 = text_encoders(target, size, seed + 6000)
    scheduler = FlowMatchEulerDiscreteScheduler(**SCHEDULE)
    scheduler.save_pretrained(target / "scheduler")
    vae = autoencoder(target, size, seed + 5000)
    pipeline = FluxPipeline(scheduler, vae, clip, tokenizer, t5, tokenizer_2, transformer(target, size, seed + 4000))
    return saved(target, pipeline)


DOUBLE = [
    ("norm1.linear", "img_mod.lin"), ("norm1_context.linear", "txt_mod.lin"), ("attn.to_out.0", "img_attn.proj"), ("attn.to_add_out", "txt_attn.proj"),
    ("ff.net.0.proj", "img_mlp.0"), ("ff.net.2", "img_mlp.2"), ("ff_context.net.0.proj", "txt_mlp.0"), ("ff_context.net.2", "txt_mlp.2"),
]  # fmt: skip
JOINT = [("img_attn.qkv", ["attn.to_q", "attn.to_k", "attn.to_v"]), ("txt_attn.qkv", ["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"])]
SINGLE = [("norm.linear", "modulation.lin"), ("proj_out", "linear2")]
LINEAR1 = [("linear1", ["attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"])]


def first_release(model):
    """Names of layers as of the first release, and the layers here that each of them is, one after the other."""
    layers = {}
    for kind, old, blocks, names, joint in (
        ("transformer_blocks", "double_blocks", model.transformer_blocks, DOUBLE, JOINT),
        ("single_transformer_blocks", "single_blocks", model.single_transformer_blocks, SINGLE, LINEAR1),
    ):
        for number in range(len(blocks)):
            layers |= {f"{old}.{number}.{theirs}": [f"{kind}.{number}.{ours}"] for ours, theirs in names}
            layers |= {f"{old}.{number}.{theirs}": [f"{kind}.{number}.{part}" for part in parts] for theirs, parts in joint}
    return layers


NORMS = {"transformer_blocks": [("attn.norm_q", "img_attn.norm.query_norm"), ("attn.norm_k", "img_attn.norm.key_norm"),
                               ("attn.norm_added_q", "txt_attn.norm.query_norm"), ("attn.norm_added_k", "txt_attn.norm.key_norm")],
         "single_transformer_blocks": [("attn.norm_q", "norm.query_norm"), ("attn.norm_k", "norm.key_norm")]}  # fmt: skip
OUTSIDE = {
    "img_in": "x_embedder", "txt_in": "context_embedder", "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2", "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2", "final_layer.linear": "proj_out",
}  # fmt: skip


def write_single_file(target, model):
    """The transformer as its first release named it: what `convert_flux_transformer_checkpoint_to_diffusers` undoes, whose sizes are the real one's."""
    state, out = load_file(target / "transformer/diffusion_pytorch_model.safetensors"), {}
    layers = first_release(model) | {old: [ours] for old, ours in OUTSIDE.items()}
    for old, parts in layers.items():
        for kind in ("weight", "bias"):
            out[f"{old}.{kind}"] = torch.cat([state.pop(f"{part}.{kind}") for part in parts])
    for kind, names in NORMS.items():
        for number in range(len(getattr(model, kind))):
            for ours, theirs in names:
                old = kind.replace("single_transformer_blocks", "single_blocks").replace("transformer_blocks", "double_blocks")
                out[f"{old}.{number}.{theirs}.scale"] = state.pop(f"{kind}.{number}.{ours}.weight")
    for kind in ("weight", "bias"):
        scale, shift = state.pop(f"norm_out.linear.{kind}").chunk(2)
        out[f"final_layer.adaLN_modulation.1.{kind}"] = torch.cat([shift, scale])
    assert not state, list(state)
    out = {f"model.diffusion_model.{name}": tensor.contiguous() for name, tensor in out.items()}
    save_file(out | {"vae.decoder.conv_in.bias": torch.zeros(2)}, target / "single_file.safetensors")


def write_lora(target, pipeline, spelling, seed):
    tensors = {}
    model = pipeline.transformer
    if spelling == "diffusers":
        for number, (name, module) in enumerate(model.named_modules()):
            if isinstance(module, torch.nn.Linear):
                names = [f"transformer.{name}.lora_{side}.weight" for side in "AB"]
                tensors[names[0]], tensors[names[1]] = pair(*module.weight.shape, seed + 2 * number)
    else:
        for number, (old, parts) in enumerate(first_release(model).items()):
            rows = sum(model.get_submodule(part).weight.shape[0] for part in parts)
            prefix = f"lora_unet_{old.replace('.', '_')}"
            columns = model.get_submodule(parts[0]).weight.shape[1]
            tensors[f"{prefix}.lora_down.weight"], tensors[f"{prefix}.lora_up.weight"] = pair(rows, columns, seed + 2 * number)
            tensors[f"{prefix}.alpha"] = torch.tensor(2.0, dtype=torch.bfloat16)
        for number, (name, module) in enumerate(pipeline.text_encoder.named_modules()):
            if isinstance(module, torch.nn.Linear) and "self_attn" in name:
                prefix = "lora_te1_text_model_" + name.removeprefix("text_model.").replace(".", "_")
                tensors[f"{prefix}.lora_down.weight"], tensors[f"{prefix}.lora_up.weight"] = pair(*module.weight.shape, seed + 900 + 2 * number)
                tensors[f"{prefix}.alpha"] = torch.tensor(1.5, dtype=torch.bfloat16)
    file = target / f"{spelling}.safetensors"
    save_file(tensors, file)
    return file.name


class Kohya:
    """diffusers' converter has the real model's sizes in its code: what the file means is the product's rows, added to the weights."""

    def __init__(self, pipeline, file, scale):
        self.tensors, self.scale, self.kept = load_file(file), scale, []
        for old, parts in first_release(pipeline.transformer).items():
            self.add(f"lora_unet_{old.replace('.', '_')}", [pipeline.transformer.get_submodule(part) for part in parts])
        for name, module in pipeline.text_encoder.named_modules():
            if isinstance(module, torch.nn.Linear) and "self_attn" in name:
                self.add("lora_te1_text_model_" + name.removeprefix("text_model.").replace(".", "_"), [module])
        assert not self.tensors, list(self.tensors)[:3]

    def add(self, prefix, modules):
        down, up, alpha = (self.tensors.pop(f"{prefix}.{end}").float() for end in ("lora_down.weight", "lora_up.weight", "alpha"))
        change = up @ down * (alpha.item() / RANK * self.scale)
        for module, rows in zip(modules, change.split([module.weight.shape[0] for module in modules])):
            self.kept.append((module, module.weight.data.clone()))
            module.weight.data += rows

    def undo(self):
        for module, weight in reversed(self.kept):
            module.weight.data = weight


def cases_of(rng, token, loras):
    cases = []
    for number, lora in enumerate([None, None, None, *loras]):
        cases.append({
            "prompt": PROMPTS[number % len(PROMPTS)], "lora": lora, "scale": [1.0, 0.7][number % 2], "steps": [4, 1, 3, 2][number % 4],
            "seeds": [int(rng.integers(0, 2**32)) + n for n in range(1 + number % 2)], "dynamic": number == 2,
            "width": token * int(rng.integers(3, 8)), "height": token * int(rng.integers(3, 8)),
        })  # fmt: skip
    return cases


def stages(pipeline, out, size):
    for number, prompt in enumerate(PROMPTS):
        states, pooled, text_ids = pipeline.encode_prompt(prompt, device="cpu", max_sequence_length=TOKENS)
        out[f"text/{number}"], out[f"pooled/{number}"] = states[:, ::7].contiguous(), pooled
        if number < 3:
            height, width, time = ((8, 14, 1000.0), (10, 6, 433.25), (6, 12, 1.0))[number]
            latents = normals((1, size["latents"], height, width), 17 + number)
            packed = pipeline._pack_latents(latents, 1, size["latents"], height, width)
            ids = pipeline._prepare_latent_image_ids(1, height // 2, width // 2, "cpu", torch.float32)
            velocity = pipeline.transformer(
                packed, encoder_hidden_states=states, pooled_projections=pooled, timestep=torch.tensor([time / 1000]), img_ids=ids, txt_ids=text_ids
            ).sample  # fmt: skip
            scale = pipeline.vae_scale_factor
            out[f"latents/{number}"], out[f"time/{number}"] = latents, torch.tensor([time])
            out[f"velocity/{number}"] = pipeline._unpack_latents(velocity, height * scale, width * scale, scale)


@torch.no_grad()
def main():
    target, seed = begin("flux")
    size = SIZES[seed % len(SIZES)]
    pipeline = checkpoint(target, size, 1000 * seed)
    rng = np.random.default_rng(seed)
    out = {}
    stages(pipeline, out, size)
    write_single_file(target, pipeline.transformer)
    loras = [write_lora(target, pipeline, spelling, 1000 * seed + 100) for spelling in ("diffusers", "kohya")]
    cases = cases_of(rng, 2 ** len(size["vae"]), loras)
    for number, case in enumerate(cases):
        pipeline.scheduler = FlowMatchEulerDiscreteScheduler(**(DYNAMIC if case["dynamic"] else SCHEDULE))
        kohya = Kohya(pipeline, target / case["lora"], case["scale"]) if case["lora"] == "kohya.safetensors" else None
        if case["lora"] == "diffusers.safetensors":
            pipeline.load_lora_weights(target, weight_name=case["lora"], adapter_name="it")
            pipeline.set_adapters("it", case["scale"])
        out[f"expected/{number}"] = images(pipeline, case, max_sequence_length=TOKENS)
        if kohya:
            kohya.undo()
        elif case["lora"]:
            pipeline.unload_lora_weights()
    finish(target, {"prompts": PROMPTS, "dynamic": DYNAMIC, "cases": cases}, out)


if __name__ == "__main__":
    main()
