"""Writes tests/fixtures/sd/adapter_files: adapters as diffusers and PEFT themselves save them, and what the model makes with each.

    OMP_NUM_THREADS=1 python tests/oracle/adapter_files.py    some seconds on a CPU; the result is committed

Needs what make_fixtures.py needs. What decides is how each library reads alpha: from `lora_adapter_metadata` in the header, with its
patterns in their order, or from the `adapter_config.json` that `save_pretrained` writes beside the file.
"""

import shutil

import torch
from diffusers import StableDiffusionPipeline
from peft import LoHaConfig, LoKrConfig, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from make_fixtures import HERE, PROMPT, normals, text_hidden

DIRECTORY = HERE / "adapter_files"
ATTENTION = ["to_q", "to_v", "to_out.0"]


def open_pipeline():
    pipeline = StableDiffusionPipeline.from_pretrained(HERE / "sd15", torch_dtype=torch.float32, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def randomize(model, seed):
    """Overwrites every tensor of the adapter; lengths stay near the weights' own."""
    for n, (name, parameter) in enumerate(sorted(model.named_parameters())):
        if "magnitude" in name:
            parameter.data = parameter.detach() * (1 + normals(parameter.shape, seed + n, 0.2))
        elif any(mark in name for mark in ("lora_", "lokr_", "hada_")):
            inside = parameter.shape[1:].numel() or 1
            parameter.data = normals(parameter.shape, seed + n, 0.5 * inside**-0.5)


def look(pipeline, latents, out, name):
    hidden = text_hidden(pipeline, PROMPT)[1]
    out[f"{name}/text"] = hidden
    out[f"{name}/unet"] = pipeline.unet(latents, torch.tensor(500.0), hidden).sample


def unet_adapters():
    """By name: what `unet.save_lora_adapter` writes for it."""
    return {
        "unet_alpha": LoraConfig(r=3, lora_alpha=12, target_modules=ATTENTION),
        "unet_patterns": LoraConfig(
            r=3, lora_alpha=7, target_modules=ATTENTION,
            rank_pattern={"^mid_block.*": 2, "attn1.to_q": 5},
            alpha_pattern={r"^up_blocks\.1.*to_v": 3, "attn[2-9].to_q": 1, "o_out.0": 100, "to_v": 9, "up_blocks.*": 2},
        ),
        "unet_rslora": LoraConfig(r=5, lora_alpha=6, target_modules=ATTENTION, use_rslora=True),
        "unet_dora": LoraConfig(r=2, lora_alpha=5, target_modules=["to_q", "conv1"], use_dora=True),
        "unet_bias": LoraConfig(r=2, lora_alpha=6, target_modules=["to_out.0", "ff.net.2", "conv2"], lora_bias=True),
    }  # fmt: skip


def from_header(latents, out):
    for n, (name, config) in enumerate(unet_adapters().items()):
        pipeline = open_pipeline()
        pipeline.unet.add_adapter(config)
        randomize(pipeline.unet, 1000 * (n + 1))
        pipeline.unet.save_lora_adapter(DIRECTORY, weight_name=f"{name}.safetensors")
        # As the library reads it back: the header's patterns are sorted.
        pipeline = open_pipeline()
        pipeline.unet.load_lora_adapter(DIRECTORY, weight_name=f"{name}.safetensors", prefix=None)
        look(pipeline, latents, out, name)


def saved_again(latents, out):
    """A file of kohya with mixed ranks and alphas, loaded and saved by diffusers: its header has patterns that begin with ^."""
    pipeline, tensors = open_pipeline(), {}
    found = [(n, m) for n, m in pipeline.unet.named_modules() if n.endswith(("attn1.to_q", "attn1.to_v", "attn2.to_k"))]
    for n, (name, module) in enumerate(found):
        rank, key = 2 + n % 3, f"lora_unet_{name.replace('.', '_')}"
        rows, columns = module.weight.shape
        tensors[f"{key}.lora_down.weight"] = normals((rank, columns), 5000 + 2 * n, columns**-0.5)
        tensors[f"{key}.lora_up.weight"] = normals((rows, rank), 5001 + 2 * n, 0.5)
        tensors[f"{key}.alpha"] = torch.tensor([1.0, 2.5, 4.0][n % 3])
    pipeline.load_lora_weights(tensors, adapter_name="mixed")
    pipeline.unet.save_lora_adapter(DIRECTORY, adapter_name="mixed", weight_name="unet_saved_again.safetensors")
    look(pipeline, latents, out, "unet_saved_again")


def peft_adapters():
    """By name: the component, and what PEFT's `save_pretrained` writes for it."""
    return {
        "peft_unet": ("unet", LoraConfig(r=3, lora_alpha=8, target_modules=ATTENTION, alpha_pattern={"attn2.to_q": 2})),
        "peft_text": ("text_encoder", LoraConfig(r=2, lora_alpha=7, target_modules=["q_proj", "out_proj", "fc1"])),
        "peft_lokr": ("unet", LoKrConfig(r=2, alpha=5, target_modules=["to_q", "to_k"], decompose_both=True)),
        "peft_loha": ("unet", LoHaConfig(r=2, alpha=3, target_modules=["to_v", "ff.net.2"])),
    }


def from_config(latents, out):
    for n, (name, (component, config)) in enumerate(peft_adapters().items()):
        pipeline = open_pipeline()
        adapted = get_peft_model(getattr(pipeline, component), config)
        randomize(adapted, 20_000 + 1000 * n)
        adapted.save_pretrained(DIRECTORY / name)
        (DIRECTORY / name / "README.md").unlink(missing_ok=True)
        pipeline = open_pipeline()
        setattr(pipeline, component, PeftModel.from_pretrained(getattr(pipeline, component), DIRECTORY / name).base_model.model)
        look(pipeline, latents, out, name)


def old_text(latents, out):
    """diffusers 0.17's names for the text encoder's attention."""
    pipeline, tensors = open_pipeline(), {}
    for n, (name, module) in enumerate((n, m) for n, m in pipeline.text_encoder.named_modules() if n.endswith("_proj")):
        old = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}[name.rsplit(".", 1)[1]]
        key = f"text_encoder.text_model.{name.rsplit('.', 1)[0]}.{old}_lora"
        rows, columns = module.weight.shape
        tensors[f"{key}.down.weight"] = normals((3, columns), 7000 + 2 * n, columns**-0.5)
        tensors[f"{key}.up.weight"] = normals((rows, 3), 7001 + 2 * n, 0.5)
    save_file(tensors, DIRECTORY / "text_old.safetensors")
    pipeline.load_lora_weights(DIRECTORY, weight_name="text_old.safetensors")
    look(pipeline, latents, out, "text_old")


def main():
    shutil.rmtree(DIRECTORY, ignore_errors=True)
    DIRECTORY.mkdir()
    latents, out = load_file(HERE / "sd15.safetensors")["unet/1x9x13/latents"], {}
    look(open_pipeline(), latents, out, "plain")
    from_header(latents, out)
    saved_again(latents, out)
    from_config(latents, out)
    old_text(latents, out)
    for name in {key.split("/")[0] for key in out} - {"plain"}:
        assert not torch.equal(out[f"{name}/unet"], out["plain/unet"]), f"{name} changes nothing"
    save_file({key: value.contiguous() for key, value in out.items()}, DIRECTORY / "expected.safetensors")


if __name__ == "__main__":
    with torch.no_grad():
        main()
