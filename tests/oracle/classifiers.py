"""Writes tests/fixtures/classifiers: tiny image classifiers, and what transformers and diffusers say of images of many sizes.

    python tests/oracle/classifiers.py    seconds on a CPU; the result is committed

For crates/engine/tests/it/parity/classifiers.rs. The checkers' thresholds are laid so that some images are flagged, some are not, and some
are only because they need special care. transformers prepares the images with Pillow (13.0.0), without torchvision.
"""

import json
import shutil
import warnings

import numpy as np
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker, cosine_distance
from make_fixtures import HERE, randomize
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPImageProcessorPil, ViTConfig, ViTForImageClassification, ViTImageProcessorPil

warnings.filterwarnings("ignore")
OUT = HERE.parent / "classifiers"
SIDE = 32
# Width and height: of the model, smaller, far smaller than the crop, wide, high, odd, and strips.
SIZES = [(32, 32), (64, 64), (20, 20), (7, 5), (100, 40), (45, 130), (33, 97), (128, 96), (90, 1), (2, 77), (1, 1), (31, 32), (300, 9), (96, 128), (61, 61), (50, 32), (32, 50), (200, 150)]  # fmt: skip


def images():
    """Waves in random colours with noise on them."""
    made = []
    for index, (width, height) in enumerate(SIZES):
        rng = np.random.default_rng(900 + index)
        y, x = np.mgrid[0:height, 0:width] / max(width, height)
        waves = [127 + 100 * np.sin(rng.uniform(2, 20) * x + rng.uniform(2, 20) * y + rng.uniform(0, 6)) for _ in range(3)]
        made.append(np.clip(np.stack(waves, -1) + rng.normal(0, 20, (height, width, 3)), 0, 255).astype(np.uint8))
    return made


def seen(processor, image):
    return processor(Image.fromarray(image), return_tensors="pt")["pixel_values"]


def vit(name, labels, processor, seed, **config):
    named = {"id2label": dict(enumerate(labels)), "label2id": {label: index for index, label in enumerate(labels)}}
    model = ViTForImageClassification(
        ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, **config, **named)
    )
    randomize(model, seed, torch.float16)
    model.save_pretrained(OUT / name)
    processor.save_pretrained(OUT / name)
    return model.float()


def vits(out):
    one = {"size": {"height": SIDE, "width": SIDE}}
    made = {
        "vit": (["normal", "nsfw"], ViTImageProcessorPil(**one), {"image_size": SIDE, "patch_size": 8}),
        # Not square, of other patches, cubic, with constants of its own.
        "vit-oblong": (
            ["cat", "dog", "none of both"],
            ViTImageProcessorPil(size={"height": 24, "width": 40}, resample=3, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225]),
            {"image_size": (24, 40), "patch_size": (8, 4), "hidden_act": "quick_gelu", "layer_norm_eps": 1e-6},
        ),
        # CLIP's processor, whose crop is larger than what it is cut from.
        "vit-padded": (
            ["a", "b"],
            CLIPImageProcessorPil(size={"shortest_edge": 27}, crop_size={"height": SIDE, "width": SIDE}),
            {"image_size": SIDE, "patch_size": 16, "hidden_act": "gelu_new"},
        ),
    }  # fmt: skip
    for seed, (name, (labels, processor, config)) in enumerate(made.items()):
        model = vit(name, labels, processor, 71 + seed, **config)
        pixels = [seen(processor, image) for image in images()]
        for dtype, key in ((torch.float32, "scores"), (torch.bfloat16, "bf16"), (torch.float16, "f16")):
            logits = torch.cat([model.to(dtype)(one.to(dtype)).logits for one in pixels])
            out[f"{name}/{key}"] = logits.float().softmax(-1)


def checker_config():
    vision = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "image_size": SIDE, "patch_size": 8}
    return CLIPConfig(vision_config=vision, projection_dim=24)


def judged(model, pixels):
    """What diffusers computes: its own code with the scores kept, which it throws away."""
    image = np.zeros((1, 8, 8, 3))
    flagged = model(pixels, image)[1][0]
    embeds = model.visual_projection(model.vision_model(pixels)[1])
    adjustment, scores = 0.0, {"special": [], "concept": []}
    for kind, parameter in (("special", "special_care_embeds"), ("concept", "concept_embeds")):
        cosines = cosine_distance(embeds, getattr(model, parameter))[0].numpy()
        for cosine, threshold in zip(cosines, getattr(model, parameter + "_weights")):
            scores[kind].append(round(cosine - threshold.item() + adjustment, 3))
            if kind == "special" and scores[kind][-1] > 0:
                adjustment = 0.01
    assert flagged == any(score > 0 for score in scores["concept"])
    return [max(scores["concept"]), max(scores["special"])], flagged, adjustment > 0


def safety_checker(out):
    """Kept in f32, as the thresholds are."""
    model = randomize(StableDiffusionSafetyChecker(checker_config()), 83, torch.float32)
    processor = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    pixels = [seen(processor, image) for image in images()]
    embeds = torch.cat([model.visual_projection(model.vision_model(one)[1]) for one in pixels])
    concept = cosine_distance(embeds, model.concept_embeds)
    special = cosine_distance(embeds, model.special_care_embeds)
    # The sixth of the images lies just below the bar, and needs special care.
    highest = (concept - concept.mean(0)).max(1).values
    raised = highest.argsort(descending=True)[5]
    model.concept_embeds_weights.data = concept.mean(0) + highest[raised] + 0.005
    model.special_care_embeds_weights.data = special.mean(0) + (special - special.mean(0)).max(1).values[raised] - 0.003
    model.save_pretrained(OUT / "safety-checker")
    processor.save_pretrained(OUT / "safety-checker")
    found = [judged(model, one) for one in pixels]
    out["safety-checker/scores"] = torch.tensor([scores for scores, _, _ in found], dtype=torch.float32)
    out["safety-checker/flagged"] = torch.tensor([int(flagged) for _, flagged, _ in found], dtype=torch.uint8)
    model.special_care_embeds_weights.data += 10
    without_care = [judged(model, one)[1] for one in pixels]
    raised = sum(flagged and not without for (_, flagged, _), without in zip(found, without_care))
    print(f"{sum(flagged for _, flagged, _ in found)} of {len(found)} flagged, {sum(care for *_, care in found)} with special care, {raised} for that alone")
    assert raised and 0 < sum(flagged for _, flagged, _ in found) < len(found)
    older()


def older():
    """The same checker as diffusers and transformers kept it in 2022: names of two modules, a table of integers, numbers for sizes."""
    target = OUT / "safety-checker-2022"
    target.mkdir()
    tensors = load_file(OUT / "safety-checker/model.safetensors")
    tensors = {n.replace("vision_model.", "vision_model.vision_model.", 1): v for n, v in tensors.items()}
    tensors["vision_model.vision_model.embeddings.position_ids"] = torch.arange(17)[None]
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    shutil.copy(OUT / "safety-checker/config.json", target)
    written = json.loads((OUT / "safety-checker/preprocessor_config.json").read_text())
    old = {key: written[key] for key in ("do_center_crop", "do_normalize", "do_resize", "image_mean", "image_std", "resample")}
    old |= {"crop_size": SIDE, "size": SIDE, "feature_extractor_type": "CLIPFeatureExtractor"}
    (target / "preprocessor_config.json").write_text(json.dumps(old, indent=2) + "\n")


def resized(out):
    """What Pillow's triangle makes of noise."""
    cases = [(64, 64, 32, 32), (7, 5, 32, 32), (100, 40, 32, 32), (45, 130, 24, 40), (90, 1, 32, 32), (300, 9, 33, 8), (33, 400, 30, 20), (1, 1, 5, 9), (31, 32, 31, 20), (32, 31, 12, 31), (320, 240, 64, 64)]  # fmt: skip
    for index, (width, height, wide, high) in enumerate(cases):
        image = np.random.default_rng(index).integers(0, 256, (height, width, 3), np.uint8)
        out[f"resize/{index}/input"] = torch.from_numpy(image)
        out[f"resize/{index}/bilinear"] = torch.from_numpy(np.asarray(Image.fromarray(image).resize((wide, high), Image.BILINEAR)).copy())


@torch.no_grad()
def main():
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    out = {f"input/{index}": torch.from_numpy(image) for index, image in enumerate(images())}
    vits(out)
    safety_checker(out)
    resized(out)
    save_file({key: value.contiguous() for key, value in out.items()}, OUT / "expected.safetensors")
    for file in OUT.rglob("*.safetensors"):
        file.chmod(0o644)
    size = sum(file.stat().st_size for file in OUT.rglob("*") if file.is_file())
    print(f"{size / 1e6:.2f} MB in {OUT}")


if __name__ == "__main__":
    main()
