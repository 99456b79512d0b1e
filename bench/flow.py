"""How fast the flow engines compute, and in how much memory, against diffusers on the same CPU: same files, as many threads, in turns.

    OMP_WAIT_POLICY=passive python bench/flow.py [--profile dev] [--only z-image|flux|flux2] [--note TEXT]    needs torch, diffusers, transformers

Z-Image-Turbo's, FLUX.1-schnell's and FLUX.2 klein 4B's own widths with random weights, one block of each kind, where they have 30 and 2 refiners twice, 19
and 38, and 5 and 20: one forward of the transformer at 256x256, and the most memory that a process with the pipeline has for it. The text encoders have their own width and few layers,
or of FLUX.2 all layers and few heads.
Without the policy torch's OpenMP threads spin while ours compute.
"""

import argparse
import subprocess
import sys
import tempfile
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel, ZImagePipeline, ZImageTransformer2DModel
from diffusers import AutoencoderKLFlux2, Flux2KleinPipeline, Flux2Transformer2DModel
from engine import PEER, ROOT, THREADS, Child, built, compare, peak_mib, timed
from report import cpu, report, row
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, Qwen3Config, Qwen3ForCausalLM, T5Config, T5EncoderModel

sys.path[:0] = [str(ROOT / part) for part in ("tests/oracle", "models/train/edit", "models/train")]

PROMPT = "a red apple on a table"
SIDE_PX = 256
CHANNELS = 16
LATENTS = {"z-image": (CHANNELS, 8), "flux": (CHANNELS, 8), "flux2": (128, 16)}
"""Of each family: channels of the loop's latents, and pixels of one's side."""
SCALES = ("tiny", "block", "whole")
"""As small as it gets; one block of each kind at the published widths; the published sizes without numbers, on torch's meta device."""


def of_scale(scale, tiny, block, whole):
    return dict(zip(SCALES, (tiny, block, whole), strict=True))[scale]


def on(scale):
    return torch.device("meta") if scale == "whole" else nullcontext()


def autoencoder(scale):
    widths = of_scale(scale, (8,) * 4, (32,) * 4, (128, 256, 512, 512))
    return AutoencoderKL(
        block_out_channels=widths, norm_num_groups=min(32, widths[0]), sample_size=1024, layers_per_block=of_scale(scale, 1, 1, 2),
        latent_channels=CHANNELS, scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    ).eval()  # fmt: skip


def z_image(directory, scale):
    import words
    from z_image import TEMPLATE

    tokenizer = words.write(Path(directory))
    tokenizer.chat_template = TEMPLATE
    wide = scale != "tiny"
    sizes = {"hidden_size": 2560, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128}
    narrow = {"hidden_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    config = Qwen3Config(
        vocab_size=of_scale(scale, len(tokenizer) + 5, len(tokenizer) + 5, 151_936), intermediate_size=of_scale(scale, 64, 256, 9728),
        num_hidden_layers=of_scale(scale, 2, 2, 36), rms_norm_eps=1e-6, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6}, **(sizes if wide else narrow),
    )  # fmt: skip
    layers = {"n_layers": of_scale(scale, 1, 1, 30), "n_refiner_layers": of_scale(scale, 1, 1, 2)}
    small = {} if wide else {"dim": 96, "n_heads": 2, "n_kv_heads": 2, "cap_feat_dim": 48, "axes_dims": [16, 16, 16]}
    with on(scale):
        encoder, transformer = Qwen3ForCausalLM(config).eval(), ZImageTransformer2DModel(**layers, **small).eval()
    return ZImagePipeline(FlowMatchEulerDiscreteScheduler(shift=3.0), autoencoder(scale), encoder, tokenizer, transformer)


def flux(directory, scale):
    from flux import SCHEDULE, t5_tokenizer
    from make_fixtures import END, START
    from make_fixtures import tokenizer as clip_words

    vocab, merges = clip_words()
    wide = scale != "tiny"
    clip = CLIPTextConfig(
        vocab_size=of_scale(scale, len(vocab), len(vocab), 49_408), hidden_size=768 if wide else 32, intermediate_size=of_scale(scale, 64, 256, 3072),
        num_hidden_layers=of_scale(scale, 1, 1, 12), num_attention_heads=12 if wide else 2, bos_token_id=vocab[START], eos_token_id=2,
        pad_token_id=vocab[END], hidden_act="quick_gelu",
    )  # fmt: skip
    tokenizer = CLIPTokenizer(vocab=vocab, merges=merges, pad_token=END, model_max_length=77)
    tokenizer_2 = t5_tokenizer(Path(directory))
    t5 = T5Config(
        vocab_size=of_scale(scale, len(tokenizer_2) + 3, len(tokenizer_2) + 3, 32_128), d_model=4096 if wide else 48, d_ff=of_scale(scale, 64, 256, 10_240),
        num_layers=of_scale(scale, 1, 1, 24), num_heads=64 if wide else 4, d_kv=64 if wide else 12, feed_forward_proj="gated-gelu",
    )  # fmt: skip
    layers = {"num_layers": of_scale(scale, 1, 1, 19), "num_single_layers": of_scale(scale, 1, 1, 38)}
    small = {} if wide else {"attention_head_dim": 16, "num_attention_heads": 2, "joint_attention_dim": 48, "pooled_projection_dim": 32, "axes_dims_rope": (4, 6, 6)}
    with on(scale):
        encoders = CLIPTextModel(clip).eval(), T5EncoderModel(t5).eval()
        transformer = FluxTransformer2DModel(**layers, **small).eval()
    scheduler = FlowMatchEulerDiscreteScheduler(**SCHEDULE)
    return FluxPipeline(scheduler, autoencoder(scale), encoders[0], tokenizer, encoders[1], tokenizer_2, transformer)


def flux2(directory, scale):
    from flux2 import SCHEDULE, TEMPLATE
    from flux2 import tokenizer as words

    tokenizer = words(Path(directory))
    tokenizer.chat_template = TEMPLATE
    wide = scale != "tiny"
    heads = of_scale(scale, (4, 2, 16), (8, 2, 128), (32, 8, 128))
    config = Qwen3Config(
        vocab_size=of_scale(scale, len(tokenizer) + 5, len(tokenizer) + 5, 151_936), hidden_size=2560 if wide else 48,
        intermediate_size=of_scale(scale, 64, 256, 9728), num_hidden_layers=36, num_attention_heads=heads[0], num_key_value_heads=heads[1], head_dim=heads[2],
        rms_norm_eps=1e-6, tie_word_embeddings=True, rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )  # fmt: skip
    layers = {"num_layers": of_scale(scale, 1, 1, 5), "num_single_layers": of_scale(scale, 1, 1, 20), "guidance_embeds": False}
    sizes = {"num_attention_heads": 24, "joint_attention_dim": 3 * 2560}
    small = {"num_attention_heads": 2, "attention_head_dim": 16, "joint_attention_dim": 3 * 48, "axes_dims_rope": (4, 4, 4, 4)}
    with on(scale):
        encoder, transformer = Qwen3ForCausalLM(config).eval(), Flux2Transformer2DModel(**layers, **(sizes if wide else small)).eval()
    widths = of_scale(scale, (8,) * 4, (32,) * 4, (128, 256, 512, 512))
    vae = AutoencoderKLFlux2(
        block_out_channels=widths, norm_num_groups=min(32, widths[0]), layers_per_block=of_scale(scale, 1, 1, 2),
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
    ).eval()  # fmt: skip
    return Flux2KleinPipeline(FlowMatchEulerDiscreteScheduler(**SCHEDULE), vae, encoder, tokenizer, transformer, is_distilled=True)


@torch.inference_mode()
def look_of(pipeline, width=SIDE_PX, height=SIDE_PX):
    """One forward of the transformer, over as many tokens of text as the prompt is, where the pipeline is and in what it computes."""
    where = {"device": pipeline.transformer.device, "dtype": pipeline.transformer.dtype}
    time = torch.tensor([0.5], **where)
    if isinstance(pipeline, ZImagePipeline):
        states, _ = pipeline.encode_prompt(PROMPT, device=where["device"], do_classifier_free_guidance=False)
        states = [state.to(where["dtype"]) for state in states]
        latents = [torch.randn(CHANNELS, 1, height // 8, width // 8, **where)]
        return lambda: pipeline.transformer(latents, time, states, return_dict=False)
    if isinstance(pipeline, Flux2KleinPipeline):
        states, ids = pipeline.encode_prompt(PROMPT, device=where["device"])
        latents = torch.randn(1, LATENTS["flux2"][0], height // 16, width // 16, **where)
        image_ids = pipeline._prepare_latent_ids(latents).to(where["device"])
        more = {"encoder_hidden_states": states.to(where["dtype"]), "txt_ids": ids, "img_ids": image_ids, "guidance": None, "return_dict": False}
        latents = pipeline._pack_latents(latents)
        return lambda: pipeline.transformer(latents, timestep=time, **more)
    states, pooled, ids = pipeline.encode_prompt(PROMPT, None, device=where["device"], max_sequence_length=256)
    rows, columns = height // 16, width // 16
    latents = torch.randn(1, rows * columns, 4 * CHANNELS, **where)
    image_ids = pipeline._prepare_latent_image_ids(1, rows, columns, **where)
    more = {"pooled_projections": pooled, "txt_ids": ids, "img_ids": image_ids, "guidance": None, "return_dict": False}
    return lambda: pipeline.transformer(latents, timestep=time, encoder_hidden_states=states, **more)


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
    "flux2": (flux2, "FLUX.2 klein 4B, a double block and a single one"),
}


def rows(family, profile, note):
    make, what = FAMILIES[family]
    with tempfile.TemporaryDirectory() as directory:
        pipeline = make(directory, "block")
        pipeline.save_pretrained(directory)
        look = look_of(pipeline)
        size = f"{sum(p.numel() for p in pipeline.transformer.parameters()) / 1e6:.0f} million parameters, {SIDE_PX}x{SIDE_PX}, f32"
        with Child([built(profile, "engine"), directory]) as ours:
            mine, theirs = compare(partial(ours.time, "look {0} {0} {1} {2}".format(SIDE_PX, *LATENTS[family])), partial(timed, look), runs=3)
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
