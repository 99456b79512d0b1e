"""Writes tests/fixtures/controlnets: tiny random ControlNets and what diffusers computes with them, for crates/engine/tests/it/parity/controlnets.

    python tests/oracle/controlnets.py    a minute on a CPU, after make_fixtures.py and sdxl.py; the result is committed

They belong to tests/fixtures/sd/sd15 and tests/fixtures/sdxl. Their last convolutions are random, for zeros would hide everything.
"""

import json
import shutil

import diffusers
import torch
from diffusers import ControlNetModel, StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint
from diffusers.models.controlnets.multicontrolnet import MultiControlNetModel
from make_fixtures import HERE, NEGATIVE, PROMPT, normals, pixels, randomize
from old_names import OLD_RESNET
from PIL import Image
from samplers import scheduler
from safetensors.torch import save_file
from sdxl import OUT as SDXL
from starts import SIZE, image, mask

OUT = HERE.parent / "controlnets"
# Of each net: the first seed of its weights, and what its config.json says that its UNet's does not.
NETS = {
    "sd15": {"canny": (100, {}), "depth": (400, {"controlnet_conditioning_channel_order": "bgr", "conditioning_embedding_out_channels": (3, 5, 7, 9)})},
    "sdxl": {"canny": (700, {})},
}
HINTS = (4, 6, 8, 12)
PLAIN = {"model": "sd15", "scheduler": "dpmsolver++", "steps": 5, "guidance_scale": 7.5, "width": 104, "height": 72, "count": 1, "seed": 42,
         "controls": [{"name": "canny"}]}  # fmt: skip
BOTH = [{"name": "canny", "scale": 0.7, "end": 0.6}, {"name": "depth", "scale": 1.4, "start": 0.2}]
XL = {"model": "sdxl", "scheduler": "euler", "steps": 4, "guidance_scale": 5.0}
IMAGE = {"start": "image", "width": SIZE[0], "height": SIZE[1], "steps": 8}
MASK = IMAGE | {"start": "mask"}
CASES = {
    "one": {"count": 2},
    "one_unguided": {"guidance_scale": 1.0},
    "one_weak": {"controls": [{"name": "canny", "scale": 0.35}]},
    "one_negative": {"controls": [{"name": "depth", "scale": -0.5}], "seed": 3_000_000_000, "width": 64, "height": 64},
    "one_large": {"width": 136, "height": 160, "steps": 2, "seed": 9},
    "two": {"controls": [{"name": "canny", "scale": 0.8}, {"name": "depth", "scale": 0.6}]},
    "two_of_one": {"controls": [{"name": "depth"}, {"name": "depth", "scale": 0.5, "end": 0.5}], "seed": 5},
    "first_steps": {"controls": [{"name": "canny", "end": 0.5}], "steps": 7},
    "last_steps": {"controls": [{"name": "canny", "start": 0.5}], "steps": 7},
    "middle_steps": {"controls": [{"name": "depth", "start": 0.2, "end": 0.8}], "steps": 10, "scheduler": "ddim", "seed": 11},
    "no_step": {"controls": [{"name": "canny", "start": 0.41, "end": 0.59}], "steps": 5},
    "windows": {"controls": BOTH, "steps": 6, "count": 2, "scheduler": "euler_a"},
    "heun": {"controls": BOTH, "steps": 4, "scheduler": "heun"},
    "pndm": {"controls": BOTH, "steps": 5, "scheduler": "pndm"},
    "lora": {"lora": {"kohya": 0.8}},
    "lora_two": {"lora": {"peft": 0.6, "kohya": -0.5}, "controls": BOTH, "seed": 21},
    "from_image": IMAGE | {"strength": 0.6},
    "from_image_two": IMAGE | {"strength": 0.9, "controls": BOTH, "seed": 12},
    "inpaint": MASK | {"strength": 1.0},
    "inpaint_part": MASK | {"strength": 0.6, "controls": BOTH, "scheduler": "euler"},
    "xl_one": XL,
    "xl_unguided": XL | {"guidance_scale": 1.0, "count": 2, "seed": 8},
    "xl_square": XL | {"width": 64, "height": 64, "steps": 7, "scheduler": "dpmsolver++", "controls": [{"name": "canny", "scale": 0.5, "end": 0.7}]},
    "xl_from_image": XL | IMAGE | {"strength": 0.6},
    "xl_inpaint": XL | MASK | {"strength": 1.0},
    "xl_inpainting_unet": XL | MASK | {"strength": 1.0, "unet": "inpaint"},
}  # fmt: skip


def net(model, name, pipeline):
    """A ControlNet with the sizes of the UNet; kept in f16, computed with in f32."""
    seed, more = NETS[model][name]
    config = ControlNetModel.from_unet(pipeline.unet, conditioning_channels=3).config
    config = {**config, "conditioning_embedding_out_channels": HINTS} | more
    built = ControlNetModel(**{key: value for key, value in config.items() if not key.startswith("_")})
    randomize(built, seed, torch.float16)
    built.save_pretrained(OUT / model / name)
    return built.float()


def original(built, file, prefix="control_model."):
    """The net under the names of its first release (lllyasviel's); verified by diffusers' converter."""
    layers, names = built.config.layers_per_block, {}
    alone = {"conv_in": "input_blocks.0.0", "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
             "controlnet_mid_block": "middle_block_out.0", "controlnet_cond_embedding.conv_in": "input_hint_block.0"}  # fmt: skip
    blocks = len(built.controlnet_cond_embedding.blocks)
    alone |= {f"controlnet_cond_embedding.blocks.{index}": f"input_hint_block.{2 * index + 2}" for index in range(blocks)}
    alone["controlnet_cond_embedding.conv_out"] = f"input_hint_block.{2 * blocks + 2}"
    alone |= {f"controlnet_down_blocks.{index}": f"zero_convs.{index}.0" for index in range(len(built.controlnet_down_blocks))}
    for key in built.state_dict():
        module, kind = key.rsplit(".", 1)
        part = module.split(".")
        if module in alone:
            old = alone[module]
        elif part[0] == "mid_block":
            number = {("resnets", "0"): 0, ("attentions", "0"): 1, ("resnets", "1"): 2}[part[1], part[2]]
            rest = ".".join(part[3:])
            old = f"middle_block.{number}.{OLD_RESNET[rest] if part[1] == 'resnets' else rest}"
        elif part[2] == "downsamplers":
            old = f"input_blocks.{(int(part[1]) + 1) * (layers + 1)}.0.op"
        else:
            number, rest = int(part[1]) * (layers + 1) + 1 + int(part[3]), ".".join(part[4:])
            old = f"input_blocks.{number}.0.{OLD_RESNET[rest]}" if part[2] == "resnets" else f"input_blocks.{number}.1.{rest}"
        names[key] = f"{prefix}{old}.{kind}"
    state = built.half().state_dict()
    renamed = {names[key]: value for key, value in state.items()}
    back = convert_controlnet_checkpoint(dict(renamed), dict(built.config))
    assert back.keys() == state.keys() and all(torch.equal(back[key], state[key]) for key in state), "the old names are wrong"
    save_file(renamed, file)
    built.float()


def control_image(name, width, height):
    """Lines, or a slope with a disc: not what a net wants, but different for each."""
    drawn = image(width, height) if name == "canny" else mask(width, height)[..., None].repeat(3, -1) // 2 + image(width, height)[..., ::-1] // 3
    return Image.fromarray(drawn)


def stages(model, pipeline, nets, out):
    """What each net adds, of inputs that are given."""
    rows = pipeline.encode_prompt(PROMPT, "cpu", 1, True, NEGATIVE) if model == "sd15" else pipeline.encode_prompt(PROMPT, device="cpu", negative_prompt=NEGATIVE)
    for name, built in nets.items():
        for batch, height, width in ((1, 9, 13), (2, 8, 10)):
            key = f"{model}/{name}/{batch}x{height}x{width}"
            latents = normals((batch, 4, height, width), 70 + batch)
            out[f"{key}/latents"] = latents
            hint = pipeline_hint(name, 8 * width, 8 * height)
            added = None
            if model == "sdxl":
                sizes = torch.tensor([[8.0 * height, 8.0 * width, 0, 0, 8 * height, 8 * width]])
                added = {"text_embeds": rows[2].repeat(batch, 1), "time_ids": sizes.repeat(batch, 1)}
            for timestep, scale in ((1.0, 1.0), (501.5, 0.6)):
                down, mid = built(latents, torch.tensor(timestep), rows[0].repeat(batch, 1, 1), hint.repeat(batch, 1, 1, 1),
                                  conditioning_scale=scale, added_cond_kwargs=added, return_dict=False)  # fmt: skip
                for place, residual in enumerate((*down, mid)):
                    out[f"{key}/{timestep}/{scale}/{place}"] = residual


def pipeline_hint(name, width, height):
    """As diffusers' `control_image_processor` makes it."""
    processor = diffusers.image_processor.VaeImageProcessor(vae_scale_factor=8, do_convert_rgb=True, do_normalize=False)
    return processor.preprocess(control_image(name, width, height), height=height, width=width)


def generated(components, nets, case):
    """One call for each seed, as a job's images are generated."""
    start, controls = case.get("start"), case["controls"]
    family = "StableDiffusionXL" if case["model"] == "sdxl" else "StableDiffusion"
    kind = {None: "", "image": "Img2Img", "mask": "Inpaint"}[start]
    several = [nets[control["name"]] for control in controls]
    more = {"add_watermarker": False} if case["model"] == "sdxl" else {"requires_safety_checker": False}
    net = several[0] if len(several) == 1 else MultiControlNetModel(several)
    pipeline = getattr(diffusers, f"{family}ControlNet{kind}Pipeline")(**components, controlnet=net, **more)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = scheduler(case["scheduler"], components["scheduler"].config)
    hints = [control_image(control["name"], case["width"], case["height"]) for control in controls]

    def of(key, default):
        values = [control.get(key, default) for control in controls]
        return values[0] if len(values) == 1 else values

    asked = {"num_inference_steps": case["steps"], "guidance_scale": case["guidance_scale"], "output_type": "np", "negative_prompt": NEGATIVE,
             "controlnet_conditioning_scale": float(of("scale", 1.0)) if len(several) == 1 else of("scale", 1.0),
             "control_guidance_start": of("start", 0.0), "control_guidance_end": of("end", 1.0)}  # fmt: skip
    hints = hints[0] if len(hints) == 1 else hints
    if start is None:
        asked |= {"image": hints, "width": case["width"], "height": case["height"]}
    else:
        asked |= {"image": Image.fromarray(image(*SIZE)), "control_image": hints, "strength": case["strength"]}
        asked |= {"width": case["width"], "height": case["height"]}
    if start == "mask":
        asked |= {"mask_image": Image.fromarray(mask(*SIZE))}
    if "lora" in case:
        for name in case["lora"]:
            pipeline.load_lora_weights(HERE / "loras", weight_name=f"{name}.safetensors", adapter_name=name)
        pipeline.set_adapters(list(case["lora"]), list(case["lora"].values()))
    generators = [torch.Generator().manual_seed(case["seed"] + n) for n in range(case["count"])]
    images = torch.cat([pixels(pipeline(PROMPT, generator=generator, **asked).images) for generator in generators])
    if "lora" in case:
        pipeline.unload_lora_weights()
    return images


@torch.no_grad()
def main():
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    pipelines = {
        "sd15": StableDiffusionPipeline.from_pretrained(HERE / "sd15", torch_dtype=torch.float32, safety_checker=None),
        "sdxl": StableDiffusionXLPipeline.from_pretrained(SDXL, torch_dtype=torch.float32, add_watermarker=False),
    }
    out, cases = {}, {name: PLAIN | case for name, case in CASES.items()}
    nets = {model: {name: net(model, name, pipelines[model]) for name in names} for model, names in NETS.items()}
    original(nets["sd15"]["depth"], OUT / "sd15/depth_original.safetensors")
    for model, pipeline in pipelines.items():
        stages(model, pipeline, nets[model], out)
    inpaint = diffusers.UNet2DConditionModel.from_pretrained(SDXL / "variants/inpaint/unet", torch_dtype=torch.float32)
    for name, case in cases.items():
        left_out = ("image_encoder", "feature_extractor") if case["model"] == "sdxl" else ("image_encoder",)
        components = {key: part for key, part in pipelines[case["model"]].components.items() if key not in left_out}
        components |= {"unet": inpaint} if "unet" in case else {}
        out[f"image/{name}"] = generated(components, nets[case["model"]], case)
    for name in ("canny", "depth"):
        for width, height in sorted({(case["width"], case["height"]) for case in cases.values()} | {(104, 72), (80, 64)}):
            out[f"control/{name}/{width}x{height}"] = torch.frombuffer(bytearray(control_image(name, width, height).tobytes()), dtype=torch.uint8)
    (OUT / "cases.json").write_text(json.dumps(cases, indent=1) + "\n")
    save_file({key: value.contiguous() for key, value in out.items()}, OUT / "expected.safetensors")
    size = sum(file.stat().st_size for file in OUT.rglob("*") if file.is_file())
    print(f"{size / 1e6:.2f} MB in {OUT}")


if __name__ == "__main__":
    main()
