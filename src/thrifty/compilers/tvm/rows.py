"""Operators that go along rows: functions of one number, sums over the last dimension, softmax and layer norm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import te, tirx

from thrifty.compilers.tvm.elementary import FUNCTIONS
from thrifty.compilers.tvm.shapes import fixed, is_float

LANES, KEPT = "thrifty.lanes", "thrifty.kept"
"""Annotations of blocks, for `schedules`: a sum over whole vectors of the last dimension; one that is not computed twice."""

Legalization = Callable[[Any, Any], Any]


def legalizations(lanes: int) -> dict[str, Legalization]:
    """Operator -> how it becomes loops, in float32; TVM's own in other types."""

    def softmax(builder: Any, call: Any) -> Any:
        x, axis = call.args[0], int(call.attrs.axis)
        if not is_float(x) or axis % len(x.ty.shape) != len(x.ty.shape) - 1:
            return default(builder, call)
        return builder.call_te(_softmax, x, lanes, primfunc_name_hint="softmax")

    def layer_norm(builder: Any, call: Any) -> Any:
        x = call.args[0]
        if not is_float(x) or [int(a) % len(x.ty.shape) for a in call.attrs.axes] != [len(x.ty.shape) - 1]:
            return default(builder, call)
        return builder.call_te(_layer_norm, *call.args, float(call.attrs.epsilon), lanes, primfunc_name_hint="layer_norm")

    def along(kind: Reduction, mean: bool) -> Legalization:
        def legalize(builder: Any, call: Any) -> Any:
            x, axes = call.args[0], call.attrs.axis
            if not is_float(x) or axes is None or [int(a) % len(x.ty.shape) for a in axes] != [len(x.ty.shape) - 1]:
                return default(builder, call)
            keep = bool(call.attrs.keepdims)
            return builder.call_te(lambda a: _along(a, kind, mean, keep, lanes), x,
                                   primfunc_name_hint=call.op.name.split(".")[-1])

        return legalize

    return {
        "relax.nn.softmax": softmax, "relax.nn.layer_norm": layer_norm,
        "relax.sum": along(te.sum, False), "relax.mean": along(te.sum, True), "relax.max": along(te.max, False),
        **{name: _of_one(make) for name, make in FUNCTIONS.items()},
    }


def default(builder: Any, call: Any) -> Any:
    """TVM's own."""
    return call.op.get_attr("FLegalize")(builder, call)


def _of_one(make: Callable[[Any], Any]) -> Legalization:
    def legalize(builder: Any, call: Any) -> Any:
        if not is_float(call.args[0]):
            return default(builder, call)
        return builder.call_te(lambda a: te.compute(a.shape, lambda *at: make(a(*at)), name="values"), call.args[0],
                               primfunc_name_hint=call.op.name.split(".")[-1])

    return legalize


# -- the loops ----------------------------------------------------------------------------------------------------

Reduction = Callable[[Any, Any], Any]


def reduced(outer: list[Any], n: Any, value: Callable[..., Any], kind: Reduction, lanes: int, name: str) -> te.Tensor:
    """kind over k < n of value(.., k): whole vectors first, then the rest."""
    def part(start: int, size: Any, marks: dict[str, int]) -> te.Tensor:
        k = te.reduce_axis((0, size), "k")
        return te.compute(outer, lambda *at: kind(value(*at, k + start), k), name=f"{name}_from_{start}", attrs=marks)

    whole = (fixed(n) or 0) // lanes * lanes
    parts = [part(0, whole, {LANES: lanes})] if whole else []
    if fixed(n) != whole:
        parts.append(part(whole, n - whole, {}))
    if len(parts) == 1:
        return parts[0]
    join = tirx.max if kind is te.max else lambda a, b: a + b
    return te.compute(outer, lambda *at: join(parts[0](*at), parts[1](*at)), name=name)


def _along(a: te.Tensor, kind: Reduction, mean: bool, keep: bool, lanes: int) -> te.Tensor:
    *outer, n = a.shape
    total = reduced(outer, n, a, kind, lanes, "total")
    scale = tirx.const(1, "float32") / tirx.Cast("float32", n) if mean else None
    return te.compute((*outer, 1) if keep else outer, lambda *at: (
        total(*at[:len(outer)]) if scale is None else total(*at[:len(outer)]) * scale), name="along")


def _softmax(a: te.Tensor, lanes: int) -> te.Tensor:
    """exp(a - max a) / sum exp(a - max a)"""
    *outer, n = a.shape
    largest = reduced(outer, n, a, te.max, lanes, "largest")
    weights = te.compute(a.shape, lambda *at: FUNCTIONS["relax.exp"](a(*at) - largest(*at[:-1])), name="weights",
                         attrs={KEPT: 1})
    total = reduced(outer, n, weights, te.sum, lanes, "total")
    inverse = te.compute(outer, lambda *at: tirx.const(1, "float32") / total(*at), name="inverse", attrs={KEPT: 1})
    return te.compute(a.shape, lambda *at: weights(*at) * inverse(*at[:-1]), name="softmax")


def _layer_norm(a: te.Tensor, scale: te.Tensor, shift: te.Tensor, epsilon: float, lanes: int) -> te.Tensor:
    """(a - mean) / sqrt(variance + epsilon) * scale + shift, the variance of what is centered."""
    *outer, n = a.shape
    size = tirx.Cast("float32", n)
    total = reduced(outer, n, a, te.sum, lanes, "total")
    mean = te.compute(outer, lambda *at: total(*at) / size, name="mean", attrs={KEPT: 1})

    def square(*at: Any) -> Any:
        centered = a(*at) - mean(*at[:-1])
        return centered * centered

    squares = reduced(outer, n, square, te.sum, lanes, "squares")
    inverse = te.compute(outer, lambda *at: tirx.const(1, "float32") / tirx.sqrt(
        squares(*at) / size + tirx.const(epsilon, "float32")), name="inverse", attrs={KEPT: 1})
    return te.compute(a.shape, lambda *at: (a(*at) - mean(*at[:-1])) * inverse(*at[:-1]) * scale(at[-1]) + shift(at[-1]),
                      name="layer_norm")
