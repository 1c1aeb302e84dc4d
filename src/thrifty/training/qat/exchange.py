"""A float model with rounding layers in the places where `quantize` puts integer ones, and the way to those."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import fx, nn

from thrifty.errors import ThriftyError
from thrifty.numerics import graph as graphs
from thrifty.numerics.grid import Affine
from thrifty.numerics.modules import (
    GroupedEmbedding,
    GroupedLinear,
    QuantConv,
    QuantEdge,
    QuantEmbedding,
    QuantLinear,
    WithEdge,
)
from thrifty.numerics.surroundings import slow
from thrifty.training.qat.layers import (
    Rounded,
    RoundedConv,
    RoundedEdge,
    RoundedEmbedding,
    RoundedGroups,
    RoundedLinear,
)


def rounding(model: nn.Module, twin: nn.Module, learned: bool) -> nn.Module:
    """The model with a rounding layer wherever ``twin`` has an integer one; parameters are the model's own.

    Args:
        model: float; changed in place, or taken apart where ``twin`` is a graph.
        twin: what `quantize` built of a copy; its integer layers are taken over.
        learned: whether steps are trained.
    """
    marked = _marked(twin)
    edges: dict[str, RoundedEdge] = {}
    norms: dict[str, str] = {}
    fed: dict[str, str] = {}
    if marked:
        assert isinstance(twin, fx.GraphModule)
        model, norms, fed = _with_edges(model, twin, marked, edges, learned)
    integers = dict(twin.named_modules())
    for name, integer in integers.items():
        if isinstance(integer, QuantConv):
            _exchange_convolution(model, name, integer, integers, edges.get(fed.get(name, "")), norms.get(name), learned)
        elif type(integer) in _LINEAR:
            layer: Any = model.get_submodule(name)
            graphs.replace(model, name, _LINEAR[type(integer)](layer, integer, learned))
    products = [m for m in model.modules() if isinstance(m, RoundedLinear | RoundedGroups)]
    for name, integer in integers.items():
        if not isinstance(integer, QuantEmbedding | GroupedEmbedding):
            continue
        tied = next((m for m in products if m.twin.scale is integer.scale), None)
        embedding: Any = model.get_submodule(name)
        graphs.replace(model, name, RoundedEmbedding(embedding, integer, tied, learned))
    slow(model)
    return model


_LINEAR: dict[type[nn.Module], Callable[..., nn.Module]] = {QuantLinear: RoundedLinear, GroupedLinear: RoundedGroups}


def _with_edges(model: nn.Module, twin: fx.GraphModule, marked: list[str], edges: dict[str, RoundedEdge],
                learned: bool) -> tuple[fx.GraphModule, dict[str, str], dict[str, str]]:
    """The model as a graph with rounding edges; {convolution: its norm}; {convolution: the edge that feeds it}."""
    given = sum(node.op == "placeholder" for node in twin.graph.nodes)
    folded, graph = graphs.trace(model, given), graphs.trace(model, given)
    if folded is None or graph is None:
        raise ThriftyError("the model was traced for its ranges and cannot be traced again: its Python depends on more "
                           "than its inputs")
    norms = dict(graphs.fold(folded))
    same = graphs.same_grid(folded, marked)
    for name in marked:
        integer = twin.get_submodule(f"edge_{name}")
        assert isinstance(integer, QuantEdge)
        edges[name] = RoundedEdge(integer, learned)
        if name in same:
            edges[name].ratio = edges[same[name]].ratio
    graphs.insert(graph, marked, lambda name: edges[name])
    return graph, norms, graphs.input_edges(folded, marked)


def _exchange_convolution(model: nn.Module, name: str, twin: QuantConv, integers: dict[str, nn.Module],
                          edge: RoundedEdge | None, norm: str | None, learned: bool) -> None:
    place = name.rpartition(".")[0] if twin.rounds else name  # one off the edges stands in a row with its output's edge
    conv: Any = model.get_submodule(place)
    make = functools.partial(RoundedConv, conv, model.get_submodule(norm) if norm else None, twin)
    if norm:
        graphs.replace(model, norm, nn.Identity())
    if not twin.rounds:
        assert edge is not None
        graphs.replace(model, place, make(edge, learned))
    else:
        entry = RoundedEdge(QuantEdge(Affine(float(twin.x_scale), int(twin.x_zero))), learned)
        output: Any = integers[f"{place}.1"]
        graphs.replace(model, place, WithEdge(make(entry, learned), RoundedEdge(output, learned), twin.weight.shape))


def integers(model: nn.Module) -> nn.Module:
    """The model with every rounding layer's integer twin in its place, holding the present numbers; in eval mode."""
    _settle(model.eval())
    if _marked(model):
        assert isinstance(model, fx.GraphModule)
        graphs.fold(model)  # norms of convolutions that stay float
    return model.requires_grad_(False)


def _marked(model: nn.Module) -> list[str]:
    """Names of the nodes whose outputs a quantized graph rounds."""
    return [name.removeprefix("edge_") for name, child in model.named_children() if isinstance(child, QuantEdge)]


def _settle(module: nn.Module) -> None:
    for name, child in module._modules.items():  # a layer of two names too
        if isinstance(child, Rounded):
            module._modules[name] = child.integer()
        elif child is not None:
            _settle(child)
