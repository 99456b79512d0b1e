#!/usr/bin/env python3
"""Predicts the least time of a denoising step on some GPUs, from what was counted of ours (results/gpu-counts.json) and of diffusers, by the same rules
(results/gpu-traced.json): bench/gpu_roofline.py

A kind of operation takes as long as its products at the GPU's highest rate, or as its bytes, whichever is longer (Williams et al. 2009, the roofline
model). No kernel reaches its roof, and the host's launches are not in it: a card will be slower. Nothing here is measured.

>>> kinds = {"conv": {"bytes": 3_350_000, "flops": 989_400_000}, "add": {"bytes": 3_350_000_000, "flops": 0}}
>>> round(milliseconds(kinds, GPUS["H100 SXM"]), 6)
1.001
>>> milliseconds(kinds, GPUS["L4"]) > milliseconds(kinds, GPUS["RTX 4090"]) > milliseconds(kinds, GPUS["H100 SXM"])
True
>>> of_8_bits = {"gemm e4m3": {"bytes": 0, "flops": 1_978_900_000}}
>>> round(milliseconds(of_8_bits, GPUS["H100 SXM"]), 6), milliseconds(of_8_bits, GPUS["A10G"])
(0.001, None)
"""
import json
import pathlib

RESULTS = pathlib.Path(__file__).parent / "results"
# f16 products with sums in f32, dense, in TFLOP/s; 8-bit ones (e4m3), where it has them with scales and bias in the product, as they are counted; and
# bytes of memory in GB/s.
GPUS = {
    # NVIDIA H100 Tensor Core GPU datasheet (2023), column "H100 SXM": 1,979 and 3,958 TFLOP/s are with sparsity.
    "H100 SXM": (989.4, 1978.9, 3350),
    # NVIDIA L4 Tensor Core GPU datasheet (2023): 242 TFLOP/s are with sparsity.
    "L4": (121, None, 300),
    # NVIDIA A10G datasheet, as of AWS' G5 instances (2021): 140 TFLOP/s are with sparsity.
    "A10G": (70, None, 600),
    # NVIDIA Ada GPU architecture whitepaper (2023), appendix A: FP16 Tensor with FP32 accumulate.
    "RTX 4090": (165.2, None, 1008),
}


def milliseconds(kinds, gpu):
    """The least time of these kinds of operations, one kind after the other. None: the GPU has no such products of 8 bits, so other operations than these."""
    halves, eights, giga_bytes = gpu
    if eights is None and any("e4m3" in name for name in kinds):
        return None
    rates = {name: eights if "e4m3" in name else halves for name in kinds}
    return sum(max(kind["flops"] / (rates[name] * 1e9), kind["bytes"] / (giga_bytes * 1e6)) for name, kind in kinds.items())


def main():
    print(f"{'predicted, at least, ms a step of':64}" + "".join(f"{name:>10}" for name in GPUS))
    for title, counted in [pair for name in ("counts", "traced") for pair in json.loads((RESULTS / f"gpu-{name}.json").read_text()).items()]:
        predicted = [milliseconds(counted["kinds"], gpu) for gpu in GPUS.values()]
        print(f"{title:64}" + "".join(f"{'-':>10}" if least is None else f"{least:10.2f}" for least in predicted))


if __name__ == "__main__":
    main()
