"""Writes tests/fixtures/segmenter: tiny Segformers, and what transformers makes of images of odd sizes, for crates/engine/tests/it/parity/segmenter.rs.

    python tests/oracle/segmenter.py    seconds on a CPU; the result is committed

Every parameter and statistic is a seeded normal number: zeros and ones would hide a bias that is left out, or norms of other constants.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import SegformerConfig, SegformerForSemanticSegmentation
from transformers.models.segformer.image_processing_pil_segformer import SegformerImageProcessorPil

OUT = Path(__file__).resolve().parent.parent / "fixtures" / "segmenter"
# The labels of ATR, as published networks spell them.
CLOTHES = ("Background Hat Hair Sunglasses Upper-clothes Skirt Pants Dress Belt Left-shoe Right-shoe Face Left-leg Right-leg Left-arm Right-arm "
           "Bag Scarf").split()  # fmt: skip
NETWORKS = {
    "clothes": (
        {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 12, 16, 24], "num_attention_heads": [1, 2, 2, 4], "sr_ratios": [8, 4, 2, 1],
         "mlp_ratios": [2, 2, 2, 2], "decoder_hidden_size": 16},
        CLOTHES,
        {"size": {"height": 64, "width": 64}},
    ),  # fmt: skip
    # Three stages, no reduction in the first, one that divides no side in the second; patches that overlap otherwise.
    "oblong": (
        {"num_encoder_blocks": 3, "depths": [2, 1, 2], "hidden_sizes": [6, 10, 12], "num_attention_heads": [1, 2, 3], "sr_ratios": [1, 3, 2],
         "patch_sizes": [5, 3, 2], "strides": [3, 2, 2], "mlp_ratios": [1, 3, 2], "decoder_hidden_size": 10},
        ["nothing", "coat", "trousers", "shoe", "hat"],
        {"size": {"height": 45, "width": 61}, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.3, 0.2, 0.25], "resample": 3},
    ),  # fmt: skip
}  # fmt: skip
# (width, height).
IMAGES = [(37, 53), (96, 128), (101, 33)]


def normals(shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def randomize(network, seed):
    """Gains lie around one, variances above a tenth; the weights are kept in f16."""
    state = network.state_dict()
    for index, (name, values) in enumerate(sorted(state.items())):
        if not values.is_floating_point():
            continue
        drawn = normals(values.shape, seed + index)
        if name.endswith("running_var"):
            drawn = 0.1 + drawn.abs()
        elif values.dim() > 1:
            drawn = drawn * (values.numel() / values.shape[0]) ** -0.5 * 1.5
        elif name.endswith("weight"):
            drawn = 1 + 0.3 * drawn
        else:
            drawn = 0.3 * drawn
        values.copy_(drawn.half().float())
    return network.eval()


def scene(index, width, height):
    """Blocks of colours under noise: what a network of random weights sees differs from place to place."""
    coarse = torch.randint(0, 256, (5, 4, 3), generator=torch.Generator().manual_seed(900 + index), dtype=torch.uint8)
    blocks = np.asarray(Image.fromarray(coarse.numpy()).resize((width, height), Image.Resampling.NEAREST))
    noise = normals((height, width, 3), 950 + index) * 20
    return (torch.tensor(blocks, dtype=torch.float32) + noise).clamp(0, 255).to(torch.uint8)


def level(network, seen):
    """No label's scores are above all others': every one of them is seen somewhere."""
    mean = torch.cat([network(pixels).logits.mean(dim=(0, 2, 3))[None] for pixels in seen]).mean(dim=0)
    bias = network.decode_head.classifier.bias
    bias.copy_((bias - mean).half().float())


@torch.no_grad()
def main():
    shutil.rmtree(OUT, ignore_errors=True)
    out = {}
    images = [scene(index, *size) for index, size in enumerate(IMAGES)]
    for index, image in enumerate(images):
        out[f"input/{index}"] = image
    for place, (name, (sizes, labels, processing)) in enumerate(NETWORKS.items()):
        config = SegformerConfig(**sizes, id2label=dict(enumerate(labels)), label2id={label: index for index, label in enumerate(labels)})
        network = randomize(SegformerForSemanticSegmentation(config), 1000 * (place + 1))
        processor = SegformerImageProcessorPil(**processing)
        seen = [processor(Image.fromarray(image.numpy()), return_tensors="pt")["pixel_values"] for image in images]
        level(network, seen)
        network.save_pretrained(OUT / name)
        file = OUT / name / "model.safetensors"
        save_file({key: values.half() if values.is_floating_point() else values for key, values in load_file(file).items()}, file)
        processor.save_pretrained(OUT / name)
        for index, (image, pixels) in enumerate(zip(images, seen, strict=True)):
            made = network(pixels, output_hidden_states=True)
            out[f"{name}/{index}/pixels"] = pixels
            for stage, hidden in enumerate(made.hidden_states):
                out[f"{name}/{index}/stages/{stage}"] = hidden
            out[f"{name}/{index}/logits"] = made.logits
            [found] = processor.post_process_semantic_segmentation(made, [tuple(image.shape[:2])], return_segmentation_scores=True)
            best = found["segmentation_scores"].topk(2, dim=0).values
            out[f"{name}/{index}/labels"] = found["segmentation"].to(torch.uint8)
            out[f"{name}/{index}/margins"] = best[0] - best[1]
            print(name, index, sorted(found["segmentation"].unique().tolist()), f"smallest margin {(best[0] - best[1]).min():.1e}")
    config = OUT / "clothes" / "preprocessor_config.json"
    # As the first releases of transformers wrote it.
    written = json.loads(config.read_text())
    old = {key: written[key] for key in ("do_normalize", "do_resize", "image_mean", "image_std", "resample")}
    old |= {"feature_extractor_type": "SegformerFeatureExtractor", "reduce_labels": False, "size": 64}
    config.write_text(json.dumps(old, indent=2, sort_keys=True) + "\n")
    save_file({key: values.contiguous() for key, values in out.items()}, OUT / "expected.safetensors")
    size = sum(path.stat().st_size for path in OUT.rglob("*") if path.is_file())
    print(f"{size / 1e6:.2f} MB in {OUT}")


if __name__ == "__main__":
    main()
