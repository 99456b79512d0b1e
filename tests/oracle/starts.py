"""What comes of generations that start from an image; called by make_fixtures.py.

The VAE's encoder, image-to-image and inpainting with a UNet of four channels. The images are of the job's own size: how they get there is
tested elsewhere.
"""

import numpy
import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline
from PIL import Image
from safetensors.torch import save_file

PROMPT, NEGATIVE = "a small lighthouse over the sea", "storm, dog"


def image(width, height):
    """Bows of three colours, with edges in them."""
    y, x = numpy.mgrid[0:height, 0:width].astype("float64")
    waves = [127 + 90 * numpy.sin(x / 9 + k) * numpy.cos(y / (7 + k)) + 30 * ((x // 16 + y // 24 + k) % 2) for k in range(3)]
    return numpy.stack(waves, -1).clip(0, 255).astype("uint8")


def mask(width, height):
    """A disc with a soft border, off the middle."""
    y, x = numpy.mgrid[0:height, 0:width].astype("float64")
    distance = numpy.hypot(x - width * 0.6, y - height * 0.4)
    return (255 * (height * 0.4 - distance) / 8 + 128).clip(0, 255).astype("uint8")


SIZE = (72, 64)  # width and height


def write(pipeline, samplers, directory):
    """`samplers`: names and schedulers."""
    pixels, generated = image(*SIZE), mask(*SIZE)
    out = {"image": torch.from_numpy(pixels), "mask": torch.from_numpy(generated)}
    larger = image(100, 75)
    out["larger"] = torch.from_numpy(larger)
    out["resized"] = torch.from_numpy(numpy.array(Image.fromarray(larger).resize((64, 96), Image.Resampling.LANCZOS)))
    unit = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1
    moments = pipeline.vae.encode(unit).latent_dist
    out["mean"], out["std"] = moments.mean, moments.std
    parts = {k: v for k, v in pipeline.components.items() if k != "image_encoder"}
    from_image = StableDiffusionImg2ImgPipeline(**parts, requires_safety_checker=False)
    regenerate = StableDiffusionInpaintPipeline(**parts, requires_safety_checker=False)
    for generator in (from_image, regenerate):
        generator.set_progress_bar_config(disable=True)
    start, region = Image.fromarray(pixels), Image.fromarray(generated)
    for name, scheduler in samplers.items():
        for strength in (0.35, 0.8, 1.0) if name in ("dpmsolver++", "euler", "unipc") else (0.8,):
            words = {"prompt": PROMPT, "negative_prompt": NEGATIVE, "num_inference_steps": 8, "guidance_scale": 7.5,
                     "strength": strength, "output_type": "np", "image": start}  # fmt: skip
            from_image.scheduler = regenerate.scheduler = scheduler
            seeds = [torch.Generator().manual_seed(42 + n) for n in range(2 if name == "euler_a" else 1)]
            generated = from_image(**words, num_images_per_prompt=len(seeds), generator=seeds).images
            out[f"from_image/{name}/{strength}"] = torch.from_numpy((generated * 255).round().astype("uint8"))
            seed = torch.Generator().manual_seed(42)
            generated = regenerate(**words, mask_image=region, height=SIZE[1], width=SIZE[0], generator=seed).images
            out[f"inpaint/{name}/{strength}"] = torch.from_numpy((generated * 255).round().astype("uint8"))
    save_file({key: value.contiguous() for key, value in out.items()}, directory / "starts.safetensors")


def write_tiles(pipeline, latents, directory):
    """The VAE's decoder in overlapping tiles of 8 latents (of its own sample size) and of 4."""
    vae, out = pipeline.vae, {}
    vae.enable_tiling()
    for side in (8, 4):
        vae.tile_latent_min_size, vae.tile_sample_min_size = side, 8 * side
        out[f"tiled/{side}"] = vae.decode(latents / vae.config.scaling_factor).sample
    vae.disable_tiling()
    save_file({key: value.contiguous() for key, value in out.items()}, directory / "tiles.safetensors")
