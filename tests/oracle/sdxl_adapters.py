"""Writes LoRA files, textual inversions and one file of all weights into tests/fixtures/sdxl, and what diffusers makes of them and of weighted prompts.

    python tests/oracle/sdxl_adapters.py    half a minute on a CPU, after sdxl.py; the result is committed
"""

import json
import shutil

import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline
from make_fixtures import NEGATIVE, PROMPT, lora, normals, pixels
from old_names import old_names, old_vae_names
from safetensors.torch import load_file, save_file
from sdxl import OUT
from weighted_prompts import CASES, ROOM, restored, tokens

TIMESTEP = 500.0
LPW = {
    "weights": ([("a ", 1.0), ("small", 1.3), (" ", 1.0), ("lighthouse", 1 / 1.1), (" over ", 1.0), ("the sea", 1.1)], [("storm, dog", 1.0)]),
    "long": ([("a bright ", 1.0), ("red ", 1.5), ("cat " * 80, 1.0), ("and a dog", 0.25)], [("storm, ", 1.0), ("dog", 1.2)]),
    "full": ([("cat " * 75, 1.0)], [("sea " * 90, 0.5)]),
}


def load():
    pipeline = StableDiffusionXLPipeline.from_pretrained(OUT, torch_dtype=torch.float32, add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def shapes(model):
    return {name.removesuffix(".weight"): tuple(p.shape) for name, p in model.named_parameters() if name.endswith("weight")}


def files(pipeline):
    """LoRA files by their names: diffusers', kohya's over diffusers' block names and over the first release's, and old diffusers'."""
    unet, first, second = shapes(pipeline.unet), shapes(pipeline.text_encoder), shapes(pipeline.text_encoder_2)
    attention = [n for n in unet if n.split(".")[-1] in ("to_q", "to_k", "to_v") or n.endswith("to_out.0")]
    rest = [n for n in unet if ".ff.net." in n or ".proj_" in n or n.endswith(("conv1", "conv_shortcut", "time_emb_proj"))]
    te = [n for n in first if n.endswith("_proj") and len(first[n]) == 2]
    te2 = [n for n in second if n.endswith("_proj") and len(second[n]) == 2]
    old = old_names(pipeline.unet)
    level = "text_model." if not te[0].startswith("text_model.") else ""

    def peft(component):
        return lambda module, matrix: f"{component}.{module}.lora_{'A' if matrix == 'down' else 'B'}.weight"

    def dotted(component):
        return lambda module, matrix: f"{component}.{module}.lora.{matrix}.weight"

    def kohya(prefix):
        return lambda module, matrix: f"{prefix}_{module.replace('.', '_')}.lora_{matrix}.weight"

    def sgm(module, matrix):
        return f"lora_unet_{old[module].replace('.', '_')}.lora_{matrix}.weight"

    def encoder(style, component, names, model, rank, seed, prefix):
        return lora(names, model, rank, seed, lambda module, matrix: style(component)(prefix + module, matrix))

    level2 = "" if te2[0].startswith("text_model.") else "text_model."
    with_alpha = lambda tensors: tensors | {k.replace("lora_down.weight", "alpha"): torch.tensor(1.5) for k in tensors if k.endswith("lora_down.weight")}  # noqa: E731
    return {
        "peft": lora(attention, unet, 4, 100, peft("unet")) | encoder(peft, "text_encoder", te, first, 2, 300, level)
        | encoder(peft, "text_encoder_2", te2, second, 3, 500, level2),
        "kohya": with_alpha(lora(attention + rest, unet, 3, 700, kohya("lora_unet")) | encoder(kohya, "lora_te1", te, first, 3, 900, level)
                            | encoder(kohya, "lora_te2", te2, second, 2, 1100, level2)),
        "sgm": with_alpha(lora(attention, unet, 3, 1300, sgm) | encoder(kohya, "lora_te2", te2, second, 2, 1500, level2)),
        "dotted": lora(attention, unet, 2, 1700, dotted("unet")),
    }  # fmt: skip


def loras(pipeline, out):
    directory = OUT / "loras"
    directory.mkdir()
    for name, tensors in files(pipeline).items():
        save_file({key: value.contiguous() for key, value in tensors.items()}, directory / f"{name}.safetensors")
    mixes = {"peft": {"peft": 1.0}, "kohya": {"kohya": 0.8}, "sgm": {"sgm": -0.6}, "dotted": {"dotted": 1.0},
             "three": {"peft": 0.6, "kohya": -0.5, "sgm": 0.4}}  # fmt: skip
    plain = pipeline.encode_prompt(PROMPT, device="cpu", do_classifier_free_guidance=False)[0]
    latents = normals((1, 4, 9, 13), 18)
    out["lora/latents"] = latents
    for mix, scales in mixes.items():
        for name in scales:
            pipeline.load_lora_weights(directory, weight_name=f"{name}.safetensors", adapter_name=name)
        pipeline.set_adapters(list(scales), list(scales.values()))
        states, _, pooled, _ = pipeline.encode_prompt(PROMPT, device="cpu", do_classifier_free_guidance=False)
        halves = [torch.equal(states[..., :12], plain[..., :12]), torch.equal(states[..., 12:], plain[..., 12:])]
        assert halves == [mix in ("sgm", "dotted"), mix == "dotted"], f"{mix} and the text encoders: {halves}"
        added = {"text_embeds": pooled, "time_ids": torch.tensor([[72.0, 104, 0, 0, 72, 104]])}
        out[f"lora/{mix}/text"], out[f"lora/{mix}/pooled"] = states, pooled
        out[f"lora/{mix}/unet"] = pipeline.unet(latents, torch.tensor(TIMESTEP), states, added_cond_kwargs=added).sample
        pipeline.unload_lora_weights()
    (directory / "mixes.json").write_text(json.dumps(mixes, indent=2) + "\n")


def inversions(out):
    """Words for both encoders, in as many vectors as each file has for each."""
    directory = OUT / "embeddings"
    directory.mkdir()
    words = {"mood": ("<mood>", 1, 1), "mill": ("<old-mill>", 3, 3), "uneven": ("easydusk", 2, 1)}
    pipeline = load()
    for index, (name, (token, first, second)) in enumerate(words.items()):
        vectors = {"clip_l": normals((first, 12), 2200 + index), "clip_g": normals((second, 20), 2300 + index)}
        save_file(vectors, directory / f"{name}.safetensors")
        for key, encoder, tokenizer in (("clip_l", "text_encoder", "tokenizer"), ("clip_g", "text_encoder_2", "tokenizer_2")):
            pipeline.load_textual_inversion(
                {token: vectors[key]}, token=token, text_encoder=getattr(pipeline, encoder), tokenizer=getattr(pipeline, tokenizer)
            )
    for name, prompt, negative in (("one", "a <mood> lighthouse", "storm"), ("several", "a <mood> cat over <old-mill>, and easydusk", "<old-mill> dog")):
        positive, negative, pooled, negative_pooled = pipeline.encode_prompt(prompt, device="cpu", negative_prompt=negative)
        out[f"inverted/{name}/text"] = torch.cat([negative, positive])
        out[f"inverted/{name}/pooled"] = torch.cat([negative_pooled, pooled])


class One:
    """A pipeline that is one of the text encoders, for what `weighted_prompts.tokens` asks of it."""

    def __init__(self, pipeline, tokenizer, text_encoder):
        self.tokenizer, self.text_encoder = tokenizer, text_encoder
        self.maybe_convert_prompt = pipeline.maybe_convert_prompt

    def hidden(self, ids):
        return self.text_encoder(torch.tensor([ids]), output_hidden_states=True)


def both(pipeline):
    return One(pipeline, pipeline.tokenizer, pipeline.text_encoder), One(pipeline, pipeline.tokenizer_2, pipeline.text_encoder_2)


def automatic(pipeline, chunks):
    """AUTOMATIC1111's modules/sd_hijack_clip.py for each encoder by itself; the pooled text is the first chunk's."""
    states, pooled = [], None
    for encoder in both(pipeline):
        bos, eos, pad = encoder.tokenizer.bos_token_id, encoder.tokenizer.eos_token_id, encoder.tokenizer.pad_token_id
        rows = []
        for chunk in chunks:
            text = tokens(encoder, chunk)
            padded = [bos, *(token for token, _ in text), eos] + [pad] * (ROOM - len(text))
            weights = [1.0, *(weight for _, weight in text)] + [1.0] * (ROOM + 1 - len(text))
            encoded = encoder.hidden(padded)
            rows.append(restored(encoded.hidden_states[-2], weights))
            if encoder.text_encoder is pipeline.text_encoder_2 and pooled is None:
                pooled = encoded.text_embeds
        states.append(torch.cat(rows, 1))
    return torch.cat(states, 2), pooled


def lpw(pipeline, prompt, negative):
    """get_weighted_text_embeddings_sdxl of diffusers' examples/community/lpw_stable_diffusion_xl.py."""
    out = {"text": [[], []], "pooled": [None, None]}
    for encoder in both(pipeline):
        bos, eos = encoder.tokenizer.bos_token_id, encoder.tokenizer.eos_token_id
        texts = [tokens(encoder, negative), tokens(encoder, prompt)]
        length = max(map(len, texts))
        for row, text in enumerate(texts):
            text = text + [(pipeline.tokenizer.eos_token_id, 1.0)] * (length - len(text))
            groups = []
            for start in range(0, length, ROOM):
                part = text[start : start + ROOM]
                encoded = encoder.hidden([bos, *(token for token, _ in part), eos])
                states = encoded.hidden_states[-2][0].clone()
                for place, weight in enumerate([1.0, *(weight for _, weight in part), 1.0]):
                    weight = torch.tensor(weight, dtype=torch.float16)
                    if weight != 1.0:
                        states[place] = states[-1] + (states[place] - states[-1]) * weight
                groups.append(states)
                out["pooled"][row] = getattr(encoded, "text_embeds", None)
            out["text"][row].append(torch.cat(groups)[None])
    return torch.cat([torch.cat(states, 2) for states in out["text"]]), torch.cat(out["pooled"])


def prompts(pipeline, out):
    for name in ("blanks", "break", "two_chunks"):
        states, pooled = automatic(pipeline, CASES[name][1])
        out[f"weighted/{name}/text"], out[f"weighted/{name}/pooled"] = states, pooled
    for name, (prompt, negative) in LPW.items():
        out[f"lpw/{name}/text"], out[f"lpw/{name}/pooled"] = lpw(pipeline, prompt, negative)


OPEN_CLIP = [("self_attn.out_proj", "attn.out_proj"), ("layer_norm1", "ln_1"), ("layer_norm2", "ln_2"), ("mlp.fc1", "mlp.c_fc"),
             ("mlp.fc2", "mlp.c_proj"), ("encoder.layers", "transformer.resblocks"), ("final_layer_norm", "ln_final"),
             ("embeddings.token_embedding", "token_embedding"), ("embeddings.position_embedding.weight", "positional_embedding")]  # fmt: skip


def single_file(pipeline, out):
    """All weights under generative-models' names, as most of the community's checkpoints come; read back by `from_single_file`."""
    part = lambda directory, name: load_file(OUT / directory / f"{name}.safetensors")  # noqa: E731
    names = old_names(pipeline.unet)
    whole = {f"model.diffusion_model.{names[k.rsplit('.', 1)[0]]}.{k.rsplit('.', 1)[1]}": v for k, v in part("unet", "diffusion_pytorch_model").items()}
    whole |= old_vae_names(part("vae", "diffusion_pytorch_model"), pipeline.vae.config)
    for key, value in part("text_encoder", "model").items():
        whole[f"conditioner.embedders.0.transformer.{key if key.startswith('text_model.') else 'text_model.' + key}"] = value
    second = {key.removeprefix("text_model."): value for key, value in part("text_encoder_2", "model").items()}
    prefix = "conditioner.embedders.1.model."
    whole[f"{prefix}text_projection"] = second.pop("text_projection.weight").T
    whole[f"{prefix}logit_scale"] = torch.tensor(4.6)
    for key, value in second.items():
        if ".k_proj." in key or ".v_proj." in key:
            continue
        name = key
        if ".q_proj." in key:
            value = torch.cat([second[key.replace("q_proj", letter)] for letter in ("q_proj", "k_proj", "v_proj")])
            name = key.replace("self_attn.q_proj.", "attn.in_proj_")
        for new, old in OPEN_CLIP:
            name = name.replace(new, old)
        whole[prefix + name] = value
    file = OUT / "single_file.safetensors"
    save_file({key: value.contiguous() for key, value in whole.items()}, file)
    back = StableDiffusionXLPipeline.from_single_file(file, config=str(OUT), local_files_only=True, torch_dtype=torch.float32, add_watermarker=False)
    back.set_progress_bar_config(disable=True)
    for name in ("unet", "vae", "text_encoder", "text_encoder_2"):
        ours, theirs = getattr(pipeline, name).state_dict(), getattr(back, name).state_dict()
        assert all(torch.equal(ours[key].float(), theirs[key].float()) for key in ours), f"{name} is another one"
    generated = back(PROMPT, negative_prompt=NEGATIVE, width=104, height=72, num_inference_steps=4, guidance_scale=7.0,
                     generator=torch.Generator().manual_seed(42), output_type="np").images  # fmt: skip
    out["single_file"] = pixels(generated)


def few_steps(pipeline, out):
    """Trailing timesteps, without guidance: Lightning, Hyper and Turbo."""
    pipeline.scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config, timestep_spacing="trailing")
    for steps in (1, 2, 4, 8):
        for guidance in (0.0, 1.0):
            generated = pipeline(PROMPT, width=104, height=72, num_inference_steps=steps, guidance_scale=guidance,
                                 generator=torch.Generator().manual_seed(42), output_type="np").images  # fmt: skip
            out[f"trailing/{steps}/{guidance}"] = pixels(generated)
    # What a job can say of SDXL itself, which begins with a little more noise.
    pipeline.scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config, timestep_spacing="leading")
    for timesteps in ([999], [999, 499], [999, 749, 499, 249]):
        generated = pipeline(PROMPT, width=104, height=72, timesteps=timesteps, guidance_scale=0.0,
                             generator=torch.Generator().manual_seed(42), output_type="np").images  # fmt: skip
        out[f"listed/{len(timesteps)}"] = pixels(generated)


@torch.no_grad()
def main():
    for name in ("loras", "embeddings"):
        shutil.rmtree(OUT / name, ignore_errors=True)
    pipeline = load()
    out = {}
    loras(pipeline, out)
    inversions(out)
    prompts(pipeline, out)
    single_file(pipeline, out)
    few_steps(pipeline, out)
    save_file({key: value.contiguous() for key, value in out.items()}, OUT / "adapters.safetensors")
    size = sum(file.stat().st_size for file in OUT.rglob("*") if file.is_file())
    print(f"{size / 1e6:.2f} MB in {OUT}")


if __name__ == "__main__":
    main()
