"""Trains the U-Net and the text encoder of tiny-sd together on cached latents.

    nice -n 5 torchrun --nproc-per-node 2 diffusion.py LATENTS.pt OUT.pt MINUTES [PEAK_RATE [MODEL_DIR]]

Goes on from OUT.pt where it is there. With MODEL_DIR a new run starts from the weights exported there.
Attention runs as plain matrix products: the backward pass of torch's fused CPU attention takes half of all time here.
SD 1.5's noise schedule and its epsilon target, min-SNR weights (Hang et al. 2023, arXiv 2303.09556, gamma 5), one
caption in ten left empty for classifier-free guidance.
"""

import sys

import torch
from common import Ema, join_workers, new_text_encoder, new_unet
from diffusers import StableDiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor
from loop import Run, nothing_more
from vae import SCALING_FACTOR

BATCH = 16  # for each of two workers
PEAK_RATE = 1e-3
EMPTY_CAPTIONS = 0.1
SNR_GAMMA = 5.0
NOISY = 0.6
SAVE_EVERY_S = 180


def alphas_cumprod():
    """SD 1.5: betas from 0.00085 to 0.012, linear in their square roots, 1000 timesteps."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, 0).float()


ALPHAS = alphas_cumprod()


def epsilon_loss(unet, clean, hidden, generator):
    """Min-SNR weighted squared error of the predicted noise at random timesteps. clean: (B, 4, 16, 16), scaled."""
    batch = clean.shape[0]
    # Stratified timesteps: one in each of B equal slices, which takes noise out of the loss. The power favours the noisy
    # ones, where only the caption tells the colour and the object.
    share = (torch.arange(batch) + torch.rand(batch, generator=generator)) / batch
    steps = (share**NOISY * 1000).long().clamp(max=999)
    noise = torch.randn(clean.shape, generator=generator)
    a = ALPHAS[steps].view(-1, 1, 1, 1)
    noisy = a.sqrt() * clean + (1 - a).sqrt() * noise
    with torch.autocast("cpu", torch.bfloat16):
        predicted = unet(noisy, steps, hidden).sample
    snr = ALPHAS[steps] / (1 - ALPHAS[steps])
    weight = snr.clamp(max=SNR_GAMMA) / snr
    return (weight * (predicted.float() - noise).square().mean((1, 2, 3))).mean()


def draw(data, empty, generator, size):
    """A random batch: scaled latents (size, 4, 16, 16) and token ids (size, 77), some of them of the empty caption."""
    index = torch.randint(len(data["latents"]), (size,), generator=generator)
    which = torch.randint(4, (size,), generator=generator)
    tokens = data["tokens"][index, which].long()
    tokens[torch.rand(size, generator=generator) < EMPTY_CAPTIONS] = empty
    return data["latents"][index].float() * SCALING_FACTOR, tokens


def empty_tokens(vocab_size):
    """The empty caption: <|startoftext|>, then <|endoftext|> to the end."""
    tokens = torch.full((77,), vocab_size - 1)
    tokens[0] = vocab_size - 2
    return tokens


def main():
    latents, out, minutes = sys.argv[1], sys.argv[2], float(sys.argv[3])
    peak_rate = float(sys.argv[4]) if len(sys.argv) > 4 else PEAK_RATE
    rank, workers = join_workers()
    data = torch.load(latents, weights_only=True)
    vocab_size = int(data["tokens"].max()) + 1
    torch.manual_seed(12)
    unet, text = new_unet(), new_text_encoder(vocab_size)
    if len(sys.argv) > 5:
        exported = StableDiffusionPipeline.from_pretrained(sys.argv[5], torch_dtype=torch.float32, safety_checker=None)
        unet, text = exported.unet.train(), exported.text_encoder.train()
    unet.set_attn_processor(AttnProcessor())
    text.set_attn_implementation("eager")
    parameters = list(unet.parameters()) + list(text.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=PEAK_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    ema = Ema([unet, text], 0.995)
    run = Run({"unet": unet, "text": text}, optimizer, ema, out, SAVE_EVERY_S)
    empty = empty_tokens(vocab_size)

    def loss_at(step):
        generator = torch.Generator().manual_seed(workers * (1_000_000 + step) + rank)
        clean, tokens = draw(data, empty, generator, BATCH)
        with torch.autocast("cpu", torch.bfloat16):
            hidden = text(tokens).last_hidden_state
        return epsilon_loss(unet, clean, hidden, generator), nothing_more

    run.train(minutes, loss_at, peak_rate, warm_up_steps=150)


if __name__ == "__main__":
    main()
