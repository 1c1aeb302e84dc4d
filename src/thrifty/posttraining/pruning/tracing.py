"""A walk over an exported graph, along which channels are followed."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from thrifty.posttraining.pruning.labels import Dims, Labels, data

OUTPUT = "it is an output of the model"
Rule = Callable[["Tracer", Any], Any]
"""(tracer, node) -> labels of the node's outputs, or None where the operator is in a form that the rule does not know."""


@final
class Tracer:
    """Follows labels through one exported graph.

    Args:
        model: whose parameters and buffers have labels.
        rules: {operator: its rule}.
        pointwise: the rule of operators that are tagged so.
    """

    def __init__(self, model: nn.Module, rules: Mapping[str, Rule], pointwise: Rule) -> None:
        self.labels, self.rules, self.pointwise = Labels(), rules, pointwise
        self.reads: set[tuple[str, int]] = set()
        """(tensor, dimension) that is summed over."""
        self.scales: set[str] = set()
        self.norms: set[str] = set()
        self.products: list[tuple[float, list[np.ndarray]]] = []
        """Multiply-adds of each operator: a constant, and dimensions whose sizes multiply it."""
        canonical: dict[int, str] = {}
        self.names: dict[str, str] = {}  # tied parameters go by their first name
        self.tensors: dict[str, Dims] = {}
        self.parameters = {name for name, _ in model.named_parameters()}
        for name, module in model.named_modules():  # root mean squares, of which export leaves single operators
            if "norm" in type(module).__name__.lower() and not isinstance(module, nn.modules.batchnorm._NormBase):
                self.norms.add(f"{name}.weight")
        for every in (model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)):
            for name, tensor in every:
                self.names[name] = canonical.setdefault(id(tensor), name)
                if self.names[name] == name:
                    self.tensors[name] = [self.labels.fresh(n) for n in tensor.shape]
        self.values: dict[Any, Any] = {}
        self.origins: dict[Any, tuple[str, list[int]]] = {}
        """{node: (tensor, which of its dimensions each of the node's is)} of tensors and what only turns or picks from them."""

    def run(self, program: torch.export.ExportedProgram) -> None:
        signature = program.graph_signature
        named = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        for node in program.graph.nodes:
            if node.op == "placeholder" and named.get(node.name) in self.names:
                name = self.names[named[node.name]]
                self.values[node] = self.tensors[name]
                self.origins[node] = (name, list(range(len(self.values[node]))))
            elif node.op == "call_function":
                self.values[node] = self.call(node)
            elif node.op == "output":
                self.freeze_all(node, OUTPUT)
            else:
                self.values[node] = outputs(node)

    def call(self, node: Any) -> Any:
        if node.target is operator.getitem:
            return self.values[node.args[0]][node.args[1]]
        name = getattr(node.target, "_opname", "")
        if not isinstance(node.meta.get("val"), Tensor | list | tuple):  # an assertion, a switch of gradients
            return []
        rule = self.rules.get(name) if getattr(node.target, "namespace", "") in ("aten", "transformers") else None
        if rule is None and torch.Tag.pointwise in getattr(node.target, "tags", ()):
            rule = self.pointwise
        made = rule(self, node) if rule is not None else None
        if made is None:  # unknown, or a form that the rule does not know
            self.freeze_all(node, f"{name or node.target} takes it whole")
            return outputs(node)
        return made

    def freeze_all(self, node: Any, why: str) -> None:
        for source in node.all_input_nodes:
            for dims in _flat(self.values[source]):
                self.labels.freeze(why, *dims)

    def origin(self, node: Any, dim: int) -> tuple[str, int] | None:
        """The tensor, and its dimension, of which that dimension of the node's value is; None where it is computed."""
        if node not in self.origins:
            return None
        name, dims = self.origins[node]
        return (name, dims[dim]) if dims[dim] >= 0 else None

    def read(self, node: Any, dim: int) -> bool:
        found = self.origin(node, dim)
        if found is not None:
            self.reads.add(found)
        return found is not None


def outputs(node: Any) -> Any:
    value = node.meta.get("val")
    if isinstance(value, list | tuple):
        return [data_of(v.shape) if isinstance(v, Tensor) else [] for v in value]
    return data_of(value.shape) if isinstance(value, Tensor) else []


def data_of(shape: Sequence[int]) -> Dims:
    return [data(n) for n in shape]


def _flat(value: Any) -> list[Dims]:
    return value if value and isinstance(value[0], list) else [value]
