"""Which slices of which weights must be removed together: the dependency graph of a model's channels.

Every element of every activation carries a *label*, the channel that it belongs to. The labels run through the
exported graph: shape operators act on them as on the values, sums and products of two activations join the labels of
matching elements, a layer that mixes channels gives its outputs new ones. A label that meets an operator that is not
known here, the model's input or its output is joined to `FROZEN`: unknown operators cost pruning opportunities, never
correctness.

The idea of coupling layers by a dependency graph: "DepGraph", Fang et al. 2023, arXiv:2301.12900.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Node

from thrifty.compilers.capture import capture

FROZEN = 0
"""The label of what is never removed."""

aten = torch.ops.aten


@final
@dataclass(frozen=True)
class Slice:
    """Index ``index`` of dimension ``dim`` of the parameter or buffer ``name``."""

    name: str
    dim: int
    index: int


@final
@dataclass(frozen=True)
class Group:
    """The channels of coupled layers: channel i is the slices ``channels[i]``, removed together or not at all.

    Args:
        layers: names of the weights whose outputs these channels are.
        channels: [n] tuples of slices.
    """

    layers: tuple[str, ...]
    channels: tuple[tuple[Slice, ...], ...]


def groups(model: nn.Module, example: tuple[Tensor, ...]) -> tuple[Group, ...]:
    """The groups of channels that can be removed from a model.

    Args:
        model: any nn.Module that torch.export takes.
        example: one request.

    Raises:
        LoweringError: the model cannot be exported.

    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> [(group.layers, len(group.channels)) for group in groups(net, (torch.zeros(1, 4),))]
    [(('0.weight',), 8)]
    """
    return _Labels(capture(model, example, {})).groups()


class _Labels:
    """Labels of one exported program."""

    def __init__(self, program: ExportedProgram) -> None:
        signature = program.graph_signature
        self.weights: dict[str, str] = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        self.parent = [FROZEN]
        self.of: dict[tuple[str, int], Tensor] = {}
        """(weight, dimension) -> label of each index."""
        self.producers: list[str] = []
        self.values: dict[Node, Any] = {}
        for node in program.graph.nodes:
            self.values[node] = self.visit(node)

    # -- joining ------------------------------------------------------------------------------------------------

    def fresh(self, n: int) -> Tensor:
        start = len(self.parent)
        self.parent.extend(range(start, start + n))
        return torch.arange(start, start + n)

    def root(self, label: int) -> int:
        while self.parent[label] != label:
            self.parent[label] = self.parent[self.parent[label]]
            label = self.parent[label]
        return label

    def join(self, a: Tensor, b: Tensor) -> None:
        a, b = torch.broadcast_tensors(a, b)
        for x, y in torch.unique(torch.stack([a.flatten(), b.flatten()], 1), dim=0).tolist():
            x, y = sorted((self.root(x), self.root(y)))
            self.parent[y] = x  # the smaller is the root, so that FROZEN stays one

    def freeze(self, *labels: Any) -> None:
        for label in labels:
            if isinstance(label, Tensor):
                self.join(torch.unique(label), torch.tensor(FROZEN))

    def tie(self, name: str, dim: int, labels: Tensor) -> None:
        """Index i of a weight's dimension belongs to the channel labels[i]."""
        if (name, dim) in self.of:
            self.join(self.of[name, dim], labels)
        else:
            self.of[name, dim] = labels

    # -- the graph ----------------------------------------------------------------------------------------------

    def visit(self, node: Node) -> Any:
        if node.op == "output":
            self.freeze(*[self.values[n] for n in node.all_input_nodes])
            return None
        if node.op != "call_function":
            return None if node.name in self.weights else self.frozen(node)
        handler = _HANDLERS.get(_name(node.target), _Labels.unknown)
        try:
            return handler(self, node)
        except _Mixed:
            return self.unknown(node)

    def value(self, argument: Any) -> Any:
        """Labels of an argument; lists are mapped, what is no activation is itself."""
        if isinstance(argument, Node):
            return self.values[argument]
        return [self.value(x) for x in argument] if isinstance(argument, list | tuple) else argument

    def weight(self, argument: Any) -> str | None:
        return self.weights.get(argument.name) if isinstance(argument, Node) else None

    def frozen(self, node: Node) -> Any:
        value = node.meta.get("val")
        if isinstance(value, Tensor):
            return torch.full(tuple(int(n) for n in value.shape), FROZEN)
        if isinstance(value, list | tuple):
            return [torch.full(tuple(int(n) for n in v.shape), FROZEN) if isinstance(v, Tensor) else None for v in value]
        return None

    def unknown(self, node: Node) -> Any:
        """Freeze whatever goes in: weights that it reads too."""
        for argument in node.all_input_nodes:
            self.freeze(self.values[argument])
            name = self.weight(argument)
            for dim in range(argument.meta["val"].ndim if name is not None else 0):
                assert name is not None
                self.tie(name, dim, torch.full((argument.meta["val"].shape[dim],), FROZEN))
        return self.frozen(node)

    def elementwise(self, node: Node) -> Any:
        """Join the labels of matching elements; a weight of one long dimension follows its operand."""
        operands = [a for a in node.args if isinstance(a, Node) and a.meta["val"].ndim > 0]
        shape = tuple(node.meta["val"].shape)
        labels = [self.values[a] for a in operands if self.weight(a) is None]
        if not labels:
            raise _Mixed
        result = labels[0].expand(shape) if labels[0].numel() <= torch.Size(shape).numel() else labels[0]
        for other in labels[1:]:
            self.join(result, other.expand(shape))
        for argument in operands:
            name = self.weight(argument)
            if name is not None:
                self.follow(name, argument.meta["val"].shape, result)
        return result

    def follow(self, name: str, shape: Sequence[int], result: Tensor) -> None:
        """A weight added or multiplied element by element: its one long dimension belongs to the channels."""
        long = [d for d, n in enumerate(shape) if n > 1]
        if not long:
            return
        if len(long) > 1:
            self.freeze(result)
            raise _Mixed
        at = result.ndim - len(shape) + long[0]
        self.tie(name, long[0], _along(result, at))

    def shape_operator(self, node: Node) -> Any:
        assert callable(node.target)
        kwargs = {k: v for k, v in node.kwargs.items() if k in ("dim", "dims", "start_dim", "end_dim")}
        return node.target(*self.value(list(node.args)), **kwargs)

    def item(self, node: Node) -> Any:
        return self.values[node.args[0]][node.args[1]]  # type: ignore[index]

    def linear(self, node: Node) -> Any:
        x, weight, *bias = node.args
        self.tie(self.required(weight), 1, _along(self.value(x), -1))
        return self.produce(weight, bias, node, -1)

    def convolution(self, node: Node) -> Any:
        x, weight, *rest = node.args
        spatial = len(node.meta["val"].shape) - 2
        convolution_groups = rest[4] if len(rest) > 4 else 1
        channels = _along(self.value(x), 1)
        name = self.required(weight)
        out, per_group = weight.meta["val"].shape[:2]  # type: ignore[union-attr]
        if convolution_groups == 1:
            self.tie(name, 1, channels)
            return self.produce(weight, rest[:1], node, 1)
        if convolution_groups != len(channels) or out != len(channels) or per_group != 1:
            raise _Mixed
        self.tie(name, 0, channels)  # depthwise: channel i makes channel i
        if rest and rest[0] is not None:
            self.tie(self.required(rest[0]), 0, channels)
        return channels.view(1, -1, *[1] * spatial).expand(node.meta["val"].shape)

    def produce(self, weight: Any, bias: Any, node: Node, at: int) -> Tensor:
        """New channels: one for each output of a layer."""
        shape = tuple(node.meta["val"].shape)
        name = self.required(weight)
        labels = self.of.get((name, 0))
        if labels is None:
            labels = self.fresh(shape[at])
            self.tie(name, 0, labels)
            self.producers.append(name)
        if bias and bias[0] is not None:
            self.tie(self.required(bias[0]), 0, labels)
        view = [1] * len(shape)
        view[at] = -1
        return labels.view(view).expand(shape)

    def batch_norm(self, node: Node) -> Any:
        x, *weights = node.args
        channels = _along(self.value(x), 1)
        for weight in weights[:4]:
            if weight is not None:
                self.tie(self.required(weight), 0, channels)
        return self.value(x)

    def channelwise(self, node: Node) -> Any:
        """Pooling, padding: every output element comes from its own channel alone."""
        value = node.meta["val"]
        shape = tuple(value[0].shape if isinstance(value, tuple) else value.shape)
        channels = _along(self.value(node.args[0]), 1)
        if len(channels) != shape[1]:
            raise _Mixed
        found = channels.view(1, -1, *[1] * (len(shape) - 2)).expand(shape)
        return [found, None] if isinstance(value, tuple) else found

    def mean(self, node: Node) -> Any:
        """A mean over dimensions along which every element is of one channel."""
        labels: Tensor = self.value(node.args[0])
        dims = node.args[1] if len(node.args) > 1 else None
        keep = bool(node.args[2]) if len(node.args) > 2 else False
        if not isinstance(dims, list | tuple):
            raise _Mixed
        if not all((labels == labels.narrow(d, 0, 1)).all() for d in dims):  # type: ignore[arg-type]
            raise _Mixed
        for d in dims:
            labels = labels.narrow(d, 0, 1)  # type: ignore[arg-type]
        return labels if keep else labels.reshape(node.meta["val"].shape)

    def same(self, node: Node) -> Any:
        return self.value(node.args[0])

    def required(self, argument: Any) -> str:
        name = self.weight(argument)
        if name is None:  # a weight that is computed, not kept: its slices cannot be removed
            raise _Mixed
        return name

    # -- the result ---------------------------------------------------------------------------------------------

    def groups(self) -> tuple[Group, ...]:
        slices: dict[int, list[Slice]] = defaultdict(list)
        for (name, dim), labels in self.of.items():
            for index, label in enumerate(labels.tolist()):
                slices[self.root(label)].append(Slice(name, dim, index))
        coupled: dict[int, int] = {}
        layers: dict[int, list[str]] = defaultdict(list)
        order: dict[int, list[int]] = defaultdict(list)
        for name in self.producers:
            roots = [self.root(label) for label in self.of[name, 0].tolist()]
            if FROZEN in roots:
                continue
            group = next((coupled[r] for r in roots if r in coupled), roots[0])
            for r in roots:
                if r not in coupled:
                    coupled[r] = group
                    order[group].append(r)
            layers[group].append(name)
        return tuple(
            Group(tuple(layers[group]), tuple(tuple(slices[r]) for r in channels)) for group, channels in order.items()
        )


class _Mixed(Exception):
    """Channels are mixed in a way that is not followed."""


def _along(labels: Tensor, dim: int) -> Tensor:
    """Labels along one dimension, where all others agree."""
    flat = labels.movedim(dim, 0).flatten(1)
    if not (flat == flat[:, :1]).all():
        raise _Mixed
    return flat[:, 0]


def _name(target: Any) -> str:
    return target._overloadpacket.__name__ if hasattr(target, "_overloadpacket") else getattr(target, "__name__", "")


def _table() -> dict[str, Callable[[_Labels, Node], Any]]:
    kinds: dict[Callable[[_Labels, Node], Any], str] = {
        _Labels.same: "relu relu_ gelu silu silu_ sigmoid tanh elu leaky_relu hardtanh hardtanh_ hardswish hardswish_ "
                      "hardsigmoid relu6 softplus dropout dropout_ feature_dropout alpha_dropout neg exp sqrt rsqrt abs "
                      "pow to _to_copy type_as contiguous clone alias detach_ detach lift_fresh_copy clamp square mish",
        _Labels.elementwise: "add add_ sub sub_ mul mul_ div div_ maximum minimum",
        _Labels.shape_operator: "view reshape flatten permute transpose t unsqueeze squeeze expand slice select cat stack "
                                "split split_with_sizes chunk unbind movedim swapaxes narrow unflatten numpy_T",
        _Labels.channelwise: "max_pool1d max_pool2d avg_pool1d avg_pool2d adaptive_avg_pool1d adaptive_avg_pool2d "
                             "adaptive_max_pool2d pad constant_pad_nd upsample_nearest2d upsample_bilinear2d",
        _Labels.linear: "linear",
        _Labels.convolution: "conv1d conv2d conv3d",
        _Labels.batch_norm: "batch_norm _native_batch_norm_legit_no_training",
        _Labels.mean: "mean",
        _Labels.item: operator.getitem.__name__,
    }
    return {name: handler for handler, text in kinds.items() for name in text.split()}


_HANDLERS = _table()
