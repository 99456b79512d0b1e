"""Writes tests/fixtures/step_cache.json and .safetensors: images that step caching gives, as the DeepCache package and diffusers' first-block cache make
them with the checkpoints of the other fixtures, for crates/engine/tests/it/parity/step_cache.rs.

    python tests/oracle/step_cache.py    a minute on a CPU, after the others; the result is committed

Needs DeepCache 0.1.1 (PyPI) besides what the others do; made with diffusers 0.42.1. A look whose change is within a fiftieth of its threshold is refused: there a
rounding would decide.
"""

import json
import sys
import tempfile
from pathlib import Path

import flux
import numpy
import qwen_family
import starts
import torch
import z_image
from DeepCache import DeepCacheSDHelper
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from diffusers.hooks import FirstBlockCacheConfig, apply_first_block_cache
from diffusers.hooks._helpers import TransformerBlockRegistry
from diffusers.hooks.first_block_cache import FBCHeadBlockHook
from diffusers.hooks.hooks import CacheContext, _set_cache_context
from diffusers.models.transformers.transformer_z_image import ZImageTransformerBlock
from make_fixtures import HERE, NEGATIVE, PROMPT
from PIL import Image
from qwen import image as drawn
from safetensors.torch import save_file

FIXTURES = HERE.parent
SCHEDULERS = {"dpmsolver++": DPMSolverMultistepScheduler, "euler": EulerDiscreteScheduler, "ddim": DDIMScheduler}
UNETS = {
    "sd/sd15": [
        {"interval": 3, "scheduler": "dpmsolver++", "steps": 10, "guidance_scale": 5.0, "width": 64, "height": 64, "seed": 42},
        {"interval": 2, "scheduler": "euler", "steps": 7, "guidance_scale": 0.0, "width": 104, "height": 72, "seed": 7},
        {"interval": 5, "scheduler": "ddim", "steps": 8, "guidance_scale": 7.5, "width": 72, "height": 136, "seed": 3_000_000_000},
        {"interval": 2, "scheduler": "euler", "steps": 9, "guidance_scale": 5.0, "width": 64, "height": 64, "seed": 5, "strength": 0.6},
    ],
    "sdxl": [
        {"interval": 3, "scheduler": "euler", "steps": 8, "guidance_scale": 7.0, "width": 104, "height": 72, "seed": 11},
        {"interval": 4, "scheduler": "dpmsolver++", "steps": 6, "guidance_scale": 1.0, "width": 64, "height": 80, "seed": 12},
    ],
}  # fmt: skip
FLOWS = {
    "flux": [{"threshold": 0.85, "steps": 8, "width": 64, "height": 96, "seed": 3}, {"threshold": 0.6, "steps": 6, "width": 80, "height": 48, "seed": 4}],
    "z-image": [{"threshold": 1.25, "steps": 9, "width": 64, "height": 96, "seed": 3}, {"threshold": 1.15, "steps": 6, "width": 80, "height": 48, "seed": 4}],
    "qwen-family/edit": [
        {"threshold": 0.5, "steps": 10, "width": 64, "height": 96, "seed": 5, "guidance_scale": 2.5},
        {"threshold": 0.7, "steps": 7, "width": 96, "height": 80, "seed": 6, "guidance_scale": 1.0},
    ],
}  # fmt: skip
LOOKS = []


def spied(self, residual):
    """Of each look the change, and whether the others blocks were done."""
    state = self.state_manager.get_state()
    change = None
    if state.head_block_residual is not None:
        change = ((residual - state.head_block_residual).abs().mean() / state.head_block_residual.abs().mean()).item()
        assert abs(change / self.threshold - 1) > 0.02, f"a change of {change} is too near the threshold"
    LOOKS.append(change is None or change > self.threshold)
    return LOOKS[-1]


FBCHeadBlockHook._should_compute_remaining_blocks = spied


def bytes_of(images):
    return torch.from_numpy((images * 255).round().astype("uint8")).contiguous()


def unet_pipeline(name, case):
    kind = {"sd/sd15": StableDiffusionPipeline, "sdxl": StableDiffusionXLPipeline}[name]
    more = {"safety_checker": None} if name == "sd/sd15" else {}
    pipeline = kind.from_pretrained(FIXTURES / name, torch_dtype=torch.float32, **more)
    if "strength" in case:
        pipeline = StableDiffusionImg2ImgPipeline(**{k: v for k, v in pipeline.components.items() if k != "image_encoder"}, requires_safety_checker=False)
    pipeline.scheduler = SCHEDULERS[case["scheduler"]].from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def with_unet(name, case, out):
    pipeline = unet_pipeline(name, case)
    helper = DeepCacheSDHelper(pipe=pipeline)
    helper.set_params(cache_interval=case["interval"], cache_branch_id=0)
    words = {"prompt": PROMPT, "negative_prompt": NEGATIVE, "num_inference_steps": case["steps"], "guidance_scale": case["guidance_scale"], "output_type": "np"}
    if "strength" in case:
        out["image"] = torch.from_numpy(starts.image(case["width"], case["height"]))
        words |= {"image": Image.fromarray(out["image"].numpy()), "strength": case["strength"]}
    else:
        words |= {"width": case["width"], "height": case["height"]}
    plain = pipeline(**words, generator=torch.Generator().manual_seed(case["seed"])).images
    helper.enable()
    cached = pipeline(**words, generator=torch.Generator().manual_seed(case["seed"])).images
    helper.disable()
    return plain, cached


def flow_pipeline(name, target):
    if name == "flux":
        return flux.checkpoint(target, flux.SIZES[1], 1000)
    if name == "z-image":
        return z_image.checkpoint(target, z_image.SIZES[1], 1000)
    qwen_family.reference.VAE_IMAGE_SIZE, qwen_family.reference.CONDITION_IMAGE_SIZE = 112**2, 168 * 168
    return qwen_family.checkpoint(target, qwen_family.SIZES[1], 1000, True)


def with_transformer(name, case, out):
    with tempfile.TemporaryDirectory() as directory:
        target = Path(directory) / "model"
        if not name.startswith("qwen"):
            target.mkdir()
        pipeline = flow_pipeline(name, target)
        ours = (target / "transformer/diffusion_pytorch_model.safetensors").read_bytes()
        assert ours == (FIXTURES / name / "transformer/diffusion_pytorch_model.safetensors").read_bytes(), f"{name} is another one"
        words = {"prompt": PROMPT, "num_inference_steps": case["steps"], "width": case["width"], "height": case["height"], "output_type": "np"}
        if name.startswith("qwen"):
            words |= {"true_cfg_scale": case["guidance_scale"], "negative_prompt": NEGATIVE if case["guidance_scale"] > 1 else None, "max_sequence_length": 1024}
        else:
            words |= {"guidance_scale": 0.0, "max_sequence_length": 256} if name == "flux" else {"guidance_scale": 0.0}
        if name.endswith("edit"):
            words["image"] = [drawn(90, 60, 2)]
            out["reference"] = torch.from_numpy(numpy.array(words["image"][0]))
        plain = pipeline(**words, generator=torch.Generator().manual_seed(case["seed"])).images
        config = FirstBlockCacheConfig(threshold=case["threshold"])
        if name == "z-image":
            # diffusers does not know what its block calls its first input, and its pipeline names no context.
            TransformerBlockRegistry.get(ZImageTransformerBlock)._get_parameter_from_args_kwargs = lambda _, args, __: args[0]
            apply_first_block_cache(pipeline.transformer, config)
            _set_cache_context(pipeline.transformer, CacheContext("cond"))
        else:
            pipeline.transformer.enable_cache(config)
        LOOKS.clear()
        cached = pipeline(**words, generator=torch.Generator().manual_seed(case["seed"])).images
    case["complete"] = sum(LOOKS)
    assert 0 < case["complete"] < len(LOOKS), f"{name}: {LOOKS}"
    return plain, cached


@torch.no_grad()
def main():
    out, cases = {}, []
    for kinds, make in ((UNETS, with_unet), (FLOWS, with_transformer)):
        for name, of_model in kinds.items():
            for case in of_model:
                plain, cached = make(name, case, out)
                key = str(len(cases))
                out[key] = bytes_of(cached)[0]
                apart = int((out[key].int() - bytes_of(plain)[0].int()).abs().max())
                assert apart > 8, f"{name}: the cache changes {apart} of 255, which proves nothing"
                cases.append({"key": key, "model": name, **case})
                print(f"{name} {case}: {apart} of 255 from the image without", file=sys.stderr)
    (FIXTURES / "step_cache.json").write_text(json.dumps({"prompt": PROMPT, "negative_prompt": NEGATIVE, "cases": cases}, indent=1, ensure_ascii=False) + "\n")
    save_file(out, FIXTURES / "step_cache.safetensors")
    (FIXTURES / "step_cache.safetensors").chmod(0o644)


if __name__ == "__main__":
    main()
