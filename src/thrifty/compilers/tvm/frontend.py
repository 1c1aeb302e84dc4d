"""From a torch.export program to Relax, where TVM's own importer is wrong or slow."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import tvm
from torch.export import ExportedProgram
from tvm import relax
from tvm.relax import PyExprMutator, expr_functor
from tvm.relax.frontend.torch import from_exported_program


def translated(program: ExportedProgram) -> tvm.IRModule:
    """Raises whatever the importer raises: AssertionError "Unsupported function types [..]" first of all."""
    aten = torch.ops.aten
    table = torch.export.default_decompositions()
    for operator in (aten.linear.default, aten.scaled_dot_product_attention.default):
        table.pop(operator)
    module = from_exported_program(program.run_decompositions(table), run_ep_decomposition=False, custom_convert_map={
        "linear.default": _linear,
        "scaled_dot_product_attention.default": _attention,
        "select.int": _select,
        "cumsum.default": _cumsum,
        "amax.default": _extreme(relax.op.max),
        "amin.default": _extreme(relax.op.min),
        "__lshift__.Tensor": _shift(relax.op.left_shift),
        "__rshift__.Tensor": _shift(relax.op.right_shift),
        "__rshift__.Scalar": _shift(relax.op.right_shift),
    })
    module["main"] = _Careful(module).visit_expr(module["main"])
    return module


def _arguments(node: Any, importer: Any) -> list[Any]:
    """Every argument of the operator's schema, defaults among them."""
    positional = importer.retrieve_args(node)
    named = {key: importer.env[x] if isinstance(x, torch.fx.Node) else x for key, x in node.kwargs.items()}
    rest = node.target._schema.arguments[len(positional):]
    return [*positional, *(named.get(x.name, x.default_value) for x in rest)]


def _linear(node: Any, importer: Any) -> Any:
    x, weight, bias = _arguments(node, importer)
    op, emit = relax.op, importer.block_builder.emit
    y = emit(op.matmul(x, emit(op.permute_dims(weight, [1, 0]))))
    return y if bias is None else emit(op.add(y, bias))


def _select(node: Any, importer: Any) -> Any:
    """x[.., i, ..]; TVM's own reads before the tensor where i is negative."""
    x, dim, index = _arguments(node, importer)
    op, emit = relax.op, importer.block_builder.emit
    end = index + 1 if index != -1 else 2**31 - 1
    return emit(op.squeeze(emit(op.strided_slice(x, [dim], [index], [end])), [dim]))


def _cumsum(node: Any, importer: Any) -> Any:
    """In whole numbers of 64 bits where booleans or whole numbers are summed; TVM's own adds booleans as booleans."""
    x, dim, _ = _arguments(node, importer)
    dtype = str(node.meta["val"].dtype).removeprefix("torch.")
    emit: Any = importer.block_builder.emit
    return emit(relax.op.cumsum(emit(relax.op.astype(x, dtype)), dim, dtype))


def _extreme(reduce: Callable[..., Any]) -> Callable[[Any, Any], Any]:
    def convert(node: Any, importer: Any) -> Any:
        x, dims, keep = _arguments(node, importer)
        return importer.block_builder.emit(reduce(x, list(dims) or None, keep))

    return convert


def _shift(operator: Callable[..., Any]) -> Callable[[Any, Any], Any]:
    def convert(node: Any, importer: Any) -> Any:
        x, by = _arguments(node, importer)
        return importer.block_builder.emit(operator(x, by if isinstance(by, relax.Expr) else relax.const(by, x.ty.dtype)))

    return convert


def _attention(node: Any, importer: Any) -> Any:
    """softmax(q k^T / sqrt(d) + mask) v, and 0 where a row is masked throughout, as torch has it."""
    q, k, v, mask, _, causal, scale, grouped = _arguments(node, importer)
    op, emit = relax.op, importer.block_builder.emit
    if grouped and (times := int(q.ty.shape[-3]) // int(k.ty.shape[-3])) > 1:
        k, v = (emit(op.repeat(x, times, axis=len(x.ty.shape) - 3)) for x in (k, v))
    q = emit(op.multiply(q, relax.const(scale or 1 / math.sqrt(int(q.ty.shape[-1])), "float32")))
    rank = len(k.ty.shape)
    scores = emit(op.matmul(q, emit(op.permute_dims(k, [*range(rank - 2), rank - 1, rank - 2]))))
    if causal:
        rows, columns = (int(scores.ty.shape[i]) for i in (-2, -1))
        mask = relax.const(torch.ones(rows, columns).tril().log().numpy())
    if mask is None:
        return emit(op.matmul(emit(op.nn.softmax(scores, -1)), v))
    if str(mask.ty.dtype) == "bool":
        mask = emit(op.where(mask, relax.const(0.0, "float32"), relax.const(-math.inf, "float32")))
    scores = emit(op.add(scores, mask))
    # With these two bounds a row of nothing but -inf has weights of 0, and others are what they would be without.
    largest = emit(op.maximum(emit(op.max(scores, -1, keepdims=True)), relax.const(-3e38, "float32")))
    weights = emit(op.exp(emit(op.subtract(scores, largest))))
    total = emit(op.maximum(emit(op.sum(weights, -1, keepdims=True)), relax.const(1e-30, "float32")))
    return emit(op.matmul(emit(op.divide(weights, total)), v))


@expr_functor.mutator
class _Careful(PyExprMutator):
    """Indices wrap around, where TVM's importer lets them read anywhere; clips become what layouts pass through."""

    def visit_call_(self, call: Any) -> Any:
        call = super().visit_call_(call)
        if call.op.name == "relax.take" and call.attrs.mode == "fast":
            return relax.op.take(*call.args, axis=call.attrs.axis, mode="wrap")
        if call.op.name == "relax.squeeze" and call.attrs.axis is not None:  # ConvertLayout allocates without end on -1
            return relax.op.squeeze(call.args[0], [int(a) % len(call.args[0].ty.shape) for a in call.attrs.axis])
        if call.op.name == "relax.clip" and str(call.ty.dtype) == "float32":
            low, high = (relax.const(float(x.value), "float32") for x in call.args[1:])
            return relax.op.minimum(self.builder_.emit(relax.op.maximum(call.args[0], low)), high)
        return call
