"""Writes tests/fixtures/sd/half.safetensors: what diffusers computes in f16 where tests/oracle/make_fixtures.py has f32.

    python tests/oracle/half.py    seconds on a CPU, after make_fixtures.py; the result is committed

How far f16 may be from f32 is decided by how far the reference is in f16, from the same files and inputs. (candle multiplies no bf16 on a CPU.)

With LoRAs that distance is taken over several latents: the fixture's UNet makes roundings up to a hundred times larger, by an amount that depends
on the latents, so that one alone says little. diffusers' own distance with `peft_alpha` is 0.9 % of the values for one of these and 4 % for another.
"""

import json

import torch
from diffusers import StableDiffusionPipeline
from make_fixtures import HERE, NEGATIVE, PROMPT, PROMPTS, text_hidden
from safetensors.torch import load_file, save_file

TEXTS = ("mixed", "long")
SIZES = ("1x9x13", "4x9x13", "1x8x8")
LORA_LATENTS = (8, 4, 9, 13)
TIMESTEPS = {"1x9x13": 333.25, "4x9x13": 500.0, "1x8x8": 999.0}


def stages(pipeline, reference, out):
    for text in TEXTS:
        out[f"text/{text}"] = text_hidden(pipeline, PROMPTS[text])[1]
    text = torch.cat([text_hidden(pipeline, prompt)[1] for prompt in (NEGATIVE, PROMPT)])
    for size in SIZES:
        latents, timestep = reference[f"unet/{size}/latents"].half(), TIMESTEPS[size]
        both = text.repeat_interleave(latents.shape[0], 0)
        negative, positive = pipeline.unet(torch.cat([latents] * 2), torch.tensor(timestep), both).sample.chunk(2)
        out[f"unet/{size}/{timestep}/guided"] = negative + 7.5 * (positive - negative)
        if latents.shape[0] == 1:
            out[f"vae/{size}"] = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample


def loras(out):
    """Beside the weights; ours are merged into them, in f32, and rounded once. Distances are from diffusers in double precision."""
    directory = HERE / "loras"
    latents = torch.randn(LORA_LATENTS, generator=torch.Generator().manual_seed(13))
    out["lora/latents"] = latents
    for kind, dtype in (("whole", torch.float64), ("half", torch.float16)):
        pipeline = load(dtype)
        for mix, scales in json.loads((directory / "mixes.json").read_text()).items():
            for lora in scales:
                pipeline.load_lora_weights(directory, weight_name=f"{lora}.safetensors", adapter_name=lora)
            pipeline.set_adapters(list(scales), list(scales.values()))
            hidden = text_hidden(pipeline, PROMPT)[1]
            out[f"lora/{mix}/text/{kind}"] = hidden
            each = hidden.repeat_interleave(len(latents), 0)
            out[f"lora/{mix}/unet/{kind}"] = pipeline.unet(latents.to(dtype), torch.tensor(500.0), each).sample
            pipeline.unload_lora_weights()


def load(dtype):
    return StableDiffusionPipeline.from_pretrained(HERE / "sd15", torch_dtype=dtype, safety_checker=None)


@torch.no_grad()
def main():
    reference, out = load_file(HERE / "sd15.safetensors"), {}
    stages(load(torch.float16), reference, out)
    loras(out)
    save_file({key: value.float().contiguous() for key, value in out.items()}, HERE / "half.safetensors")


if __name__ == "__main__":
    main()
