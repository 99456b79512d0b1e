"""diffusers as a process that waits for work, one piece a line: the peer of crates/engine/bench/engine.rs and crates/engine/bench/edit.rs in bench/gpu.py.

    python bench/gpu_peer.py sd|sdxl|flow|edit DIRECTORY cuda|cpu eager|compiled    needs torch, diffusers, transformers, accelerate

It computes in f16 (sd, sdxl) or bf16 (flow, edit) on a GPU, in f32 on a CPU. Lines and answers are those of the two programs, and two of its own:
`launches SIDE_PX ROWS` and `busy SIDE_PX ROWS`, kernels and their seconds in one forward of the UNet.
"""

import os
import sys
from pathlib import Path

import flow
import torch
from diffusers import (
    AutoencoderKLQwenImage,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    QwenImageEditPlusPipeline,
    QwenImageTransformer2DModel,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from engine import ROOT, timed
from gpu_run import quiet
from PIL import Image

PROMPT = "a red apple on a table"
INSTRUCTION = "Dress the person in image 1 in the garment of image 2."


class Peer:
    def __init__(self, device, dtype):
        self.device, self.dtype = device, dtype

    def random(self, *shape):
        return torch.randn(*shape, device=self.device, dtype=self.dtype)

    def seconds(self, work):
        def finished():
            work()
            if self.device == "cuda":
                torch.cuda.synchronize()

        if self.device == "cuda":
            torch.cuda.synchronize()
        return timed(finished)


class StableDiffusion(Peer):
    """As its own guide advises on a GPU: f16, and compiled with the order of channels that convolutions like best."""

    def __init__(self, directory, device, way):
        super().__init__(device, torch.float16 if device == "cuda" else torch.float32)
        self.pipeline = StableDiffusionPipeline.from_pretrained(directory, torch_dtype=self.dtype, safety_checker=None).to(device)
        self.pipeline.set_progress_bar_config(disable=True)
        if way == "compiled":
            for name in ("unet", "vae"):
                setattr(self.pipeline, name, getattr(self.pipeline, name).to(memory_format=torch.channels_last))
            compiled = {"mode": "max-autotune", "fullgraph": True, "dynamic": False}
            self.pipeline.unet = torch.compile(self.pipeline.unet, **compiled)
            self.pipeline.vae.decode = torch.compile(self.pipeline.vae.decode, **compiled)

    def generate(self, side, steps, images):
        generator = torch.Generator(self.device).manual_seed(42)
        return self.seconds(lambda: self.pipeline(
            PROMPT, negative_prompt="", num_inference_steps=steps, guidance_scale=7.5, width=side, height=side,
            num_images_per_prompt=images, generator=generator, output_type="np",
        ))  # fmt: skip

    # The two calls are the pipeline's own, word for word: for others torch.compile would begin anew.
    def look(self, side, rows):
        unet, time = self.pipeline.unet, torch.full((), 500, device=self.device)
        latents, text = self.random(rows, 4, side // 8, side // 8), self.random(rows, 77, unet.config.cross_attention_dim)
        nothing = {"timestep_cond": None, "cross_attention_kwargs": None, "added_cond_kwargs": None}
        return lambda: unet(latents, time, encoder_hidden_states=text, return_dict=False, **nothing)

    def unet(self, side, rows):
        return self.seconds(self.look(side, rows))

    def encode(self):
        words = {"padding": "max_length", "max_length": 77, "return_tensors": "pt"}
        pipeline = self.pipeline
        return self.seconds(lambda: pipeline.text_encoder(pipeline.tokenizer(PROMPT, **words).input_ids.to(self.device)))

    def decode(self, side):
        latents, generator = self.random(1, 4, side // 8, side // 8), torch.Generator(self.device)
        return self.seconds(lambda: self.pipeline.vae.decode(latents, return_dict=False, generator=generator))

    def kernels(self, side, rows):
        look, kind = self.look(side, rows), torch.autograd.DeviceType.CUDA if self.device == "cuda" else torch.autograd.DeviceType.CPU
        self.seconds(look)
        with torch.profiler.profile() as profile:
            self.seconds(look)
        return [event.time_range.elapsed_us() / 1e6 for event in profile.events() if event.device_type == kind]

    def launches(self, side, rows):
        return len(self.kernels(side, rows))

    def busy(self, side, rows):
        return sum(self.kernels(side, rows))


class StableDiffusionXL(Peer):
    def __init__(self, directory, device, _way):
        super().__init__(device, torch.float16 if device == "cuda" else torch.float32)
        loaded = {"torch_dtype": self.dtype, "add_watermarker": False}
        self.pipeline = StableDiffusionXLPipeline.from_pretrained(directory, **loaded).to(device)
        self.pipeline.set_progress_bar_config(disable=True)

    def generate(self, side, steps, images):
        generator = torch.Generator(self.device).manual_seed(42)
        return self.seconds(lambda: self.pipeline(
            PROMPT, negative_prompt="", num_inference_steps=steps, guidance_scale=7.5, width=side, height=side, num_images_per_prompt=images,
            generator=generator, output_type="np",
        ))  # fmt: skip

    def unet(self, side, rows):
        unet = self.pipeline.unet
        time = torch.full((), 500, device=self.device)
        latents, text = self.random(rows, 4, side // 8, side // 8), self.random(rows, 77, unet.config.cross_attention_dim)
        pooled = unet.config.projection_class_embeddings_input_dim - 6 * unet.config.addition_time_embed_dim
        added = {"text_embeds": self.random(rows, pooled), "time_ids": torch.tensor([[side, side, 0, 0, side, side]] * rows, device=self.device, dtype=self.dtype)}
        return self.seconds(lambda: unet(latents, time, encoder_hidden_states=text, added_cond_kwargs=added, return_dict=False))


class Flow(Peer):
    def __init__(self, directory, device, _way):
        super().__init__(device, torch.bfloat16 if device == "cuda" else torch.float32)
        self.pipeline = DiffusionPipeline.from_pretrained(directory, torch_dtype=self.dtype).to(device)
        self.pipeline.set_progress_bar_config(disable=True)

    def look(self, width, height, *_of_latents):
        return self.seconds(flow.look_of(self.pipeline, width, height))

    def generate(self, width, height, steps):
        generator = torch.Generator(self.device).manual_seed(42)
        return self.seconds(lambda: self.pipeline(
            prompt=PROMPT, guidance_scale=0.0, num_inference_steps=steps, width=width, height=height, generator=generator, output_type="np",
        ))  # fmt: skip


class Edit(Peer):
    def __init__(self, directory, device, _way):
        super().__init__(device, torch.bfloat16 if device == "cuda" else torch.float32)
        self.directory, self.pipeline = Path(directory), None
        # Straight to where they are wanted: the host may not have room for them.
        self.loaded = {"torch_dtype": self.dtype, "device_map": {"": "cuda:0" if device == "cuda" else device}}
        self.transformer = QwenImageTransformer2DModel.from_pretrained(self.directory / "transformer", **self.loaded)
        self.vae = AutoencoderKLQwenImage.from_pretrained(self.directory / "vae", torch_dtype=self.dtype).to(device)

    def look(self, width, height, references, reference, text):
        sides = [(1, height // 16, width // 16)] + [(1, reference // 16, reference // 16)] * references
        tokens = self.random(1, sum(rows * columns for _, rows, columns in sides), self.transformer.config.in_channels)
        text = self.random(1, text, self.transformer.config.joint_attention_dim)
        time = torch.tensor([0.5], device=self.device, dtype=self.dtype)
        return self.seconds(lambda: self.transformer(tokens, encoder_hidden_states=text, timestep=time, img_shapes=[sides]))

    def decode(self, width, height):
        latents = self.random(1, self.vae.config.z_dim, 1, height // 8, width // 8)
        return self.seconds(lambda: self.vae.decode(latents, return_dict=False))

    def edit(self, width, height, references, steps):
        images = [Image.linear_gradient("L").resize((768, 1024)).convert("RGB") for _ in range(references)]
        pipeline, generator = self.with_words(), torch.Generator().manual_seed(42)
        return self.seconds(lambda: pipeline(
            image=images, prompt=INSTRUCTION, true_cfg_scale=1.0, num_inference_steps=steps, width=width, height=height,
            generator=generator, output_type="np",
        ))  # fmt: skip

    def with_words(self):
        """The whole pipeline; its text encoder is loaded when it is wanted first, as ours is."""
        if self.pipeline is None:
            sys.path[:0] = [str(ROOT / part) for part in ("tests/oracle", "models/train/edit", "models/train")]
            import words
            from qwen_text import Processor, told_what_is_a_image
            from transformers import Qwen2_5_VLForConditionalGeneration

            encoder = Qwen2_5_VLForConditionalGeneration.from_pretrained(self.directory / "text_encoder", **self.loaded).eval()
            tokenizer = words.new_tokenizer()
            self.pipeline = QwenImageEditPlusPipeline(
                FlowMatchEulerDiscreteScheduler.from_pretrained(self.directory / "scheduler"), self.vae, told_what_is_a_image(encoder),
                tokenizer, Processor(tokenizer, words.new_image_processor()), self.transformer,
            )  # fmt: skip
            self.pipeline.set_progress_bar_config(disable=True)
        return self.pipeline


def main():
    # Whatever else prints must not look like an answer.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    quiet()
    family, directory, device, way = sys.argv[1:]
    peer = {"sd": StableDiffusion, "sdxl": StableDiffusionXL, "flow": Flow, "edit": Edit}[family](directory, device, way)
    in_words = "torch.compile max-autotune, channels_last" if way == "compiled" else "eager"
    print(f"ready {str(peer.dtype).removeprefix('torch.')}, {in_words}", file=answers)
    # What is given as well: torch.compile distinguishes tensors from in here and from outside.
    with torch.inference_mode():
        for line in sys.stdin:
            work, *numbers = line.split()
            print(getattr(peer, work)(*map(int, numbers)), file=answers)


if __name__ == "__main__":
    main()
