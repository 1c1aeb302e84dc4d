"""From a module to a torch.export program, and what an engine must know of its inputs and outputs."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from thrifty.architectures.accelerate import exportable
from thrifty.artifacts.lowered import TensorSpec
from thrifty.errors import ThriftyError, told_once

if TYPE_CHECKING:
    from torch.export import ExportedProgram

Shapes = Mapping[int, Mapping[int, tuple[int, int]]]


class LoweringError(ThriftyError):
    """A model that a backend cannot take; the message says what to change."""


def capture(model: nn.Module, example: tuple[Tensor, ...], shapes: Shapes) -> ExportedProgram:
    """Export a model for inference.

    Args:
        model: any nn.Module.
        example: one request; dimensions that vary are made larger than 1 where they may be, since a 1 is a constant
            to torch.export.
        shapes: {input position: {dimension: (low, high)}} that vary; all others are fixed at the example's.

    Raises:
        LoweringError: the model cannot be exported, or a dimension that was to vary cannot.
    """
    check_shapes(example, shapes)
    example = tuple(_grown(x, shapes.get(i, {})) for i, x in enumerate(example))
    from torch.export import Dim
    from torch.fx.experimental.symbolic_shapes import is_concrete_int  # half a second, for who captures

    dynamic = [{d: Dim.AUTO(min=low, max=high) for d, (low, high) in shapes.get(i, {}).items() if high > low}
               for i in range(len(example))]
    try:
        with torch.no_grad(), _steady(model), exportable(model), told_once():
            program = torch.export.export(model.eval(), example, dynamic_shapes=_by_parameter(model, dynamic))
    except Exception as error:
        raise LoweringError(
            f"torch.export cannot capture {type(model).__name__}: {_first_line(error)}. Values that decide "
            "control flow must be fixed, or the choice written with torch.where; remove dimensions that cannot "
            "vary from the workload's `shapes`"
        ) from error
    taken = [node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"][-len(example):]
    for i, dims in enumerate(dynamic):
        for d in dims:
            if is_concrete_int(taken[i].shape[d]):  # a SymInt, too, may stand for one number
                raise LoweringError(
                    f"dimension {d} of input {i} is declared to vary, but the model fixes it to {taken[i].shape[d]}: "
                    "remove it from the workload's `shapes`, or make the model's code independent of it"
                )
    for name, output in zip(_output_names(program), program.graph.output_node().args[0], strict=True):
        if not isinstance(output, fx.Node):
            raise LoweringError(f"{type(model).__name__} gives {output!r} as its {name}; an engine returns only tensors")
    _reshape_views(program)
    return program


def _reshape_views(program: ExportedProgram) -> None:
    """Have every view copy where it must: what an operator is decomposed into may give a tensor other strides than the
    operator did (attention does, under free dimensions), and a view of it is then refused."""
    aten: Any = torch.ops.aten
    for node in program.graph.nodes:
        if node.target is aten.view.default:
            node.target = aten.reshape.default
    program.graph_module.recompile()


def _by_parameter(model: nn.Module, dynamic: list[dict[int, Any]]) -> tuple[Any, ...]:
    """As torch.export wants them: one entry for each parameter of forward, ``*args`` being one."""
    kinds = [p.kind for p in inspect.signature(model.forward).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL not in kinds:
        return tuple(dynamic)
    first = kinds.index(inspect.Parameter.VAR_POSITIONAL)
    return (*dynamic[:first], tuple(dynamic[first:])) if len(dynamic) > first else tuple(dynamic)


def check_shapes(example: tuple[Tensor, ...], shapes: Shapes) -> None:
    for i, dims in shapes.items():
        for d, (low, high) in dims.items():
            if not (0 <= i < len(example) and 0 <= d < example[i].dim()):
                raise LoweringError(f"`shapes` names dimension {d} of input {i}, which the example does not have")
            if not low <= example[i].shape[d] <= high:
                raise LoweringError(
                    f"`shapes` lets dimension {d} of input {i} vary from {low} to {high}, but the example has "
                    f"{example[i].shape[d]}"
                )


def _grown(x: Tensor, dims: Mapping[int, tuple[int, int]]) -> Tensor:
    for d, (_, high) in dims.items():
        if x.shape[d] == 1 and high > 1:
            x = x.repeat_interleave(min(high, 2), d)
    return x


@contextmanager
def _steady(model: nn.Module) -> Iterator[None]:
    """Export without the fused transformer path of nn.TransformerEncoder, which backends cannot lower, and with tables whose
    rows are scaled already: a look-up that scales them in place is a write to a constant."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    tables: list[Any] = [m for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag) and m.max_norm is not None]
    held = [(table.weight, table.max_norm) for table in tables]
    try:
        for table in tables:
            scaled = table.weight.detach().clone()
            torch.embedding_renorm_(scaled, torch.arange(len(scaled), device=scaled.device), table.max_norm, table.norm_type)
            table.weight, table.max_norm = nn.Parameter(scaled, requires_grad=False), None
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
        for table, (weight, norm) in zip(tables, held, strict=True):
            table.weight, table.max_norm = weight, norm


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def specs(program: ExportedProgram, inputs: int,
          shapes: Shapes | None = None) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Inputs and outputs of the call, -1 where a dimension varies.

    Args:
        program: as `capture` gave it.
        inputs: how many the call takes.
        shapes: those that `capture` was given: the ranges of what varies.

    Returns:
        inputs, named as the model's forward names them; outputs, named by the keys under which the model gives them,
        "output0" and so on where it gives no mapping.
    """
    nodes = [n for n in program.graph.nodes if n.op == "placeholder"][-inputs:] if inputs else []
    taken = tuple(_spec(n.name, n.meta["val"], (shapes or {}).get(i, {})) for i, n in enumerate(nodes))
    given = [n.meta["val"] for n in program.graph.output_node().args[0]]
    return taken, tuple(_spec(name, value, {}) for name, value in zip(_output_names(program), given, strict=True))


def _spec(name: str, value: Any, ranges: Mapping[int, tuple[int, int]]) -> TensorSpec:
    varies = tuple((d, str(size), *ranges[d]) for d, size in enumerate(value.shape)
                   if not isinstance(size, int) and d in ranges)
    return TensorSpec(name, str(value.dtype).removeprefix("torch."),
                      tuple(d if isinstance(d, int) else -1 for d in value.shape), varies)


def _output_names(program: ExportedProgram) -> list[str]:
    structure = program.call_spec.out_spec
    outputs = pytree.tree_unflatten(range(structure.num_leaves), structure)
    if not isinstance(outputs, Mapping):
        return [f"output{i}" for i in range(structure.num_leaves)]
    return ["_".join(str(getattr(key, "key", getattr(key, "idx", key))) for key in path)
            for path, _ in pytree.tree_flatten_with_path(outputs)[0]]


def precision_of(model: nn.Module) -> str:
    """"int8", "fp8", "bf16", "fp32" or several joined by "+", from what the model holds: the numbers that it computes with.

    Weights alone of few bits are multiplied as floats, so they are no part of it.
    """
    from thrifty.numerics.modules import Float8Linear, InBfloat16, QuantConv, QuantLinear

    parts = []
    if any(isinstance(m, QuantConv | QuantLinear) for m in model.modules()):
        parts.append("int8")
    if any(isinstance(m, Float8Linear) for m in model.modules()):
        parts.append("fp8")
    floats = [p for p in model.parameters() if p.is_floating_point()]
    if not floats and isinstance(model, InBfloat16):
        parts.append("bf16")
    if floats and sum(p.numel() for p in floats if p.dtype == torch.bfloat16) * 2 > sum(p.numel() for p in floats):
        parts.append("bf16")
    return "+".join(parts) or "fp32"
