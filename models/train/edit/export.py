"""Writes models/tiny-edit in diffusers' layout, weights in float16, and beside it the files of the modes `lora` and `fp8`.

    python export.py MODEL_DIR AUTOENCODER.pt PREPARED.pt TRANSFORMER.pt LIGHTNING.safetensors
    python export.py decoder MODEL_DIR DECODER.pt       the autoencoder's file alone: its encoder and everything else stay as they are
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKLQwenImage, FlowMatchEulerDiscreteScheduler
from lightning import trained
from networks import new_text_encoder, new_vae
from prepare import averaged
from safetensors.torch import load_file, save_file
from words import write

from common import restore

SCHEDULE = {
    "base_image_seq_len": 256, "base_shift": 0.5, "max_image_seq_len": 8192, "max_shift": 0.9, "num_train_timesteps": 1000, "shift": 1.0,
    "shift_terminal": 0.02, "time_shift_type": "exponential", "use_dynamic_shifting": True,
}  # fmt: skip
"""Of Qwen-Image-Edit-2511."""
LARGEST = 448.0
"""Of e4m3."""


@torch.no_grad()
def one_frame(vae):
    """Nothing but the last slice in time was trained: the others see no image, and zeros say so."""
    for module in vae.modules():
        if isinstance(module, torch.nn.Conv3d) and module.weight.shape[2] > 1:
            module.weight[:, :, :-1] = 0
    return vae


def eight_bit(state):
    """LightX2V's spelling: e4m3 numbers and a scale a row for all matrices of the blocks, everything else as it is."""
    out = {}
    for name, value in state.items():
        in_block = name.startswith("transformer_blocks") and name.endswith("weight") and value.dim() == 2
        if not in_block:
            out[name] = value.half().contiguous()
            continue
        scale = (value.abs().amax(1, keepdim=True) / LARGEST).clamp(min=1e-5)
        out[name] = (value / scale).to(torch.float8_e4m3fn)
        out[name.removesuffix("weight") + "weight_scale"] = scale
    return out


def fused(state, lora):
    state = {name: value.clone() for name, value in state.items()}
    for name in [n.removesuffix(".alpha") for n in lora if n.endswith(".alpha")]:
        down, up, alpha = (lora[f"{name}.{part}"].float() for part in ("lora_down.weight", "lora_up.weight", "alpha"))
        state[f"{name}.weight"] += up @ down * (alpha / down.shape[0])
    return state


def export_decoder(directory, checkpoint):
    file = Path(directory) / "vae" / "diffusion_pytorch_model.safetensors"
    vae = averaged(AutoencoderKLQwenImage.from_pretrained(file.parent, torch_dtype=torch.float32), restore(checkpoint))
    save_file({name: value.half().contiguous() for name, value in vae.state_dict().items()}, file, {"format": "pt"})
    file.chmod(0o644)


def main():
    if sys.argv[1] == "decoder":
        export_decoder(*sys.argv[2:4])
        return
    directory, autoencoder, prepared, transformer, lightning = (Path(path) for path in sys.argv[1:6])
    tokenizer = write(directory)
    data = torch.load(prepared, weights_only=True)
    vae = one_frame(averaged(new_vae(data["mean"].tolist(), data["std"].tolist()), restore(autoencoder)))
    network, text = trained(transformer), new_text_encoder(tokenizer)
    state = {name: value.float() for name, value in network.state_dict().items()}
    lora = load_file(lightning)
    shutil.copy(lightning, directory / "lightning-4steps.safetensors")
    save_file(eight_bit(fused(state, lora)), directory / "fp8-lightning-4steps.safetensors", {"format": "pt"})
    for module, name in [(vae, "vae"), (network, "transformer"), (text, "text_encoder")]:
        shutil.rmtree(directory / name, ignore_errors=True)
        module.half().save_pretrained(directory / name)
    path = directory / "text_encoder" / "model.safetensors"
    save_file({n: v for n, v in load_file(path).items() if not n.startswith("lm_head")}, path, {"format": "pt"})
    FlowMatchEulerDiscreteScheduler(**SCHEDULE).save_pretrained(directory / "scheduler")
    index = {
        "_class_name": "QwenImageEditPlusPipeline", "_diffusers_version": "0.42.1",
        "processor": ["transformers", "Qwen2VLProcessor"], "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "Qwen2_5_VLForConditionalGeneration"], "tokenizer": ["transformers", "Qwen2Tokenizer"],
        "transformer": ["diffusers", "QwenImageTransformer2DModel"], "vae": ["diffusers", "AutoencoderKLQwenImage"],
    }  # fmt: skip
    (directory / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    files = [path for path in directory.rglob("*") if path.is_file()]
    for path in files:
        path.chmod(0o644)
    print(sum(path.stat().st_size for path in files) / 1e6, "MB")


if __name__ == "__main__":
    main()
