"""How fast the try-on engine computes, against diffusers and transformers on the same CPU: same sizes, as many threads, in turns.

    OMP_WAIT_POLICY=passive python bench/edit.py [--profile dev] [--note TEXT]    needs torch, diffusers, transformers

Qwen-Image-Edit-2511's own widths with random weights, one layer deep where it has 60 and 32: one forward of the transformer with one
block, of the vision tower with one block, one decode of the VAE. Without the policy torch's OpenMP threads spin while ours compute.
"""

import argparse
import sys
import tempfile
from functools import partial
from pathlib import Path

import torch
import transformers
from diffusers import AutoencoderKLQwenImage, FlowMatchEulerDiscreteScheduler, QwenImageTransformer2DModel
from engine import PEER, ROOT, THREADS, Child, built, compare, timed
from report import cpu, report, row
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

sys.path[:0] = [str(ROOT / "models/train/edit"), str(ROOT / "models/train")]
import export  # noqa: E402
import words  # noqa: E402

SIDE_PX = 512
REFERENCES = 1
TEXT = 256


def full_width(directory):
    directory = Path(directory)
    tokenizer = words.write(directory)
    ids = tokenizer.convert_tokens_to_ids
    transformer = QwenImageTransformer2DModel(num_layers=1, zero_cond_t=True, guidance_embeds=False)
    vae = AutoencoderKLQwenImage(attn_scales=[])
    text = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer), "hidden_size": 3584, "intermediate_size": 256, "num_hidden_layers": 1, "num_attention_heads": 28,
            "num_key_value_heads": 4, "rms_norm_eps": 1e-6, "bos_token_id": 0, "eos_token_id": 0,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        },
        vision_config={
            "depth": 1, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "out_hidden_size": 3584, "fullatt_block_indexes": [],
        },
        image_token_id=ids("<|image_pad|>"), vision_start_token_id=ids("<|vision_start|>"), vision_end_token_id=ids("<|vision_end|>"),
    )).eval()  # fmt: skip
    for module, name in [(transformer, "transformer"), (vae, "vae"), (text, "text_encoder")]:
        module.eval().save_pretrained(directory / name)
    FlowMatchEulerDiscreteScheduler(**export.SCHEDULE).save_pretrained(directory / "scheduler")
    (directory / "model_index.json").write_text('{"_class_name": "QwenImageEditPlusPipeline"}\n')
    return transformer, vae, text.model.visual


def rows(profile, note):
    with tempfile.TemporaryDirectory() as directory:
        transformer, vae, visual = full_width(directory)
        ours = Child([built(profile, "edit"), directory])
        side = SIDE_PX // 16
        tokens = torch.randn(1, side * side * (1 + REFERENCES), 64)
        text, shapes = torch.randn(1, TEXT, 3584), [[(1, side, side)] * (1 + REFERENCES)]

        def look():
            transformer(hidden_states=tokens, encoder_hidden_states=text, timestep=torch.tensor([0.5]), img_shapes=shapes)

        mine, theirs = compare(partial(ours.time, f"look {SIDE_PX} {SIDE_PX} {REFERENCES} {SIDE_PX} {TEXT}"), partial(timed, look), runs=3)
        what = f"dit_block: Qwen-Image transformer with one block, {SIDE_PX}x{SIDE_PX} and one reference as large, {TEXT} text tokens, f32"
        yield row(what, "seconds", mine, PEER, theirs, cpu(THREADS), note)
        grid = torch.tensor([[1, 28, 28]])
        patches = torch.randn(28 * 28, 1176)
        mine, theirs = compare(partial(ours.time, "see 384"), lambda: timed(lambda: visual(patches, grid_thw=grid)), runs=5)
        what = "vision_block: Qwen2.5-VL vision tower with one block, 392x392; ours resizes and cuts the image as well"
        yield row(what, "seconds", mine, f"transformers {transformers.__version__}", theirs, cpu(THREADS), note)
        latents = torch.randn(1, 16, 1, SIDE_PX // 8, SIDE_PX // 8)
        mine, theirs = compare(partial(ours.time, f"decode {SIDE_PX} {SIDE_PX}"), lambda: timed(lambda: vae.decode(latents)), runs=3)
        yield row(f"qwen_vae_decode: one decode, {SIDE_PX}x{SIDE_PX}", "seconds", mine, PEER, theirs, cpu(THREADS), note)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="bench", help="cargo profile that ours is built in")
    parser.add_argument("--note", default="", help="what a reader of the results must know about this run")
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    report("edit-full", "cpu", list(rows(options.profile, options.note)))


if __name__ == "__main__":
    main()
