"""How channels pass operators: one rule an operator."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from thrifty.posttraining.pruning.labels import Dims, data
from thrifty.posttraining.pruning.reshaping import reshaped
from thrifty.posttraining.pruning.tracing import Rule, Tracer, data_of

ONE_VALUE = "one value stands for all of them"


def _shape(node: Any) -> tuple[int, ...]:
    return tuple(int(n) for n in node.meta["val"].shape)


def _argument(node: Any, position: int, name: str, default: Any = None) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


# -- one rule an operator: labels of the outputs, or None where the operator is beyond the rule -------------------


def pointwise(tracer: Tracer, node: Any) -> Dims | None:
    shape, out = _shape(node), None
    for source in node.all_input_nodes:
        if not isinstance(source.meta.get("val"), Tensor):
            continue
        dims: Dims = tracer.values[source]
        aligned: list[Any] = [None] * (len(shape) - len(dims)) + list(dims)
        for d, labels in enumerate(aligned):
            if labels is not None and len(labels) != shape[d]:
                tracer.labels.freeze(ONE_VALUE, labels)
                aligned[d] = None
        if out is None:
            out = aligned
            continue
        for d, labels in enumerate(aligned):
            if out[d] is not None and labels is not None:
                tracer.labels.join(out[d], labels)
            elif labels is not None:
                out[d] = labels
    if out is None:
        return None
    return [labels if labels is not None else data(n) for labels, n in zip(out, shape, strict=True)]


def _same(tracer: Tracer, node: Any) -> Dims | None:
    """The same numbers: of a weight it is still that weight."""
    source = node.args[0]
    if source in tracer.origins:
        tracer.origins[node] = tracer.origins[source]
    return pointwise(tracer, node)


def _linear(tracer: Tracer, node: Any) -> Dims | None:
    x, weight = (tracer.values[a] for a in node.args[:2])
    bias = _argument(node, 2, "bias")
    if not tracer.read(node.args[1], 1):
        tracer.labels.freeze("it multiplies a weight that is computed", *weight, x[-1])
    tracer.labels.join(x[-1], weight[1])
    if bias is not None:
        tracer.labels.join(tracer.values[bias][0], weight[0])
    tracer.products.append((1.0, [*x[:-1], *weight]))
    return [*x[:-1], weight[0]]


def _product(first: int) -> Callable[[Tracer, Any], Dims | None]:
    """x @ y over the last two dimensions; ``first`` is x's position among the arguments, a bias before it."""
    def rule(tracer: Tracer, node: Any) -> Dims | None:
        a, b = node.args[first], node.args[first + 1]
        x, y = tracer.values[a], tracer.values[b]
        if len(x) < 2 or len(y) < 2:
            return None
        read = tracer.read(b, -2) or tracer.read(a, -1)
        tracer.labels.join(x[-1], y[-2])
        if not read:  # of two computed values: what is removed of one was never masked in the other
            tracer.labels.freeze("two computed values are multiplied", x[-1], y[-1])
        shape = _shape(node)
        batch = [data(n) for n in shape[:-2]]
        for dims in (x[:-2], y[:-2]):
            for d, labels in enumerate(dims, start=len(batch) - len(dims)):
                if len(labels) != shape[d]:
                    tracer.labels.freeze(ONE_VALUE, labels)
                elif batch[d].any() and labels.any():
                    tracer.labels.join(batch[d], labels)
                elif labels.any():
                    batch[d] = labels
        if first:
            bias = tracer.values[node.args[0]]
            if len(bias) != 1:
                return None
            tracer.labels.join(bias[0], y[-1])
        tracer.products.append((1.0, [*batch, x[-2], x[-1], y[-1]]))
        return [*batch, x[-2], y[-1]]

    return rule


def _grouped_product(tracer: Tracer, node: Any) -> Dims:
    """Rows [tokens, in] by the matrices [experts, in, out] of their experts."""
    x, weight = (tracer.values[a] for a in node.args[:2])
    tracer.read(node.args[1], 1)
    tracer.labels.join(x[1], weight[1])
    tracer.labels.freeze("a router chooses among them", weight[0])
    tracer.products.append((1.0, [x[0], weight[1], weight[2]]))
    return [x[0], weight[2]]


def _attention(tracer: Tracer, node: Any) -> Dims | None:
    query, key, value = (tracer.values[a] for a in node.args[:3])
    if len(query) < 3 or len(query) != len(key):
        return None
    tracer.labels.freeze("it is the size of an attention head", query[-1], key[-1], value[-1])
    batch = list(query[:-2])
    for dims in (key[:-2], value[:-2]):
        for d, labels in enumerate(dims):
            if len(batch[d]) == len(labels):
                tracer.labels.join(batch[d], labels)
            elif labels.any() and len(batch[d]) % len(labels) == 0:  # grouped queries
                tracer.labels.join(batch[d], np.repeat(labels, len(batch[d]) // len(labels)))
            else:
                tracer.labels.freeze(ONE_VALUE, labels, batch[d])
    if (mask := _argument(node, 3, "attn_mask")) is not None:
        for d, labels in enumerate(tracer.values[mask]):
            if labels.any() and len(labels) > 1:
                tracer.labels.freeze("an attention mask depends on it", labels, query[d])
    tracer.products += [(float(len(query[-1])), [*batch, query[-2], key[-2]]), (1.0, [*batch, query[-2], key[-2], value[-1]])]
    return [*batch, query[-2], value[-1]]


def _convolution(tracer: Tracer, node: Any) -> Dims | None:
    x, weight = (tracer.values[a] for a in node.args[:2])
    bias, groups, shape = _argument(node, 2, "bias"), _argument(node, 6, "groups", 1), _shape(node)
    if len(x) != len(weight) or node.args[1] not in tracer.origins:
        return None
    if groups == 1:
        tracer.labels.join(x[1], weight[1])
        tracer.read(node.args[1], 1)
    else:  # a group of channels is one: depthwise, a channel passes through
        each_in, each_out = len(x[1]) // groups, len(weight[0]) // groups
        first = weight[0][::each_out]
        tracer.labels.join(np.repeat(first, each_out), weight[0])
        tracer.labels.join(np.repeat(first, each_in), x[1])
        tracer.labels.freeze("each group of the convolution reads all of it", weight[1])
        if each_in > 1:
            tracer.read(node.args[1], 0)
    if bias is not None:
        tracer.labels.join(tracer.values[bias][0], weight[0])
    return _convolved(tracer, x, weight, weight[0], shape)


def _transposed(tracer: Tracer, node: Any) -> Dims | None:
    x, weight = (tracer.values[a] for a in node.args[:2])
    bias, groups, shape = _argument(node, 2, "bias"), _argument(node, 6, "groups", 1), _shape(node)
    if len(x) != len(weight) or node.args[1] not in tracer.origins or groups != 1:
        return None
    tracer.labels.join(x[1], weight[0])
    tracer.read(node.args[1], 0)
    if bias is not None:
        tracer.labels.join(tracer.values[bias][0], weight[1])
    return _convolved(tracer, x, weight, weight[1], shape)


def _convolved(tracer: Tracer, x: Dims, weight: Dims, out: np.ndarray, shape: tuple[int, ...]) -> Dims:
    tracer.labels.freeze("it is an extent in space", *x[2:], *weight[2:])
    steps = min(math.prod(shape[2:]), math.prod(map(len, x[2:]))) if len(weight[0]) != len(out) else math.prod(shape[2:])
    tracer.products.append((float(steps * math.prod(map(len, weight[2:]))), [x[0], weight[0], weight[1]]))
    return [x[0], out, *data_of(shape[2:])]


def _batch_norm(tracer: Tracer, node: Any) -> Dims:
    x = tracer.values[node.args[0]]
    for parameter in node.args[1:5]:
        if parameter is not None:
            tracer.labels.join(x[1], tracer.values[parameter][0])
    if (weight := tracer.origin(node.args[1], 0) if node.args[1] is not None else None) is not None:
        tracer.scales.add(weight[0])
    return list(x)


def _pool(tracer: Tracer, node: Any) -> Dims | None:
    x, shape = tracer.values[node.args[0]], _shape(node)
    spatial = {"1": 1, "2": 2, "3": 3}[node.target._opname.removesuffix("d")[-1]]
    tracer.labels.freeze("it is an extent in space", *x[-spatial:])
    return [*x[:-spatial], *data_of(shape[-spatial:])]


def _reduce(tracer: Tracer, node: Any) -> Dims | None:
    x, over = tracer.values[node.args[0]], _argument(node, 1, "dim")
    if over is None or over == []:
        return None
    gone = {d % len(x) for d in (over if isinstance(over, list | tuple) else [over])}
    if node.target._opname in ("mean", "var"):  # root mean squares are written so
        tracer.labels.tag("normed", np.concatenate([x[d] for d in gone]))
    else:
        tracer.labels.freeze(f"{node.target._opname} runs over it", *(x[d] for d in gone))
    keep = _argument(node, 2, "keepdim", False)
    return [data(1) if d in gone else labels for d, labels in enumerate(x) if keep or d not in gone]


def _norm(tracer: Tracer, node: Any) -> Dims:
    """Layer norm and RMS norm: over one dimension, channels may go, and the statistics are of those that stay."""
    x, over = tracer.values[node.args[0]], _argument(node, 1, "normalized_shape")
    own = [tracer.values[source] for source in node.all_input_nodes[1:]]
    if len(over) > 1:
        tracer.labels.freeze("a norm runs over it with other dimensions", *x[-len(over):], *(d for dims in own for d in dims))
        return list(x)
    tracer.labels.tag("normed", x[-1])
    for dims in own:
        tracer.labels.join(x[-1], dims[0])
    if (weight := _argument(node, 2, "weight")) is not None and (found := tracer.origin(weight, 0)) is not None:
        tracer.norms.add(found[0])
    return list(x)


def _softmax(tracer: Tracer, node: Any) -> Dims:
    x = tracer.values[node.args[0]]
    tracer.labels.freeze("a softmax runs over it", x[_argument(node, 1, "dim")])
    return list(x)


def _reshape(tracer: Tracer, node: Any) -> Dims:
    return reshaped(tracer.labels, tracer.values[node.args[0]], _shape(node))


def _permute(tracer: Tracer, node: Any) -> Dims:
    x = tracer.values[node.args[0]]
    order = list(range(len(x)))
    if node.target._opname == "permute":
        order = [d % len(x) for d in node.args[1]]
    elif len(x) > 1:
        a, b = (node.args[1], node.args[2]) if len(node.args) > 1 else (0, 1)
        order[a], order[b] = order[b], order[a]
    if node.args[0] in tracer.origins:
        name, dims = tracer.origins[node.args[0]]
        tracer.origins[node] = (name, [dims[d] for d in order])
    return [x[d] for d in order]


def _cut(tracer: Tracer, node: Any) -> Dims:
    """Dimensions that keep their length pass; others are cut, padded or expanded, and stay as they are."""
    x, shape = tracer.values[node.args[0]], _shape(node)
    x = [*data_of(shape[: len(shape) - len(x)]), *x]
    tracer.labels.freeze(f"{node.target._opname} changes its length", *(
        labels for labels, n in zip(x, shape, strict=True) if len(labels) != n))
    return [labels if len(labels) == n else data(n) for labels, n in zip(x, shape, strict=True)]


def _split(tracer: Tracer, node: Any) -> list[Dims]:
    """Equal parts lose the same channels, so that they stay equal; unequal ones lose what they lose."""
    x = tracer.values[node.args[0]]
    shapes = [tuple(map(int, v.shape)) for v in node.meta["val"]]
    along = next((d for d in range(len(x)) if any(shape[d] != len(x[d]) for shape in shapes)), 0)
    sizes = [shape[along] for shape in shapes]
    parts = np.split(x[along], np.cumsum(sizes)[:-1])
    if len(set(sizes)) == 1:
        for part in parts[1:]:
            tracer.labels.join(parts[0], part)
    return [[*x[:along], part, *x[along + 1:]] for part in parts]


def _unbind(tracer: Tracer, node: Any) -> list[Dims]:
    x = list(tracer.values[node.args[0]])
    gone = x.pop(_argument(node, 1, "dim", 0))
    tracer.labels.freeze("its indices are taken apart", gone)
    return [list(x) for _ in gone]


def _select(tracer: Tracer, node: Any) -> Dims:
    x = list(tracer.values[node.args[0]])
    tracer.labels.freeze("one of its indices is picked", x.pop(_argument(node, 1, "dim", 0)))
    return x


def _index(tracer: Tracer, node: Any) -> Dims | None:
    """x[indices]: along the first dimension alone, as experts are picked."""
    source, indices = node.args[:2]
    x = tracer.values[source]
    if len(indices) != 1 or indices[0] is None:
        return None
    picked = tracer.values[indices[0]]
    tracer.labels.freeze("a router chooses among them", x[0], *picked)
    if source in tracer.origins:
        name, dims = tracer.origins[source]
        tracer.origins[node] = (name, [-1] * len(picked) + dims[1:])
    return [*data_of([len(d) for d in picked]), *x[1:]]


def _repeat(tracer: Tracer, node: Any) -> Dims | None:
    x, times, along = list(tracer.values[node.args[0]]), node.args[1], _argument(node, 2, "dim")
    if along is None or not isinstance(times, int):
        return None
    x[along] = np.repeat(x[along], times)
    return x


def _cat(tracer: Tracer, node: Any) -> Dims:
    parts = [tracer.values[part] for part in node.args[0]]
    along = _argument(node, 1, "dim", 0) % len(parts[0])
    for part in parts[1:]:
        for d in range(len(part)):
            if d != along:
                tracer.labels.join(parts[0][d], part[d])
    return [np.concatenate([part[d] for part in parts]) if d == along else parts[0][d] for d in range(len(parts[0]))]


def _embedding(tracer: Tracer, node: Any) -> Dims:
    weight, ids = (tracer.values[a] for a in node.args[:2])
    tracer.labels.freeze("it is the vocabulary", weight[0])
    return [*ids, weight[1]]


RULES: dict[str, Rule] = {
    "linear": _linear, "matmul": _product(0), "mm": _product(0), "bmm": _product(0), "addmm": _product(1),
    "grouped_mm_fallback": _grouped_product, "_grouped_mm": _grouped_product,
    "scaled_dot_product_attention": _attention,
    "batch_norm": _batch_norm, "embedding": _embedding, "cat": _cat, "select": _select, "index": _index,
    "repeat_interleave": _repeat, "unbind": _unbind, "layer_norm": _norm, "rms_norm": _norm,
    **dict.fromkeys(("softmax", "_softmax", "log_softmax"), _softmax),
    **dict.fromkeys(("split", "chunk", "split_with_sizes"), _split),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _convolution),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), _transposed),
    **dict.fromkeys((f"{kind}_pool{n}d" for kind in ("max", "avg", "adaptive_avg") for n in (1, 2, 3)), _pool),
    **dict.fromkeys(("upsample_nearest2d", "upsample_bilinear2d"), lambda tracer, node: _cut(tracer, node)),
    **dict.fromkeys(("mean", "var", "sum", "amax", "amin"), _reduce),
    **dict.fromkeys(("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "_unsafe_view"), _reshape),
    **dict.fromkeys(("permute", "transpose", "t", "numpy_T"), _permute),
    **dict.fromkeys(("slice", "pad", "constant_pad_nd", "expand"), _cut),
    **dict.fromkeys(("contiguous", "clone", "to", "_to_copy", "type_as", "detach", "detach_", "alias", "float"), _same),
    **dict.fromkeys(("dropout", "dropout_", "feature_dropout", "add", "add_", "mul", "mul_", "relu", "relu_", "relu6",
                     "gelu", "silu", "silu_", "hardswish", "hardswish_", "hardsigmoid", "hardtanh_", "leaky_relu_"),
                    pointwise),
}
