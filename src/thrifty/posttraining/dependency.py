"""Which slices of which tensors must go together when a channel is removed.

The model is exported to ATen operators. Every dimension of every weight gets one label an index; a rule per operator
says which labels are the same channel (`Labels.join`) and which must stay (`Labels.freeze`). What no rule knows
freezes whatever reaches it, so the answer may leave out channels that could go but never allows one that cannot.

After "DepGraph: Towards Any Structural Pruning", Fang et al. 2023, arXiv:2301.12900, with labels of single indices in
place of layers: flattening, concatenation and broadcasting need no special case.
"""

from __future__ import annotations

import math
import operator
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from thrifty.errors import ThriftyError, told_once

Dims = list[np.ndarray]
"""A tensor's labels: one int64 array a dimension, as long as the dimension; FROZEN where nothing may go."""

FROZEN = 0


@final
@dataclass(frozen=True)
class Place:
    """A dimension of a named parameter or buffer."""

    tensor: str
    dim: int


@final
@dataclass(frozen=True)
class Group:
    """Channels that play the same part, so that any number of them can be removed.

    Args:
        members: {place: [channels, times] indices}: what one channel occupies of each dimension.
    """

    members: dict[Place, np.ndarray]

    @property
    def size(self) -> int:
        return len(next(iter(self.members.values())))


@final
@dataclass(frozen=True)
class Dependencies:
    """Args:
        groups: in the order of the model's parameters.
        reads: places that are summed over: zeros there make a channel unread.
        scales: parameters that scale a channel, such as batch norm's.
    """

    groups: tuple[Group, ...]
    reads: frozenset[Place]
    scales: frozenset[str]


def dependencies(model: nn.Module, example: tuple[Tensor, ...]) -> Dependencies:
    """Find the groups of channels that can be removed from a model.

    Args:
        model: in eval mode.
        example: inputs that it takes.

    Raises:
        ThriftyError: the model cannot be exported.

    >>> net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2)).eval()
    >>> [(group.size, sorted((p.tensor, p.dim) for p in group.members))
    ...  for group in dependencies(net, (torch.zeros(1, 4),)).groups]
    [(16, [('0.bias', 0), ('0.weight', 0), ('2.weight', 1)])]
    """
    try:
        with told_once():
            program = torch.export.export(model, example, strict=False)
    except Exception as error:
        raise ThriftyError(f"pruning follows channels through the exported model, and torch.export cannot export "
                           f"this one: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
                           ) from error
    tracer = _Tracer(model)
    tracer.run(program)
    return Dependencies(tracer.groups(), frozenset(tracer.reads), frozenset(tracer.scales))


class Labels:
    """Union-find over labels; FROZEN wins every union."""

    def __init__(self) -> None:
        self._parent = [FROZEN]

    def fresh(self, n: int) -> np.ndarray:
        start = len(self._parent)
        self._parent.extend(range(start, start + n))
        return np.arange(start, start + n)

    def find(self, label: int) -> int:
        parent = self._parent
        while parent[label] != label:
            parent[label] = parent[parent[label]]
            label = parent[label]
        return label

    def join(self, a: np.ndarray, b: np.ndarray) -> None:
        for x, y in zip(a.tolist(), b.tolist(), strict=True):
            low, high = sorted((self.find(x), self.find(y)))
            self._parent[high] = low

    def freeze(self, *many: np.ndarray) -> None:
        for labels in many:
            for label in labels.tolist():
                self._parent[self.find(label)] = FROZEN


def _data(shape: Sequence[int]) -> Dims:
    return [np.zeros(int(n), dtype=np.int64) for n in shape]


class _Tracer:
    """Follows labels through one exported graph."""

    def __init__(self, model: nn.Module) -> None:
        self.labels, self.reads, self.scales = Labels(), set[Place](), set[str]()
        canonical: dict[int, str] = {}
        self.names: dict[str, str] = {}  # tied parameters go by their first name
        self.tensors: dict[str, Dims] = {}
        for every in (model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)):
            for name, tensor in every:
                self.names[name] = canonical.setdefault(id(tensor), name)
                if self.names[name] == name:
                    self.tensors[name] = [self.labels.fresh(n) for n in tensor.shape]
        self.values: dict[Any, Any] = {}
        self.sources: dict[Any, str] = {}

    def run(self, program: torch.export.ExportedProgram) -> None:
        signature = program.graph_signature
        named = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        for node in program.graph.nodes:
            if node.op == "placeholder" and named.get(node.name) in self.names:
                self.sources[node] = self.names[named[node.name]]
                self.values[node] = self.tensors[self.sources[node]]
            elif node.op == "call_function":
                self.values[node] = self.call(node)
            elif node.op == "output":
                self.freeze_all(node)
            else:
                self.values[node] = _outputs(node)

    def call(self, node: Any) -> Any:
        if node.target is operator.getitem:
            return self.values[node.args[0]][node.args[1]]
        aten = getattr(node.target, "namespace", "") == "aten"
        rule = _RULES.get(node.target._opname) if aten else None
        if rule is None and torch.Tag.pointwise in getattr(node.target, "tags", ()):
            rule = _pointwise
        made = rule(self, node) if rule is not None else None
        if made is None:  # unknown, or a form that the rule does not know
            self.freeze_all(node)
            return _outputs(node)
        return made

    def freeze_all(self, node: Any) -> None:
        for source in node.all_input_nodes:
            for dims in _flat(self.values[source]):
                self.labels.freeze(*dims)

    def read(self, node: Any, dim: int) -> None:
        if node in self.sources:
            self.reads.add(Place(self.sources[node], dim))

    def groups(self) -> tuple[Group, ...]:
        """Classes of labels by what they occupy: those that occupy the same places, equally often, are a group."""
        occupied: dict[int, dict[Place, list[int]]] = defaultdict(lambda: defaultdict(list))
        for name, dims in self.tensors.items():
            for dim, labels in enumerate(dims):
                for index, label in enumerate(labels.tolist()):
                    root = self.labels.find(label)
                    if root != FROZEN:
                        occupied[root][Place(name, dim)].append(index)
        alike: dict[Any, list[dict[Place, list[int]]]] = defaultdict(list)
        for places in occupied.values():
            alike[tuple((place, len(indices)) for place, indices in places.items())].append(places)
        found = []
        for signature, channels in alike.items():
            members = [place for place, _ in signature]
            if self.reads.intersection(members):  # what nothing reads is beyond a check by masking
                found.append(Group({p: np.array([channel[p] for channel in channels]) for p in members}))
        return tuple(found)


def _outputs(node: Any) -> Any:
    value = node.meta.get("val")
    if isinstance(value, list | tuple):
        return [_data(v.shape) if isinstance(v, Tensor) else [] for v in value]
    return _data(value.shape) if isinstance(value, Tensor) else []


def _flat(value: Any) -> list[Dims]:
    return value if value and isinstance(value[0], list) else [value]


def _shape(node: Any) -> tuple[int, ...]:
    return tuple(int(n) for n in node.meta["val"].shape)


def _argument(node: Any, position: int, name: str, default: Any = None) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


# -- one rule an operator: labels of the outputs, or None where the operator is beyond the rule -------------------


def _pointwise(tracer: _Tracer, node: Any) -> Dims | None:
    shape, out = _shape(node), None
    for source in node.all_input_nodes:
        if not isinstance(source.meta.get("val"), Tensor):
            continue
        dims: Dims = tracer.values[source]
        aligned: list[Any] = [None] * (len(shape) - len(dims)) + list(dims)
        for d, labels in enumerate(aligned):
            if labels is not None and len(labels) != shape[d]:
                tracer.labels.freeze(labels)  # one value for the whole dimension
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
    return [labels if labels is not None else _data([n])[0] for labels, n in zip(out, shape, strict=True)]


def _linear(tracer: _Tracer, node: Any) -> Dims:
    x, weight = (tracer.values[a] for a in node.args[:2])
    bias = _argument(node, 2, "bias")
    tracer.labels.join(x[-1], weight[1])
    tracer.read(node.args[1], 1)
    if node.args[1] not in tracer.sources:
        tracer.labels.freeze(*weight)
    if bias is not None:
        tracer.labels.join(tracer.values[bias][0], weight[0])
    return [*x[:-1], weight[0]]


def _convolution(tracer: _Tracer, node: Any) -> Dims | None:
    x, weight = (tracer.values[a] for a in node.args[:2])
    bias, groups = _argument(node, 2, "bias"), _argument(node, 6, "groups", 1)
    if len(x) != len(weight) or node.args[1] not in tracer.sources:
        return None
    if groups == 1:
        tracer.labels.join(x[1], weight[1])
        tracer.read(node.args[1], 1)
    elif groups == len(x[1]) == len(weight[0]):  # depthwise: a channel passes through
        tracer.labels.join(x[1], weight[0])
        tracer.labels.freeze(weight[1])
    else:
        return None
    if bias is not None:
        tracer.labels.join(tracer.values[bias][0], weight[0])
    tracer.labels.freeze(*x[2:], *weight[2:])
    return [x[0], weight[0], *_data(_shape(node)[2:])]


def _batch_norm(tracer: _Tracer, node: Any) -> Dims:
    x = tracer.values[node.args[0]]
    for parameter in node.args[1:5]:
        if parameter is not None:
            tracer.labels.join(x[1], tracer.values[parameter][0])
    if node.args[1] in tracer.sources:
        tracer.scales.add(tracer.sources[node.args[1]])
    return list(x)


def _pool(tracer: _Tracer, node: Any) -> Dims | None:
    x, shape = tracer.values[node.args[0]], _shape(node)
    spatial = {"1": 1, "2": 2, "3": 3}[node.target._opname.removesuffix("d")[-1]]
    tracer.labels.freeze(*x[-spatial:])
    return [*x[:-spatial], *_data(shape[-spatial:])]


def _reduce(tracer: _Tracer, node: Any) -> Dims | None:
    x, over = tracer.values[node.args[0]], _argument(node, 1, "dim")
    if over is None or over == []:
        return None
    gone = {d % len(x) for d in (over if isinstance(over, list | tuple) else [over])}
    tracer.labels.freeze(*(x[d] for d in gone))
    keep = _argument(node, 2, "keepdim", False)
    return [_data([1])[0] if d in gone else labels for d, labels in enumerate(x) if keep or d not in gone]


def _same_but(position: int, name: str) -> Any:
    """The operator mixes the named dimensions (softmax) or all of the last ones (layer norm) and keeps the shape."""
    def rule(tracer: _Tracer, node: Any) -> Dims:
        x, over = tracer.values[node.args[0]], _argument(node, position, name)
        mixed = x[-len(over):] if isinstance(over, list | tuple) else [x[over]]
        tracer.labels.freeze(*mixed, *(d for s in node.all_input_nodes[1:] for d in tracer.values[s]))
        return list(x)

    return rule


def _reshape(tracer: _Tracer, node: Any) -> Dims:
    x, before, after = tracer.values[node.args[0]], _shape(node.args[0]), _shape(node)
    out = _data(after)
    taken: set[int] = set()
    for d, labels in enumerate(x):
        if not labels.any() or before[d] == 1:
            tracer.labels.freeze(labels)
            continue
        prefix = math.prod(before[:d])
        place = next((e for e in range(len(after))
                      if math.prod(after[:e]) == prefix and after[e] % before[d] == 0), None)
        times = after[place] // before[d] if place is not None else 0
        end = d + 1
        while place is not None and end < len(before) and math.prod(before[d + 1:end]) < times:
            end += 1
        if place is None or place in taken or math.prod(before[d + 1:end]) != times:
            tracer.labels.freeze(labels)  # split, or merged where channels are not the slowest
            continue
        taken.add(place)
        tracer.labels.freeze(*x[d + 1:end])
        out[place] = np.repeat(labels, times)
    return out


def _permute(tracer: _Tracer, node: Any) -> Dims:
    x = tracer.values[node.args[0]]
    order = list(range(len(x)))
    if node.target._opname == "permute":
        order = [d % len(x) for d in node.args[1]]
    else:
        a, b = (node.args[1], node.args[2]) if len(node.args) > 1 else (0, 1)
        order[a], order[b] = order[b], order[a]
    return [x[d] for d in order]


def _cut(tracer: _Tracer, node: Any) -> Dims:
    """Dimensions that keep their length pass; others are cut, padded or expanded, and stay as they are."""
    x, shape = tracer.values[node.args[0]], _shape(node)
    x = [*_data(shape[: len(shape) - len(x)]), *x]
    tracer.labels.freeze(*(labels for labels, n in zip(x, shape, strict=True) if len(labels) != n))
    return [labels if len(labels) == n else _data([n])[0] for labels, n in zip(x, shape, strict=True)]


def _select(tracer: _Tracer, node: Any) -> Dims:
    x = list(tracer.values[node.args[0]])
    tracer.labels.freeze(x.pop(_argument(node, 1, "dim", 0)))
    return x


def _cat(tracer: _Tracer, node: Any) -> Dims:
    parts = [tracer.values[part] for part in node.args[0]]
    along = _argument(node, 1, "dim", 0) % len(parts[0])
    for part in parts[1:]:
        for d in range(len(part)):
            if d != along:
                tracer.labels.join(parts[0][d], part[d])
    return [np.concatenate([part[d] for part in parts]) if d == along else parts[0][d] for d in range(len(parts[0]))]


def _embedding(tracer: _Tracer, node: Any) -> Dims:
    weight, ids = (tracer.values[a] for a in node.args[:2])
    tracer.labels.freeze(weight[0])
    return [*ids, weight[1]]


_RULES: dict[str, Any] = {
    "linear": _linear, "batch_norm": _batch_norm, "embedding": _embedding, "cat": _cat, "select": _select,
    "layer_norm": _same_but(1, "normalized_shape"), "rms_norm": _same_but(1, "normalized_shape"),
    "softmax": _same_but(1, "dim"), "_softmax": _same_but(1, "dim"), "log_softmax": _same_but(1, "dim"),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), _convolution),
    **dict.fromkeys((f"{kind}_pool{n}d" for kind in ("max", "avg", "adaptive_avg") for n in (1, 2, 3)), _pool),
    **dict.fromkeys(("mean", "sum", "amax", "amin"), _reduce),
    **dict.fromkeys(("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "_unsafe_view"), _reshape),
    **dict.fromkeys(("permute", "transpose", "t", "numpy_T"), _permute),
    **dict.fromkeys(("slice", "pad", "constant_pad_nd", "expand"), _cut),
    **dict.fromkeys(("dropout", "dropout_", "feature_dropout", "contiguous", "clone", "to", "_to_copy", "type_as",
                     "detach", "detach_", "alias", "float", "add", "add_", "mul", "mul_", "relu", "relu_", "relu6",
                     "gelu", "silu", "silu_", "hardswish", "hardswish_", "hardtanh_", "leaky_relu_"), _pointwise),
}
