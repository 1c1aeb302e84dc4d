"""Integer products: activations in int8 beside weights of eight or four bits."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from thrifty.numerics import graph as graphs
from thrifty.numerics.equalize import rescale
from thrifty.numerics.grid import Affine
from thrifty.numerics.modules import QuantConv, QuantEdge, QuantEmbedding, QuantLinear, WithEdge
from thrifty.numerics.observers import Observer
from thrifty.numerics.smooth import STRENGTHS, Tokens, entries
from thrifty.posttraining.quantization.assign import Assigned
from thrifty.recipes.context import Context
from thrifty.recipes.transform import Plan

CALIBRATION_ROWS = {True: 512, False: 64}
"""Examples to calibrate on, with and without convolutions: static grids want more than the peaks that smoothing
needs, and what has no convolutions mostly reads a hundred tokens an example."""
FAITHFUL = 1e-3
"""How far, relative to the model's answers, those of its graph may be: folding moves them by rounding errors alone."""
ADJUSTED = ("weight", "bias")
"""Buffers of integer layers that a plan may hold, as ``weight.NAME``, where they do not follow from the float ones."""


@final
@dataclass(frozen=True)
class Way:
    """How linear layers round what they read.

    Args:
        smooth: whether hard channels are moved into the weights first.
        static: on one grid, found on calibration data, in place of a scale per token.
    """

    smooth: bool
    static: bool


def traced(model: nn.Module, assigned: Assigned, context: Context) -> tuple[Any, list[str]]:
    """The model to calibrate and its marked edges; without integer convolutions, or without a faithful graph, itself and none.

    A graph counts only where it gives what the model gives on data: a trace follows one way through the model's Python.
    """
    if not assigned.convolutions:
        return model, []
    graph = folded(model, context)
    if graph is None:
        return model, []
    return (graph, marked) if (marked := graphs.edges(graph, _floats(graph, assigned.convolutions))) else (model, [])


def folded(model: nn.Module, context: Context) -> Any:
    """The graph of a copy, batch norms folded; None where there is none that gives what the model gives."""
    inputs = next(iter(context.calibration()), context.example)
    graph = graphs.trace(copy.deepcopy(model), len(inputs))
    if graph is None:
        return None
    graphs.fold(graph)
    off = graphs.reproduces(graph, model, inputs)
    if off > FAITHFUL:
        context.progress("used as it is, without a graph: the traced one gives different outputs "
                         + (f"(off by {off:.2g})" if off < math.inf else "or cannot run"))
        return None
    return graph


def _floats(graph: nn.Module, integer: Mapping[str, int]) -> set[str]:
    return {name for name, module in graph.named_modules() if graphs.is_convolution(module) and name not in integer}


def decide(work: Any, marked: list[str], assigned: Assigned, way: Way, context: Context) -> Plan:
    """Find grids and smoothing on calibration data.

    Args:
        work: the model, or its graph; nothing of it is kept.
        marked: the graph's edges.
        assigned: what becomes of which layer; each is in ``work``.
        way: how linear layers round what they read.
        context: with calibration data.

    Raises:
        CalibrationError: data is missing, constant or not finite where a layer reads it; names the layer.
    """
    same = graphs.same_grid(work, marked) if marked else {}
    fed = graphs.input_edges(work, marked) if marked else {}
    alone = [name for name in assigned.convolutions if name not in fed]

    observers: dict[str, Observer] = {}
    outputs: dict[str, Observer] = {}
    handles = []
    for name in alone:
        seen = observers[name] = Observer(name)
        after = outputs[name] = Observer(name)
        handles.append(work.get_submodule(name).register_forward_pre_hook(lambda _, x, seen=seen: _see(seen, x[0])))
        handles.append(work.get_submodule(name).register_forward_hook(lambda _, x, y, seen=after: _see(seen, y)))
    tokens = Tokens()
    handles += [work.get_submodule(name).register_forward_pre_hook(tokens.hook(name)) for name in assigned.linears]
    at_edges: dict[str, Observer] = {}
    if marked:
        graphs.insert(work, marked, lambda name: at_edges.setdefault(name, Observer(_told(work, name))))
    with torch.no_grad():
        for batch in rows(context, bool(assigned.convolutions)):
            work(*batch)
            tokens.forget_groups()
    for handle in handles:
        handle.remove()

    grids = {name: observer.affine() for name, observer in at_edges.items() if name not in same}
    for name in marked:
        if name in same:
            grids[name] = grids[same[name]]
    # Scale and zero of the input; for a convolution off the graph's edges, of its output too.
    own = {name: [*_pair(observers[name].affine()), *_pair(outputs[name].affine())] for name in alone}
    linears = {name: work.get_submodule(name) for name in assigned.linears}
    tables = [work.get_submodule(name).weight for name in assigned.embeddings]
    tied = [name for name, linear in linears.items() if any(linear.weight is table for table in tables)]
    read = entries(tokens, linears, assigned.linears, STRENGTHS if way.smooth else STRENGTHS[:1], way.static,
                   plain=tied)  # the table's rows must stay as they are
    return Plan(
        {
            "traced": bool(marked),
            "inputs": len(context.example),
            "edges": {name: _pair(grid) for name, grid in grids.items()},
            "convolutions": {name: [bits, *(_pair(grids[fed[name]]) if name in fed else own[name])]
                             for name, bits in assigned.convolutions.items()},
            "linears": dict(assigned.linears),
            "tokens": {name: _pair(entry.grid) for name, entry in read.items() if entry.grid is not None},
            "embeddings": list(assigned.embeddings),
        },
        {f"smooth.{name}": entry.smooth for name, entry in read.items()},
    )


def build(model: nn.Module, plan: Plan) -> nn.Module:
    """Put integer layers where the plan says."""
    if plan.values["traced"]:
        graph = graphs.trace(model, plan.values.get("inputs"))
        if graph is None:
            raise ValueError("the plan was made for a model that could be traced; this one cannot")
        graphs.fold(graph)
        for first, second in plan.values.get("equalized", ()):
            rescale(graph.get_submodule(first), graph.get_submodule(second), plan.tensors[f"equalize.{first}"])
        graphs.insert(graph, plan.values["edges"], lambda name: QuantEdge(Affine(*plan.values["edges"][name])))
        model = graph
    shared: dict[Tensor, QuantLinear] = {}
    known = plan.values.get("tokens", {})
    for name, (bits, scale, zero, *output) in plan.values["convolutions"].items():
        conv: Any = model.get_submodule(name)
        integer_conv = QuantConv(conv, Affine(scale, zero), rounds=bool(output), bits=bits)
        graphs.replace(model, name, WithEdge(integer_conv, QuantEdge(Affine(*output)), conv.weight.shape)
                       if output else integer_conv)
    for name, bits in plan.values["linears"].items():
        linear: Any = model.get_submodule(name)
        grid = Affine(*known[name]) if name in known else None
        integer = QuantLinear(linear, plan.tensors[f"smooth.{name}"], bits, grid)
        shared[linear.weight] = integer
        graphs.replace(model, name, integer)
    for name in plan.values["embeddings"]:
        embedding: Any = model.get_submodule(name)
        table = QuantEmbedding(embedding)
        if embedding.weight in shared:  # tied: one table serves both, as before
            table.weight, table.scale = shared[embedding.weight].weight, shared[embedding.weight].scale
        graphs.replace(model, name, table)
    for key, tensor in plan.tensors.items():
        part, _, name = key.partition(".")
        if part in ADJUSTED:
            setattr(model.get_submodule(place(model, name)), part, tensor.clone())
    return model


def place(model: nn.Module, name: str) -> str:
    """Where the integer layer of that name is: a convolution off the graph's edges has an edge of its own behind it."""
    return f"{name}.0" if isinstance(model.get_submodule(name), WithEdge) else name


def rows(context: Context, convolutions: bool) -> Iterator[tuple[Tensor, ...]]:
    """The batches that grids are found on."""
    seen = 0
    for batch in context.calibration():
        yield batch
        seen += len(batch[0])
        if seen >= CALIBRATION_ROWS[convolutions]:
            return


def _pair(grid: Affine) -> list[float]:
    return [grid.scale, grid.zero]


def _see(observer: Observer, x: Tensor) -> None:
    observer(x)


def _told(work: Any, node_name: str) -> str:
    """What a user calls the node: the module's dotted name, or the operation's."""
    for node in work.graph.nodes:
        if node.name == node_name and node.op == "call_module":
            return str(node.target)
    return node_name
