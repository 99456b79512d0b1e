"""Trains one style LoRA on an exported tiny-sd with PEFT and writes it as StableDiffusionPipeline.save_lora_weights does.

    nice -n 5 python lora.py MODEL_DIR STYLE.latents.pt STYLE MINUTES [--text]     to MODEL_DIR/lora/STYLE.safetensors, going on from it
    python lora.py kohya MODEL_DIR/lora/STYLE.safetensors OUT.safetensors          the same weights under kohya's keys

The U-Net's attention projections and feed-forwards get rank-4 updates; with --text the text encoder's attention too.
"""

import re
import sys
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor
from diffusers.utils import convert_state_dict_to_diffusers
from diffusion import draw, empty_tokens, epsilon_loss
from loop import Run, nothing_more
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file

RANK = 4
BATCH = 16
PEAK_RATE = 4e-3
UNET_TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"]
TEXT_TARGETS = ["q_proj", "k_proj", "v_proj", "out_proj"]


def train(model, latents, style, minutes, with_text):
    torch.set_num_threads(1)
    torch.manual_seed(21)
    data = torch.load(latents, weights_only=True)
    pipeline = StableDiffusionPipeline.from_pretrained(model, torch_dtype=torch.float32, safety_checker=None)
    unet, text = pipeline.unet.requires_grad_(False), pipeline.text_encoder.requires_grad_(False)
    unet.set_attn_processor(AttnProcessor())
    unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=UNET_TARGETS))
    if with_text:
        text.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=TEXT_TARGETS))
    path = Path(model) / "lora" / f"{style}.safetensors"
    if path.exists():
        start = to_peft(load_file(path))
        set_peft_model_state_dict(unet, start["unet"])
        if with_text:
            set_peft_model_state_dict(text, start["text_encoder"])
    parameters = [p for m in (unet, text) for p in m.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=PEAK_RATE, betas=(0.9, 0.98), weight_decay=0.0)
    empty = empty_tokens(text.config.vocab_size)
    first_seed = 3_000_000 if path.exists() else 2_000_000

    def loss_at(step):
        generator = torch.Generator().manual_seed(first_seed + step)
        clean, tokens = draw(data, empty, generator, BATCH)
        with torch.autocast("cpu", torch.bfloat16):
            hidden = text(tokens).last_hidden_state
        return epsilon_loss(unet, clean, hidden, generator), nothing_more

    run = Run({}, optimizer)
    run.train(minutes, loss_at, PEAK_RATE, warm_up_steps=30, report_every=25)
    directory = Path(model) / "lora"
    directory.mkdir(exist_ok=True)
    half = lambda m: {k: v.half().contiguous() for k, v in convert_state_dict_to_diffusers(get_peft_model_state_dict(m)).items()}  # noqa: E731
    # transformers 5 has no `text_model.` in its names, files in the wild do, and diffusers reads both.
    text_layers = {f"text_model.{k}": v for k, v in half(text).items()} if with_text else None
    StableDiffusionPipeline.save_lora_weights(
        directory, unet_lora_layers=half(unet), text_encoder_lora_layers=text_layers,
        weight_name=f"{style}.safetensors",
    )  # fmt: skip
    print(f"{run.step} steps of {BATCH},", (directory / f"{style}.safetensors").stat().st_size, "bytes")


def to_peft(state):
    """diffusers' keys, split by part, to the names that PEFT gives the same matrices."""
    out = {"unet": {}, "text_encoder": {}}
    for key, value in state.items():
        part, name = key.split(".", 1)
        name = re.sub(r"\.lora(_linear_layer)?\.down\.", ".lora_A.", name)
        name = re.sub(r"\.lora(_linear_layer)?\.up\.", ".lora_B.", name)
        out[part][name.removeprefix("text_model.")] = value.float()
    return out


def to_kohya(state):
    """diffusers/PEFT keys to kohya's: the module path joined by underscores, and an alpha, here equal to the rank."""
    out = {}
    for key, value in state.items():
        module, matrix = key.rsplit(".lora", 1)
        part, path = module.split(".", 1)
        name = {"unet": "lora_unet_", "text_encoder": "lora_te_"}[part] + path.replace(".", "_")
        down = matrix.startswith((".down", "_A", "_linear_layer.down"))
        out[f"{name}.lora_{'down' if down else 'up'}.weight"] = value
        if down:
            out[f"{name}.alpha"] = torch.tensor(float(value.shape[0]), dtype=value.dtype)
    return out


def main():
    if sys.argv[1] == "kohya":
        save_file(to_kohya(load_file(sys.argv[2])), sys.argv[3])
        return
    model, latents, style, minutes = sys.argv[1:5]
    train(model, latents, style, float(minutes), "--text" in sys.argv)


if __name__ == "__main__":
    main()
