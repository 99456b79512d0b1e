"""Writes tests/fixtures/ip_adapters: tiny random IP-Adapters and what diffusers computes with them, for crates/engine/tests/it/parity/ip_adapters.

    python tests/oracle/ip_adapter.py    a minute on a CPU, after make_fixtures.py, sdxl.py, variants.py and controlnets.py; the result is committed

They belong to tests/fixtures/sd/sd15 and tests/fixtures/sdxl, lie in files as h94/IP-Adapter publishes them, and diffusers reads those.
"""

import copy
import json
import shutil

import diffusers
import numpy
import torch
from controlnets import control_image
from diffusers import ControlNetModel, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from make_fixtures import HERE, NEGATIVE, PROMPT, normals, pixels, randomize
from PIL import Image
from samplers import scheduler
from safetensors.torch import save_file
from sdxl import OUT as SDXL
from starts import SIZE, image, mask
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModelWithProjection

OUT = HERE.parent / "ip_adapters"
CONTROLNETS = HERE.parent / "controlnets"
SIDE, EMBEDDING, HIDDEN, TOKENS = 32, 20, 32, 4
# Width and height of what is looked at: of the encoder's side, wide, high, and smaller than the encoder.
DRAWINGS = {"fox": (32, 32), "tower": (41, 90), "road": (100, 37), "stamp": (20, 14)}
# Of each file: the first seed of its weights, and whether it is a Plus. The small one is for the UNets of tests/fixtures/sd-variants.
FILES = {"sd15": {"plain": (11_000, False), "plus": (12_000, True)}, "small": {"plain": (15_000, False)}, "sdxl": {"plain": (13_000, False), "plus": (14_000, True)}}
FOX = {"name": "plain", "images": ["fox"]}
PLUS = {"name": "plus", "images": ["tower"]}
PLAIN = {"model": "sd15", "scheduler": "dpmsolver++", "steps": 5, "guidance_scale": 7.5, "width": 104, "height": 72, "count": 1, "seed": 42,
         "adapters": [FOX]}  # fmt: skip
XL = {"model": "sdxl", "scheduler": "euler", "steps": 4, "guidance_scale": 5.0}
IMAGE = {"start": "image", "width": SIZE[0], "height": SIZE[1], "steps": 8}
MASK = IMAGE | {"start": "mask"}
CANNY = [{"name": "canny"}]
ALL = {"lora": {"kohya": 0.8}, "controls": [{"name": "canny", "scale": 0.7, "end": 0.6}]}
TWO = [FOX | {"scale": 0.6}, PLUS | {"scale": 0.5}]
CASES = {
    "one": {"count": 2},
    "one_unguided": {"guidance_scale": 1.0},
    "one_weak": {"adapters": [FOX | {"scale": 0.3}]},
    "one_strong": {"adapters": [FOX | {"scale": 1.7}], "seed": 3_000_000_000},
    "one_high": {"adapters": [FOX | {"images": ["tower"]}], "width": 64, "height": 64},
    "one_small": {"adapters": [FOX | {"images": ["stamp"]}], "scheduler": "euler_a", "steps": 7},
    "two_images": {"adapters": [FOX | {"images": ["fox", "road"], "scale": 0.8}], "count": 2},
    "four_images": {"adapters": [FOX | {"images": ["road", "fox", "stamp", "tower"]}], "scheduler": "ddim"},
    "plus": {"adapters": [PLUS]},
    "plus_unguided": {"adapters": [PLUS], "guidance_scale": 1.0, "seed": 7},
    "plus_two_images": {"adapters": [PLUS | {"images": ["tower", "road"], "scale": 0.7}], "scheduler": "heun", "steps": 4},
    "two_adapters": {"adapters": TWO},
    "two_adapters_of_several": {"adapters": [TWO[1] | {"images": ["road"]}, TWO[0] | {"images": ["stamp", "tower"]}], "seed": 5, "count": 2},
    "lora": {"lora": {"kohya": 0.8}},
    "lora_two": {"lora": {"peft": 0.6, "kohya": -0.5}, "adapters": TWO, "seed": 21},
    "controlnet": {"controls": CANNY},
    "controlnet_part": {"controls": [{"name": "canny", "end": 0.5}], "steps": 7, "adapters": [PLUS], "scheduler": "pndm"},
    "all": ALL | {"adapters": TWO, "seed": 77},
    "all_from_image": ALL | IMAGE | {"strength": 0.7},
    "from_image": IMAGE | {"strength": 0.6},
    "inpaint": MASK | {"strength": 1.0},
    "inpaint_part": MASK | ALL | {"strength": 0.6, "scheduler": "euler", "adapters": [PLUS]},
    "edits": IMAGE | {"files": "small", "unet": "sd-variants/instructed/unet", "image_guidance_scale": 1.5, "steps": 5},
    "distilled": {"files": "small", "unet": "sd-variants/lcm/unet", "scheduler": "lcm", "guidance_scale": 8.0, "steps": 4},
    "xl_one": XL,
    "xl_unguided": XL | {"guidance_scale": 1.0, "count": 2, "seed": 8},
    "xl_two_images": XL | {"adapters": [FOX | {"images": ["fox", "tower"], "scale": 0.5}], "width": 64, "height": 64},
    "xl_plus": XL | {"adapters": [PLUS], "steps": 6, "scheduler": "dpmsolver++"},
    "xl_controlnet": XL | {"controls": CANNY, "adapters": TWO},
    "xl_from_image": XL | IMAGE | {"strength": 0.6},
    "xl_inpainting_unet": XL | MASK | {"strength": 1.0, "unet": "sdxl/variants/inpaint/unet"},
}  # fmt: skip


def drawing(name):
    """Waves, turned and coloured otherwise for each."""
    place = list(DRAWINGS).index(name)
    width, height = DRAWINGS[name]
    return Image.fromarray(numpy.roll(image(width, height), place, -1)[:: -1 if place % 2 else 1])


def image_encoder():
    """Kept in f16, computed with in f32."""
    config = CLIPVisionConfig(hidden_size=HIDDEN, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2, image_size=SIDE,
                              patch_size=8, projection_dim=EMBEDDING, hidden_act="gelu")  # fmt: skip
    built = randomize(CLIPVisionModelWithProjection(config), 10_000, torch.float16)
    built.save_pretrained(OUT / "image_encoder")
    return built.float()


def matrix(rows, columns, seed):
    return normals((rows, columns), seed, columns**-0.5)


def norm(prefix, width, seed):
    return {f"{prefix}.weight": 1 + normals((width,), seed, 0.2), f"{prefix}.bias": normals((width,), seed + 1, 0.1)}


def plain_projection(width, seed):
    return {"proj.weight": matrix(TOKENS * width, EMBEDDING, seed), "proj.bias": normals((TOKENS * width,), seed + 1, 0.1)} | norm("norm", width, seed + 2)


def plus_projection(width, seed, hidden=24, inner=128, queries=6, layers=4):
    """tencent-ailab's Resampler: heads of 64 channels, and as many layers as diffusers knows the names of."""
    tensors = {
        "latents": normals((1, queries, hidden), seed), "proj_in.weight": matrix(hidden, HIDDEN, seed + 1), "proj_in.bias": normals((hidden,), seed + 2, 0.1),
        "proj_out.weight": matrix(width, hidden, seed + 3), "proj_out.bias": normals((width,), seed + 4, 0.1),
    } | norm("norm_out", width, seed + 5)  # fmt: skip
    for layer in range(layers):
        first = seed + 20 * (layer + 1)
        attention, after = f"layers.{layer}.0", f"layers.{layer}.1"
        tensors |= norm(f"{attention}.norm1", hidden, first) | norm(f"{attention}.norm2", hidden, first + 2) | norm(f"{after}.0", hidden, first + 4)
        tensors |= {
            f"{attention}.to_q.weight": matrix(inner, hidden, first + 6), f"{attention}.to_kv.weight": matrix(2 * inner, hidden, first + 7),
            f"{attention}.to_out.weight": matrix(hidden, inner, first + 8), f"{after}.1.weight": matrix(4 * hidden, hidden, first + 9),
            f"{after}.3.weight": matrix(hidden, 4 * hidden, first + 10),
        }  # fmt: skip
    return tensors


def adapter(model, name, unet):
    """One file under the names of the first release: attentions to the text have the odd numbers in the order of `attn_processors`."""
    seed, is_plus = FILES[model][name]
    width = unet.config.cross_attention_dim
    projection = plus_projection(width, seed) if is_plus else plain_projection(width, seed)
    tensors = {f"image_proj.{key}": value for key, value in projection.items()}
    for number, key in enumerate(unet.attn_processors):
        if "attn2" in key:
            channels = unet.get_submodule(key.removesuffix(".processor")).to_k.weight.shape[0]
            for place, kind in enumerate(("to_k_ip", "to_v_ip")):
                tensors[f"ip_adapter.{number}.{kind}.weight"] = matrix(channels, width, seed + 500 + 2 * number + place)
    (OUT / model).mkdir(exist_ok=True)
    save_file({key: value.half().contiguous() for key, value in tensors.items()}, OUT / model / f"{name}.safetensors")


def with_adapters(pipeline, model, adapters):
    """`adapters`: names and scales."""
    files = [f"{name}.safetensors" for name, _ in adapters]
    pipeline.load_ip_adapter([str(OUT)] * len(files), subfolder=[model] * len(files), weight_name=files, image_encoder_folder=None, low_cpu_mem_usage=False)
    scaled(pipeline, [scale for _, scale in adapters])
    return pipeline


def scaled(pipeline, scales):
    """What `set_ip_adapter_scale` does of numbers; itself it knows only UNets with one number of layers for all blocks."""
    for processor in pipeline.unet.attn_processors.values():
        if hasattr(processor, "to_k_ip"):
            processor.scale = list(scales)


def stages(model, components, kind, out):
    """What the encoder sees, the tokens of it and of nothing, and the UNet's look with and without, of inputs that are given."""
    for name, (_, is_plus) in FILES[model].items():
        pipeline = with_adapters(kind(**components | {"unet": copy.deepcopy(components["unet"])}), model, [(name, 1.0)])
        projection = pipeline.unet.encoder_hid_proj.image_projection_layers[0]
        for drawn in DRAWINGS:
            seen, nothing = pipeline.encode_image(drawing(drawn), "cpu", 1, is_plus)
            for key, value in (("seen", seen), ("positive", projection(seen)), ("negative", projection(nothing))):
                out[f"{model}/{name}/{drawn}/{key}"] = value
        rows = pipeline.encode_prompt(PROMPT, "cpu", 1, True, NEGATIVE) if model == "sd15" else pipeline.encode_prompt(PROMPT, device="cpu", negative_prompt=NEGATIVE)
        seen, nothing = pipeline.encode_image([drawing("fox"), drawing("road")], "cpu", 1, is_plus)
        for batch, height, width in ((1, 9, 13), (2, 8, 10)):
            key = f"{model}/{name}/{batch}x{height}x{width}"
            latents = normals((batch, 4, height, width), 70 + batch)
            out[f"{key}/latents"] = latents
            added = {"image_embeds": [torch.stack([nothing] * batch + [seen] * batch)]}
            text = torch.cat([rows[1].repeat(batch, 1, 1), rows[0].repeat(batch, 1, 1)])
            if model == "sdxl":
                sizes = torch.tensor([[8.0 * height, 8.0 * width, 0, 0, 8 * height, 8 * width]]).repeat(2 * batch, 1)
                added |= {"text_embeds": torch.cat([rows[3].repeat(batch, 1), rows[2].repeat(batch, 1)]), "time_ids": sizes}
            for timestep, scale in ((1.0, 1.0), (501.5, 0.3), (501.5, 0.0)):
                scaled(pipeline, [scale])
                looked = pipeline.unet(torch.cat([latents] * 2), torch.tensor(timestep), text, added_cond_kwargs=added).sample
                negative, positive = looked.chunk(2)
                out[f"{key}/{timestep}/{scale}"] = negative + 7.5 * (positive - negative)


def generated(components, nets, case):
    """One call for each seed, as a job's images are generated."""
    start, controls, model = case.get("start"), case.get("controls", []), case["model"]
    components = components | {"unet": copy.deepcopy(components["unet"])}
    if "unet" in case:
        components["unet"] = UNet2DConditionModel.from_pretrained(HERE.parent / case["unet"], torch_dtype=torch.float32)
    family = "StableDiffusionXL" if model == "sdxl" else "StableDiffusion"
    middle = "ControlNet" if controls else ""
    kind = {None: "", "image": "Img2Img", "mask": "Inpaint"}[start]
    kind = "InstructPix2Pix" if "image_guidance_scale" in case else kind
    more = {"add_watermarker": False} if model == "sdxl" else {"requires_safety_checker": False}
    more |= {"controlnet": nets[model]} if controls else {}
    pipeline = getattr(diffusers, f"{family}{middle}{kind}Pipeline")(**components, **more)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = scheduler(case["scheduler"], components["scheduler"].config)
    with_adapters(pipeline, case.get("files", model), [(one["name"], one.get("scale", 1.0)) for one in case["adapters"]])
    asked = {"num_inference_steps": case["steps"], "guidance_scale": case["guidance_scale"], "output_type": "np", "negative_prompt": NEGATIVE,
             "ip_adapter_image": [[drawing(drawn) for drawn in one["images"]] for one in case["adapters"]]}  # fmt: skip
    if controls:
        [control] = controls
        asked |= {"controlnet_conditioning_scale": control.get("scale", 1.0), "control_guidance_end": control.get("end", 1.0)}
        asked["image" if start is None else "control_image"] = control_image("canny", case["width"], case["height"])
    if start is None or controls or (start == "mask"):
        asked |= {"width": case["width"], "height": case["height"]}
    if start is not None:
        asked |= {"image": Image.fromarray(image(*SIZE))}
        asked |= {"image_guidance_scale": case["image_guidance_scale"]} if "image_guidance_scale" in case else {"strength": case["strength"]}
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
    kinds = {"sd15": StableDiffusionPipeline, "sdxl": StableDiffusionXLPipeline}
    pipelines = {
        "sd15": StableDiffusionPipeline.from_pretrained(HERE / "sd15", torch_dtype=torch.float32, safety_checker=None),
        "sdxl": StableDiffusionXLPipeline.from_pretrained(SDXL, torch_dtype=torch.float32, add_watermarker=False),
    }
    # Pillow prepares the images, as it did when the adapters were trained.
    looking = {"image_encoder": image_encoder(), "feature_extractor": CLIPImageProcessorPil(size=SIDE, crop_size=SIDE)}
    components = {model: pipeline.components | looking for model, pipeline in pipelines.items()}
    nets = {model: ControlNetModel.from_pretrained(CONTROLNETS / model / "canny", torch_dtype=torch.float32) for model in pipelines}
    out, cases = {}, {name: PLAIN | case for name, case in CASES.items()}
    small = UNet2DConditionModel.from_pretrained(HERE.parent / "sd-variants/instructed/unet", torch_dtype=torch.float32)
    for model, files in FILES.items():
        for name in files:
            adapter(model, name, small if model == "small" else pipelines[model].unet)
    for model, kind in kinds.items():
        stages(model, components[model], kind, out)
    for name, case in cases.items():
        out[f"image/{name}"] = generated(components[case["model"]], nets, case)
    for name in DRAWINGS:
        out[f"drawing/{name}"] = torch.from_numpy(numpy.array(drawing(name)))
    for width, height in sorted({(case["width"], case["height"]) for case in cases.values()}):
        out[f"control/canny/{width}x{height}"] = torch.frombuffer(bytearray(control_image("canny", width, height).tobytes()), dtype=torch.uint8)
    (OUT / "cases.json").write_text(json.dumps(cases, indent=1) + "\n")
    save_file({key: value.contiguous() for key, value in out.items()}, OUT / "expected.safetensors")
    size = sum(file.stat().st_size for file in OUT.rglob("*") if file.is_file())
    print(f"{size / 1e6:.2f} MB in {OUT}")


if __name__ == "__main__":
    main()
