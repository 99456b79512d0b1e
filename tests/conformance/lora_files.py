"""Adapters in the forms that files have, and how the reference gets them."""

import json

import torch
from make_fixtures import lora, normals
from peft import LoraConfig
from safetensors.torch import load_file, save_file

RANK = 4


def shapes(model):
    return {name.removesuffix(".weight"): tuple(value.shape) for name, value in model.state_dict().items() if name.endswith(".weight")}


def peft(component):
    return lambda module, matrix: f"{component}.{module}.lora_{'A' if matrix == 'down' else 'B'}.weight"


def kohya(prefix):
    return lambda module, matrix: f"{prefix}_{module.replace('.', '_')}.lora_{matrix}.weight"


def processor(module, matrix):
    attention, projection = module.removesuffix(".0").rsplit(".", 1)
    return f"unet.{attention}.processor.{projection}_lora.{matrix}.weight"


def old_text(module, matrix):
    return f"text_encoder.text_model.{module}.lora_linear_layer.{matrix}.weight"


def dotted(module, matrix):
    return f"unet.{module}.lora.{matrix}.weight"


def with_level(module):
    """Transformers 5 leaves out the level that files have."""
    return module if module.startswith("text_model.") else f"text_model.{module}"


def write(unet, text_encoder, seed, directory):
    """All files but those of two libraries' own writers are made for every checkpoint alike: their UNets share these modules."""
    unet_shapes = shapes(unet)
    text_shapes = {with_level(name): shape for name, shape in shapes(text_encoder).items()}
    attention = [n for n in unet_shapes if n.split(".")[-1] in ("to_q", "to_k", "to_v") or n.endswith("to_out.0")]
    wide = [n for n in unet_shapes if ".ff.net." in n or n.endswith(("conv1", "conv2", "time_emb_proj"))]
    encoder = [n for n in text_shapes if n.endswith(("_proj", "fc1", "fc2"))]
    projections = [n for n in encoder if n.endswith("_proj")]
    save = lambda name, tensors, **more: save_file({k: v.contiguous() for k, v in tensors.items()}, directory / f"{name}.safetensors", **more)  # noqa: E731

    save("peft", lora(attention, unet_shapes, RANK, seed, peft("unet")) | lora(encoder, text_shapes, 2, seed + 300, peft("text_encoder")))
    told = {"r": RANK, "lora_alpha": 10, "target_modules": sorted(attention), "peft_type": "LORA", "alpha_pattern": {"^mid_block.*": 3, "to_v": 6}}
    header = {"format": "pt", "lora_adapter_metadata": json.dumps({f"unet.{key}": value for key, value in told.items()})}
    strong = lora(attention, unet_shapes, RANK, seed + 500, peft("unet"))
    # Alphas above the rank: as strong as the others, or rounding would decide the image.
    save("header", {key: value * 0.3 if "lora_B" in key else value for key, value in strong.items()}, metadata=header)
    pairs = lora(attention, unet_shapes, 3, seed + 700, kohya("lora_unet")) | lora(encoder, text_shapes, 3, seed + 900, kohya("lora_te"))
    save("kohya", with_alphas(pairs, torch.tensor(1.5), torch.float16))
    pairs = lora(wide, unet_shapes, 2, seed + 1100, kohya("lora_unet"))
    save("convolutions", with_alphas(pairs, torch.tensor(1, dtype=torch.int64), torch.bfloat16))
    save("processor", lora(attention, unet_shapes, 2, seed + 1500, processor))
    renamed = {key.replace("text_encoder.text_model.text_model.", "text_encoder.text_model."): value
               for key, value in lora(projections, text_shapes, 2, seed + 1700, old_text).items()}  # fmt: skip
    save("linear_layer", renamed | lora(attention[:6], unet_shapes, 5, seed + 1900, dotted))
    save("loha", products(attention[:5] + wide[:3], unet_shapes, seed + 2100))
    save("given_alpha", {f"base_model.model.{key.removeprefix('unet.')}": value for key, value in lora(attention, unet_shapes, RANK, seed + 2300, peft("unet")).items()})
    save("word", {"<mood>": normals((2, text_encoder.config.hidden_size), seed + 2500, 0.5)})
    saved(unet, seed + 2700, directory)
    lengths(unet, unet_shapes, attention, seed + 2900, save)


def with_alphas(pairs, alpha, dtype):
    alphas = {key.replace("lora_down.weight", "alpha"): alpha.clone() for key in pairs if key.endswith("lora_down.weight")}
    return {key: value.to(dtype) for key, value in pairs.items()} | alphas


def products(modules, of, seed):
    """LoHa, in LyCORIS's spelling."""
    tensors = {}
    for n, module in enumerate(modules):
        out, *rest = of[module]
        for side in (1, 2):
            name, at = f"lora_unet_{module.replace('.', '_')}.hada_w{side}", seed + 20 * n + 5 * side
            tensors[f"{name}_a"] = normals((out, 3), at, 0.5)
            tensors[f"{name}_b"] = normals((3, torch.Size(rest).numel()), at + 1, 0.4)
        tensors[f"lora_unet_{module.replace('.', '_')}.alpha"] = torch.tensor(2.0)
    return tensors


def saved(unet, seed, directory):
    """As `unet.save_lora_adapter` writes it: alpha in a header without a component's prefix."""
    unet.add_adapter(LoraConfig(r=RANK, lora_alpha=16, target_modules=["to_q", "to_v"]))
    for n, (name, parameter) in enumerate(sorted(unet.named_parameters())):
        if "lora_" in name:
            parameter.data = normals(parameter.shape, seed + n, 0.3 * (parameter.shape[1:].numel() or 1) ** -0.5)
    unet.save_lora_adapter(directory, weight_name="saved.safetensors")
    unet.delete_adapters("default")
    unet.unload_lora() if hasattr(unet, "unload_lora") else None


def lengths(unet, of, attention, seed, save):
    """DoRA, in PEFT's spelling."""
    chosen, weights = attention[:6], unet.state_dict()
    tensors = lora(chosen, of, 3, seed, peft("unet"))
    for n, module in enumerate(chosen):
        weight = next(weights[key] for key in (f"{module}.weight", f"{module}.base_layer.weight") if key in weights)
        tensors[f"unet.{module}.lora_magnitude_vector"] = weight.norm(dim=1) * (1 + normals(weight.shape[:1], seed + 50 + n, 0.2))
    save("dora", tensors)


def load(pipeline, adapters, directory):
    """Puts the job's adapters on: `adapters` are (file, scale) pairs. LoHa, which diffusers does not read, is added to the weights."""
    plain = []
    for file, scale in adapters:
        if file == "loha":
            add_products(pipeline.unet, load_file(directory / "loha.safetensors"), scale)
        elif file == "given_alpha":
            tensors = load_file(directory / "given_alpha.safetensors")
            alphas = {f"unet.{key.removeprefix('base_model.model.').replace('lora_A.weight', 'alpha')}": torch.tensor(3.0) for key in tensors if "lora_A" in key}
            add_pairs(pipeline.unet, {f"unet.{key.removeprefix('base_model.model.')}": value for key, value in tensors.items()} | alphas, scale)
        else:
            # A file of the UNet alone has no component in its keys, and is read by the UNet.
            if file == "saved":
                pipeline.unet.load_lora_adapter(directory, weight_name="saved.safetensors", prefix=None, adapter_name=file)
            else:
                pipeline.load_lora_weights(directory, weight_name=f"{file}.safetensors", adapter_name=file)
            plain.append((file, scale))
    if plain:
        pipeline.set_adapters([file for file, _ in plain], [scale for _, scale in plain])


def add_products(unet, tensors, scale):
    for name, module in unet.named_modules():
        key = f"lora_unet_{name.replace('.', '_')}"
        if f"{key}.hada_w1_a" in tensors:
            part = lambda suffix, key=key: tensors[f"{key}.hada_{suffix}"]  # noqa: E731
            change = (part("w1_a") @ part("w1_b")) * (part("w2_a") @ part("w2_b")) * (tensors[f"{key}.alpha"] / part("w1_b").shape[0])
            module.weight.data = module.weight.detach() + scale * change.reshape(module.weight.shape)


def add_pairs(unet, tensors, scale):
    for name, module in unet.named_modules():
        if f"unet.{name}.lora_A.weight" in tensors:
            down, up, alpha = (tensors[f"unet.{name}.{part}"] for part in ("lora_A.weight", "lora_B.weight", "alpha"))
            module.weight.data = module.weight.detach() + scale * (alpha / down.shape[0]) * (up @ down)
