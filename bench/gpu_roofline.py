#!/usr/bin/env python3
"""Predicts the least time of a denoising step on some GPUs, from what was counted (results/gpu-counts.json): bench/gpu_roofline.py

A kind of operation takes as long as its products at the GPU's highest rate, or as its bytes, whichever is longer (Williams et al. 2009, the roofline
model). No kernel reaches its roof, and the host's launches are not in it: a card will be slower. Nothing here is measured.

>>> kinds = {"conv": {"bytes": 3_350_000, "flops": 989_400_000}, "add": {"bytes": 3_350_000_000, "flops": 0}}
>>> round(milliseconds(kinds, GPUS["H100 SXM"]), 6)
1.001
>>> milliseconds(kinds, GPUS["L4"]) > milliseconds(kinds, GPUS["RTX 4090"]) > milliseconds(kinds, GPUS["H100 SXM"])
True
"""
import json
import pathlib

COUNTS = pathlib.Path(__file__).parent / "results/gpu-counts.json"
# f16 products with sums in f32, dense, in TFLOP/s, and bytes of memory in GB/s.
GPUS = {
    # NVIDIA H100 Tensor Core GPU datasheet (2023), column "H100 SXM".
    "H100 SXM": (989.4, 3350),
    # NVIDIA L4 Tensor Core GPU datasheet (2023): 242 TFLOP/s are with sparsity.
    "L4": (121, 300),
    # NVIDIA A10G datasheet, as of AWS' G5 instances (2021): 140 TFLOP/s are with sparsity.
    "A10G": (70, 600),
    # NVIDIA Ada GPU architecture whitepaper (2023), appendix A: FP16 Tensor with FP32 accumulate.
    "RTX 4090": (165.2, 1008),
}


def milliseconds(kinds, gpu):
    """The least time of these kinds of operations, one kind after the other."""
    tera_flops, giga_bytes = gpu
    return sum(max(kind["flops"] / (tera_flops * 1e9), kind["bytes"] / (giga_bytes * 1e6)) for kind in kinds.values())


def main():
    print(f"{'predicted, at least, ms a step of':44}" + "".join(f"{name:>10}" for name in GPUS))
    for title, counted in json.loads(COUNTS.read_text()).items():
        print(f"{title:44}" + "".join(f"{milliseconds(counted['kinds'], gpu):10.2f}" for gpu in GPUS.values()))


if __name__ == "__main__":
    main()
