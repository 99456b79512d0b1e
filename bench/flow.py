"""How fast the flow engines compute, and in how much memory, against diffusers on the same CPU: same files, as many threads, in turns.

    OMP_WAIT_POLICY=passive python bench/flow.py [--profile dev] [--only z-image|flux] [--note TEXT]    needs torch, diffusers, transformers

Z-Image-Turbo's and FLUX.1-schnell's own widths with random weights, one block of each kind, where they have 30 and 2 refiners twice, and 19 and 38: one
forward of the transformer at 256x256, and the most memory that a process with the pipeline has for it. The text encoders have their own width and few layers.
Without the policy torch's OpenMP threads spin while ours compute.
"""

import argparse
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel, ZImagePipeline, ZImageTransformer2DModel
from engine import PEER, ROOT, THREADS, Child, built, compare, peak_mib, timed
from report import cpu, report, row
from transformers import CLIPTextConfig, CLIPTextModel, Qwen3Config, Qwen3ForCausalLM, T5Config, T5EncoderModel

sys.path[:0] = [str(ROOT / part) for part in ("tests/oracle", "models/train/edit", "models/train")]
import words  # noqa: E402

PROMPT = "a red apple on a table"
SIDE_PX = 256
CHANNELS = 16


def autoencoder():
    return AutoencoderKL(
        block_out_channels=(32, 32, 32, 32), norm_num_groups=8, sample_size=64, layers_per_block=1, latent_channels=CHANNELS, scaling_factor=0.3611,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, shift_factor=0.1159, use_quant_conv=False,
        use_post_quant_conv=False,
    )  # fmt: skip


def z_image(directory):
    from z_image import TEMPLATE

    tokenizer = words.write(Path(directory))
    tokenizer.chat_template = TEMPLATE
    encoder = Qwen3ForCausalLM(Qwen3Config(
        vocab_size=len(tokenizer) + 5, hidden_size=2560, intermediate_size=256, num_hidden_layers=2, num_attention_heads=32, num_key_value_heads=8,
        head_dim=128, rms_norm_eps=1e-6, tie_word_embeddings=True, rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )).eval()  # fmt: skip
    transformer = ZImageTransformer2DModel(n_layers=1, n_refiner_layers=1)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    return ZImagePipeline(scheduler, autoencoder(), encoder, tokenizer, transformer.eval())


def flux(directory):
    from flux import SCHEDULE, TOKENS, t5_tokenizer
    from make_fixtures import END, START
    from make_fixtures import tokenizer as clip_words
    from transformers import CLIPTokenizer

    vocab, merges = clip_words()
    clip = CLIPTextModel(CLIPTextConfig(
        vocab_size=len(vocab), hidden_size=768, intermediate_size=256, num_hidden_layers=1, num_attention_heads=12, bos_token_id=vocab[START],
        eos_token_id=2, pad_token_id=vocab[END], hidden_act="quick_gelu",
    ))  # fmt: skip
    tokenizer = CLIPTokenizer(vocab=vocab, merges=merges, pad_token=END, model_max_length=77)
    tokenizer_2 = t5_tokenizer(Path(directory))
    t5 = T5EncoderModel(T5Config(vocab_size=len(tokenizer_2) + 3, d_model=4096, d_ff=256, num_layers=1, num_heads=64, feed_forward_proj="gated-gelu"))
    transformer = FluxTransformer2DModel(num_layers=1, num_single_layers=1)
    assert TOKENS == 256
    scheduler = FlowMatchEulerDiscreteScheduler(**SCHEDULE)
    return FluxPipeline(scheduler, autoencoder(), clip.eval(), tokenizer, t5.eval(), tokenizer_2, transformer.eval())


@torch.inference_mode()
def look_of(pipeline):
    """One forward of the transformer, over as many tokens of text as the prompt is."""
    side = SIDE_PX // 8
    if isinstance(pipeline, ZImagePipeline):
        states, _ = pipeline.encode_prompt(PROMPT, do_classifier_free_guidance=False)
        latents = [torch.randn(CHANNELS, 1, side, side)]
        return lambda: pipeline.transformer(latents, torch.tensor([0.5]), states, return_dict=False)
    states, pooled, ids = pipeline.encode_prompt(PROMPT, None, max_sequence_length=256)
    latents = torch.randn(1, side * side // 4, 4 * CHANNELS)
    image_ids = pipeline._prepare_latent_image_ids(1, side // 2, side // 2, latents.device, latents.dtype)
    more = {"pooled_projections": pooled, "txt_ids": ids, "img_ids": image_ids, "guidance": None, "return_dict": False}
    return lambda: pipeline.transformer(latents, timestep=torch.tensor([0.5]), encoder_hidden_states=states, **more)


# The peer's own process: loads the pipeline, goes once through the transformer, and prints its peak.
ALONE = """
import sys, torch
from diffusers import DiffusionPipeline
from engine import peak_mib
from flow import look_of
look = look_of(DiffusionPipeline.from_pretrained(sys.argv[1]))
with torch.inference_mode():
    look()
print(peak_mib("self"))
"""

FAMILIES = {
    "z-image": (z_image, "Z-Image, a block and a refiner of each kind"),
    "flux": (flux, "FLUX.1, a double block and a single one"),
}


def rows(family, profile, note):
    make, what = FAMILIES[family]
    with tempfile.TemporaryDirectory() as directory:
        pipeline = make(directory)
        pipeline.save_pretrained(directory)
        look = look_of(pipeline)
        size = f"{sum(p.numel() for p in pipeline.transformer.parameters()) / 1e6:.0f} million parameters, {SIDE_PX}x{SIDE_PX}, f32"
        with Child([built(profile, "engine"), directory]) as ours:
            mine, theirs = compare(partial(ours.time, f"look {SIDE_PX} {SIDE_PX} {CHANNELS}"), partial(timed, look), runs=3)
            resident = peak_mib(ours.process.pid)
        yield row(f"{family}_block: {what}, one forward, {size}", "seconds", mine, PEER, theirs, cpu(THREADS), note)
        del pipeline, look
        command = [sys.executable, "-c", ALONE, directory]
        peak = float(subprocess.run(command, cwd=Path(__file__).parent, stdout=subprocess.PIPE, text=True, check=True).stdout.split()[-1])
        what = f"{family}_block_memory: peak of a process with it, text encoders and VAE, one forward, {size}"
        yield row(what, "MiB", resident, PEER, peak, cpu(THREADS), note)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="bench", help="cargo profile that ours is built in")
    parser.add_argument("--only", choices=FAMILIES)
    parser.add_argument("--note", default="", help="what a reader of the results must know about this run")
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    for family in FAMILIES:
        if options.only in (None, family):
            report(f"flow-{family}", "cpu", list(rows(family, options.profile, options.note)))


if __name__ == "__main__":
    main()
