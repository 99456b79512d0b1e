"""Writes tests/fixtures/sd/adapters: one file of every kind of adapter beside plain LoRA, and what the model makes with each; and
tests/fixtures/sd/single_file.safetensors: the checkpoint sd15 as Stable Diffusion's first release would have written it.

    python tests/oracle/adapters.py    some seconds on a CPU; the result is committed

Needs what make_fixtures.py needs, and lycoris-lora (with einops and toml); made with lycoris-lora 4.1.3. LyCORIS's own modules compute the
merged weights, PEFT those of its DoRA.
"""

import json
import shutil

import torch
from diffusers import StableDiffusionPipeline
from lycoris.functional.general import factorization, weight_decompose
from lycoris.functional.loha import diff_weight
from lycoris.functional.lokr import kron_weight
from lycoris.modules import get_module, make_module
from safetensors.torch import load_file, save_file

from make_fixtures import HERE, PROMPT, normals, text_hidden
from old_names import old_names, single_file

DIRECTORY = HERE / "adapters"
def open_pipeline():
    pipeline = StableDiffusionPipeline.from_pretrained(HERE / "sd15", torch_dtype=torch.float32, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def modules(pipeline):
    """Every module with a weight by its kohya name."""
    for prefix, model in (("lora_unet", pipeline.unet), ("lora_te", pipeline.text_encoder)):
        for name, module in model.named_modules():
            if getattr(module, "weight", None) is not None:
                # Transformers 5 leaves out the level that files have.
                name = name if prefix == "lora_unet" or name.startswith("text_model.") else f"text_model.{name}"
                yield f"{prefix}_{name.replace('.', '_')}", module


def low_rank(weight, rank, seed, mid=False):
    out, inside, *kernel = weight.shape
    ones = [1] * len(kernel)
    tensors = {"lora_up.weight": normals((out, rank, *ones), seed, 0.5)}
    if mid:
        tensors["lora_down.weight"] = normals((rank, inside, *ones), seed + 1, 0.3)
        tensors["lora_mid.weight"] = normals((rank, rank, *kernel), seed + 2, 0.3)
    else:
        tensors["lora_down.weight"] = normals((rank, inside, *kernel), seed + 1, (inside * len(kernel or [1])) ** -0.5)
    return tensors | {"alpha": torch.tensor(1.5)}


def loha(weight, rank, seed, core=False):
    out, inside, *kernel = weight.shape
    tensors = {}
    for side in (1, 2):
        if core:
            tensors[f"hada_t{side}"] = normals((rank, rank, *kernel), seed + 10 * side, 0.5)
            tensors[f"hada_w{side}_a"] = normals((rank, out), seed + 10 * side + 1, 0.5)
            tensors[f"hada_w{side}_b"] = normals((rank, inside), seed + 10 * side + 2, 0.5)
        else:
            columns = inside * torch.Size(kernel).numel()
            tensors[f"hada_w{side}_a"] = normals((out, rank), seed + 10 * side + 1, 0.5)
            tensors[f"hada_w{side}_b"] = normals((rank, columns), seed + 10 * side + 2, 0.4)
    return tensors | {"alpha": torch.tensor(2.0)}


def lokr(weight, rank, seed, split, core=False):
    """`split`: how each of the two factors is written, `whole` or `product`. The first one is as LyCORIS chooses it."""
    out, inside, *kernel = weight.shape
    (out_first, out_second), (in_first, in_second) = factorization(out, -1), factorization(inside, -1)
    tensors = {}
    if split[0] == "whole":
        tensors["lokr_w1"] = normals((out_first, in_first), seed, 0.4)
    else:
        tensors["lokr_w1_a"] = normals((out_first, rank), seed, 0.5)
        tensors["lokr_w1_b"] = normals((rank, in_first), seed + 1, 0.5)
    if split[1] == "whole":
        tensors["lokr_w2"] = normals((out_second, in_second, *kernel), seed + 2, 0.4)
    elif core:
        tensors["lokr_t2"] = normals((rank, rank, *kernel), seed + 3, 0.5)
        tensors["lokr_w2_a"] = normals((rank, out_second), seed + 4, 0.5)
        tensors["lokr_w2_b"] = normals((rank, in_second), seed + 5, 0.5)
    else:
        tensors["lokr_w2_a"] = normals((out_second, rank), seed + 6, 0.5)
        tensors["lokr_w2_b"] = normals((rank, in_second * torch.Size(kernel).numel()), seed + 7, 0.4)
    return tensors | {"alpha": torch.tensor(1.5)}


def with_lengths(tensors, weight, seed):
    out, *rest = weight.shape
    lengths = weight.detach().flatten(1).norm(dim=1) * (1 + normals((out,), seed, 0.2))
    return tensors | {"dora_scale": lengths.reshape(out, *[1] * len(rest))}


def differences(weight, seed, norm=False):
    names = ("w_norm", "b_norm") if norm else ("diff", "diff_b")
    return {names[0]: normals(weight.shape, seed, 0.1), names[1]: normals(weight.shape[:1], seed + 1, 0.1)}


def files(pipeline):
    """The adapters in LyCORIS's and kohya's spelling."""
    found = dict(modules(pipeline))
    convolutions = [name for name in found if name.endswith(("_conv1", "_conv2"))][:4]
    attention = [name for name in found if name.endswith(("_to_q", "_to_out_0", "_ff_net_2"))][:6]
    text = [name for name in found if name.startswith("lora_te") and name.endswith(("q_proj", "fc1"))][:3]
    norms = [name for name in found if name.endswith(("_norm1", "_norm2")) and "resnets" in name][:2]

    def each(names, make, seed):
        return {f"{name}.{part}": tensor for n, name in enumerate(names) for part, tensor in make(found[name].weight, seed + 100 * n).items()}

    return {
        "locon_mid": each(convolutions, lambda w, s: low_rank(w, 3, s, mid=True), 1),
        "loha": each(attention + convolutions[:2] + text, lambda w, s: loha(w, 3, s), 2),
        "loha_core": each(convolutions, lambda w, s: loha(w, 2, s, core=True), 3),
        "lokr": each(attention[:2], lambda w, s: lokr(w, 2, s, ("whole", "product")), 4)
        | each(attention[2:4] + text[:1], lambda w, s: lokr(w, 2, s, ("product", "product")), 5)
        | each(attention[4:] + text[1:], lambda w, s: lokr(w, 2, s, ("product", "whole")), 6)
        | each(convolutions[:2], lambda w, s: lokr(w, 2, s, ("whole", "product")), 7)
        | each(convolutions[2:3], lambda w, s: lokr(w, 2, s, ("whole", "whole")), 8)
        | each(convolutions[3:], lambda w, s: lokr(w, 2, s, ("whole", "product"), core=True), 8),
        "dora": each(attention + convolutions[:2] + text, lambda w, s: with_lengths(low_rank(w, 3, s), w, s + 9), 9),
        "doha": each(attention[:3], lambda w, s: with_lengths(loha(w, 3, s), w, s + 9), 10),
        "differences": each(attention[1:2] + convolutions[:1], differences, 11) | each(norms, lambda w, s: differences(w, s, norm=True), 12),
    }


def kronecker(tensors, name, shape):
    """LyCORIS's product; its module 4.1.3 guesses how the factors are written from their sizes, which are too small here."""
    part = lambda suffix: tensors.get(f"{name}.lokr_{suffix}")  # noqa: E731
    ranks = [matrix.shape[0] for matrix in (part("w1_b"), part("w2_b")) if matrix is not None]
    scale = float(tensors[f"{name}.alpha"]) / ranks[0] if ranks else 1.0
    parts = [part(suffix) for suffix in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")]
    return kron_weight(*parts, scale=scale).reshape(shape)


def hadamard(tensors, name, shape):
    """LyCORIS's product, scaled once as its forward does; `get_diff_weight` of 4.1.3 multiplies by alpha/rank a second time."""
    parts = [tensors.get(f"{name}.hada_{suffix}") for suffix in ("w1_b", "w1_a", "w2_b", "w2_a", "t1", "t2")]
    return diff_weight(*parts, gamma=torch.tensor(float(tensors[f"{name}.alpha"]) / parts[0].shape[0])).reshape(shape)


def merge(pipeline, tensors, scale):
    """Writes LyCORIS's merged weights into the models."""
    merged = set()
    for name, module in modules(pipeline):
        if any(key.startswith(f"{name}.lokr") for key in tensors):
            module.weight.data = module.weight.detach() + scale * kronecker(tensors, name, module.weight.shape)
            merged.add(name)
            continue
        if any(key.startswith(f"{name}.hada") for key in tensors):
            weight, change = module.weight.detach(), hadamard(tensors, name, module.weight.shape)
            lengths = tensors.get(f"{name}.dora_scale")
            module.weight.data = weight + scale * change if lengths is None else weight_decompose(weight + change, lengths, scale)
            merged.add(name)
            continue
        kind, parts = get_module(tensors, name)
        if kind is None:
            continue
        weight, bias = make_module(kind, parts, name, module).get_merged_weight(scale, shape=module.weight.shape)
        module.weight.data = weight.detach().reshape(module.weight.shape).float()
        if bias is not None:
            module.bias.data = bias.detach().float()
        merged.add(name)
    assert merged == {key.split(".")[0] for key in tensors}, "LyCORIS does not know all of them"


def look(pipeline, latents, out, name):
    hidden = text_hidden(pipeline, PROMPT)[1]
    out[f"{name}/text"] = hidden
    out[f"{name}/unet"] = pipeline.unet(latents, torch.tensor(500.0), hidden).sample


def dora_along_inputs(pipeline):
    """LyCORIS has no module that loads lengths along the inputs; its formula is a function."""
    found = dict(modules(pipeline))
    names = [name for name in found if name.endswith("_to_k")][:3] + [name for name in found if name.endswith("_conv1")][:1]
    tensors = {}
    for n, name in enumerate(names):
        weight = found[name].weight
        parts = low_rank(weight, 3, 50 + 10 * n)
        lengths = weight.detach().transpose(0, 1).flatten(1).norm(dim=1) * (1 + normals((weight.shape[1],), 59 + 10 * n, 0.2))
        parts["dora_scale"] = lengths.reshape(1, -1, *[1] * (weight.dim() - 2))
        tensors |= {f"{name}.{part}": tensor for part, tensor in parts.items()}
    merge_along_inputs(pipeline, tensors, 0.6)
    return tensors


def merge_along_inputs(pipeline, tensors, scale):
    for name, module in modules(pipeline):
        if f"{name}.dora_scale" in tensors:
            up, down, alpha, lengths = (tensors[f"{name}.{part}"] for part in ("lora_up.weight", "lora_down.weight", "alpha", "dora_scale"))
            weight = module.weight.detach()
            change = (up.flatten(1) @ down.flatten(1)).reshape(weight.shape) * (alpha / down.shape[0])
            module.weight.data = weight_decompose(weight + change, lengths, scale, wd_on_out=False)


def peft_dora(pipeline, path):
    found = {name: module for name, module in pipeline.unet.named_modules() if name.endswith(("to_q", "to_v", "proj_in"))}
    tensors = {}
    for n, (name, module) in enumerate(sorted(found.items())[:6]):
        out, inside, *kernel = module.weight.shape
        key, ones = f"unet.{name}", [1] * len(kernel)
        tensors[f"{key}.lora_A.weight"] = normals((3, inside, *kernel), 90 + 10 * n, inside**-0.5)
        tensors[f"{key}.lora_B.weight"] = normals((out, 3, *ones), 91 + 10 * n, 0.5)
        lengths = module.weight.detach().flatten(1).norm(dim=1) * (1 + normals((out,), 92 + 10 * n, 0.2))
        tensors[f"{key}.lora_magnitude_vector"] = lengths.reshape(1, out, *ones) if kernel else lengths
    save_file(tensors, path)
    with_peft(pipeline, path, 0.7)


def with_peft(pipeline, path, scale):
    pipeline.load_lora_weights(DIRECTORY, weight_name=path.name, adapter_name="dora")
    pipeline.set_adapters(["dora"], [scale])


def adapted(name, scale):
    """diffusers with the weights that the file DIRECTORY/<name>.safetensors makes, in f32; for comparisons on other devices."""
    pipeline, path = open_pipeline(), DIRECTORY / f"{name}.safetensors"
    tensors = load_file(path)
    if name == "peft_dora":
        with_peft(pipeline, path, scale)
    elif name == "dora_along_inputs":
        merge_along_inputs(pipeline, tensors, scale)
    elif name == "old_names":
        new = {f"lora_unet_{old.replace('.', '_')}": f"lora_unet_{new.replace('.', '_')}" for new, old in old_names(pipeline.unet).items()}
        renamed = {f"{new[key.split('.')[0]]}.{key.split('.', 1)[1]}": tensor for key, tensor in tensors.items()}
        merge(pipeline, renamed, scale)
    else:
        merge(pipeline, tensors, scale)
    return pipeline


def main():
    shutil.rmtree(DIRECTORY, ignore_errors=True)
    DIRECTORY.mkdir()
    latents, out, scales = load_file(HERE / "sd15.safetensors")["unet/1x9x13/latents"], {}, {}
    for n, (name, tensors) in enumerate(files(open_pipeline()).items()):
        pipeline, scales[name] = open_pipeline(), [1.0, 0.7, -0.4][n % 3]
        merge(pipeline, tensors, scales[name])
        save_file(tensors, DIRECTORY / f"{name}.safetensors")
        look(pipeline, latents, out, name)
    pipeline, scales["dora_along_inputs"] = open_pipeline(), 0.6
    save_file(dora_along_inputs(pipeline), DIRECTORY / "dora_along_inputs.safetensors")
    look(pipeline, latents, out, "dora_along_inputs")
    pipeline, scales["peft_dora"] = open_pipeline(), 0.7
    peft_dora(pipeline, DIRECTORY / "peft_dora.safetensors")
    look(pipeline, latents, out, "peft_dora")

    pipeline, scales["old_names"] = open_pipeline(), 0.9
    names = {f"lora_unet_{new.replace('.', '_')}": f"lora_unet_{old.replace('.', '_')}" for new, old in old_names(pipeline.unet).items()}
    weights = {name: module.weight for name, module in modules(pipeline) if name in names and module.weight.dim() > 1}
    tensors = {f"{name}.{part}": tensor for n, (name, weight) in enumerate(weights.items()) for part, tensor in low_rank(weight, 1, 1000 + 10 * n).items()}
    merge(pipeline, tensors, scales["old_names"])
    save_file({names[key.split(".")[0]] + "." + key.split(".", 1)[1]: tensor for key, tensor in tensors.items()}, DIRECTORY / "old_names.safetensors")
    look(pipeline, latents, out, "old_names")
    (DIRECTORY / "scales.json").write_text(json.dumps(scales, indent=2) + "\n")
    save_file({key: value.contiguous() for key, value in out.items()}, DIRECTORY / "expected.safetensors")
    single_file(HERE / "sd15", HERE / "single_file.safetensors")


if __name__ == "__main__":
    with torch.no_grad():
        main()
