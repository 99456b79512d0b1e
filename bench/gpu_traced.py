"""What a denoising step of diffusers asks of a GPU at least, from its traced operations: the peer of bench/gpu-counts in bench/gpu_roofline.py.

    python bench/gpu_traced.py [--write]                       needs torch, diffusers

Nothing is computed: the models stand on torch's meta device. *Eager*: each operator that makes or changes a tensor is one operation, which reads its inputs and
writes its outputs once; a convolution's bias is another, as ATen adds it behind cuDNN (aten/src/ATen/native/Convolution.cpp). *Compiled*: products, convolutions and
attention stay alone, and whatever lies between them, as far as it is connected, is one kernel, which reads what comes from outside and writes what is read
outside; nothing is computed behind a product but its bias (max-autotune may do more there). Attention is one kernel, which keeps no scores, in both. Weights and activations are in f16, try-ons in bf16; a step of
Stable Diffusion is guided, at 512x512; a look of Qwen-Image-Edit is that at 1024x1024 with one reference, and as many tokens of text as bench/gpu-counts has. Prints a table beside results/gpu-traced.json,
which --write replaces; fails where they differ.
"""

import collections
import json
import math
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import QwenImageTransformer2DModel, UNet2DConditionModel
from torch.fx.experimental.proxy_tensor import make_fx

RESULTS = Path(__file__).parent / "results/gpu-traced.json"
BLOCKS = 60
TEXT_TOKENS = 90
aten = torch.ops.aten


@torch.library.custom_op("bench::attention", mutates_args=())
def attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    raise NotImplementedError("nothing is computed")


@attention.register_fake
def _(query, key, value):
    return torch.empty_like(query)


def attend(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    assert not (dropout_p or is_causal or enable_gqa)
    return attention(query, key, value)


def multiplications(node, outputs):
    """Of a product, a convolution or attention; none of what goes by its bytes alone."""
    shapes = [tensor.shape for tensor in tensors(node.args)]
    if node.target in (aten.mm.default, aten.bmm.default, aten.addmm.default):
        first = shapes[1] if node.target is aten.addmm.default else shapes[0]
        return math.prod(outputs[0].shape) * first[-1]
    if node.target is aten.convolution.default:
        return math.prod(outputs[0].shape) * math.prod(shapes[1][1:])
    if node.target is torch.ops.bench.attention.default:
        return 2 * math.prod(shapes[0]) * shapes[1][-2]
    return None


def tensors(values):
    """Those among arguments or results."""
    if isinstance(values, torch.fx.Node):
        values = values.meta.get("val")
    if isinstance(values, torch.Tensor):
        return [values]
    if isinstance(values, (list, tuple)):
        return [tensor for value in values for tensor in tensors(value)]
    return []


def size(tensor):
    """In bytes; what was broadcast is read once."""
    return math.prod(side for side, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride) * tensor.element_size()


def is_view(node):
    """Whether it makes no tensor of its own. `_unsafe_view` makes none, but its schema does not say so; neither has `getitem` one."""
    schema = getattr(node.target, "_schema", None)
    if schema is None or node.target is aten._unsafe_view.default:
        return True
    aliased = [returned.alias_info for returned in schema.returns]
    return bool(aliased) and all(alias is not None and not alias.is_write for alias in aliased)


def traced(module, *inputs):
    """The operators of one forward pass, in their order; views are left out. With each the nodes that it reads, and the operator that made what each of them
    shows; none where that is an input or a weight."""
    plain, F.scaled_dot_product_attention = F.scaled_dot_product_attention, attend
    try:
        with torch.no_grad():
            graph = make_fx(module, tracing_mode="real")(*inputs).graph
    finally:
        F.scaled_dot_product_attention = plain
    graph.eliminate_dead_code()
    operators, source = [], {}
    for node in graph.nodes:
        if node.op != "call_function" or is_view(node):
            source[node] = next((source.get(read) for read in node.all_input_nodes), None) if node.op == "call_function" else None
            continue
        source[node] = node
        operators.append((node, {read: source.get(read) for read in node.all_input_nodes}))
    return operators


def kind_of(node):
    name = node.target._schema.name.split("::")[1]
    return "conv" if name == "convolution" else name


def eager(operators):
    kinds = collections.defaultdict(lambda: {"operations": 0, "bytes": 0, "flops": 0})
    for node, _ in operators:
        outputs, kind = tensors(node), kinds[kind_of(node)]
        read = tensors(node.args)
        products = multiplications(node, outputs)
        if node.target is aten.convolution.default and node.args[2] is not None:
            bias = read.pop(2)
            added = kinds["add_ of a convolution's bias"]
            added["operations"] += 1
            added["bytes"] += 2 * size(outputs[0]) + size(bias)
        kind["operations"] += 1
        kind["bytes"] += sum(map(size, read + outputs))
        kind["flops"] += 2 * (products or 0)
    return dict(kinds)


def compiled(operators):
    """An operator's level is how many products lie before it at most: those of one level that are connected have none between them."""
    kinds = collections.defaultdict(lambda: {"operations": 0, "bytes": 0, "flops": 0})
    level, group = {}, {}
    alone = {node for node, _ in operators if multiplications(node, tensors(node)) is not None}

    def root(node):
        while group[node] is not node:
            node = group[node]
        return node

    for node, reads in operators:
        sources = set(reads.values()) - {None}
        level[node] = max((level[source] + (source in alone) for source in sources), default=0)
        group[node] = node
        if node not in alone:
            for source in sources - alone:
                if level[source] == level[node]:
                    group[root(source)] = node
    moved = collections.defaultdict(lambda: ({}, {}))
    readers = collections.defaultdict(set)
    for node, reads in operators:
        for source in set(reads.values()) - {None}:
            readers[source].add(node)
    for node, reads in operators:
        inputs, outputs = moved[root(node)]
        # A convolution's bias is added by what follows, a product's by the product.
        bias = node.args[2] if node.target is aten.convolution.default else None
        for read, owner in reads.items():
            stays = owner is not None and owner not in alone and node not in alone and root(owner) is root(node)
            if read is not bias and not stays:
                inputs[read if owner is None else owner] = sum(map(size, tensors(read)))
        if node in alone or not readers[node] or any(root(reader) is not root(node) or reader in alone for reader in readers[node]):
            outputs[node] = sum(map(size, tensors(node)[:1]))
    for node, (inputs, outputs) in moved.items():
        kind = kinds[kind_of(node) if node in alone else "fused"]
        kind["operations"] += 1
        kind["bytes"] += sum(inputs.values()) + sum(outputs.values())
        if node in alone:
            kind["flops"] += 2 * multiplications(node, tensors(node))
    return dict(kinds)


def meta(*shape, dtype):
    return torch.empty(*shape, dtype=dtype, device="meta")


def stable_diffusion():
    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8).half().eval()
    look = lambda latents, time, text: unet(latents, time, text, return_dict=False)[0]
    return traced(look, meta(2, 4, 64, 64, dtype=torch.half), meta(2, dtype=torch.half), meta(2, 77, 768, dtype=torch.half))


def qwen(blocks):
    with torch.device("meta"):
        transformer = QwenImageTransformer2DModel(num_layers=blocks).to(torch.bfloat16).eval()
    sides = [[(1, 64, 64), (1, 64, 64)]]
    # Angles are kept where the module was made; what they are changes no count.
    tokens = 2 * 64 * 64

    def look(hidden, states, mask, time):
        return transformer(hidden, encoder_hidden_states=states, encoder_hidden_states_mask=mask, timestep=time, img_shapes=sides, return_dict=False)[0]

    b = torch.bfloat16
    return traced(look, meta(1, tokens, 64, dtype=b), meta(1, TEXT_TOKENS, 3584, dtype=b), meta(1, TEXT_TOKENS, dtype=torch.bool), meta(1, dtype=b))


def extended(one, two):
    return {name: {what: one.get(name, {}).get(what, 0) + (BLOCKS - 1) * (count - one.get(name, {}).get(what, 0)) for what, count in kind.items()} for name, kind in two.items()}


def main():
    step, (one, two) = stable_diffusion(), (qwen(blocks) for blocks in (1, 2))
    found = {}
    for way, count in (("eager", eager), ("torch.compile", compiled)):
        found[f"Stable Diffusion 1.5 at 512x512, diffusers, {way}"] = count(step)
        found[f"Qwen-Image-Edit at 1024x1024, diffusers, {way}"] = extended(count(one), count(two))
    for title, kinds in found.items():
        operations, moved, flops = (sum(kind[what] for kind in kinds.values()) for what in ("operations", "bytes", "flops"))
        print(f"a step of {title}: {operations} operations, {moved / 1e9:.2f} GB, {flops / 1e9:.0f} GFLOP")
        for name, kind in sorted(kinds.items(), key=lambda item: -item[1]["bytes"]):
            print(f"  {name:42} {kind['operations']:9} {kind['bytes'] / 1e6:10.1f} MB")
    kept = {title: {"kinds": kinds} for title, kinds in found.items()}
    if "--write" in sys.argv:
        RESULTS.write_text(json.dumps(kept, indent=2) + "\n")
    elif json.loads(RESULTS.read_text()) != kept:
        sys.exit("results/gpu-traced.json has other counts: another diffusers or torch? Find out why, or python bench/gpu_traced.py --write")


if __name__ == "__main__":
    main()
