"""Constants of a Relax module: folded by NumPy, which compiles nothing, and at last made inputs, to be kept apart."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Container
from typing import Any

import numpy as np
import tvm
from tvm import relax, tirx
from tvm.ir.expr import GenericConst
from tvm.relax import PyExprMutator, expr_functor

LARGE = 1024
"""Bytes from which a constant is a weight, kept beside the library."""
BYTES = ("int8", "uint8")
"""Weights that stay what they are: what is computed of them would take more."""


def _arrange(call: Any, x: np.ndarray, *shape: Any) -> np.ndarray:
    return x.reshape([int(d) for d in call.ty.shape])


FOLDED: dict[str, Callable[..., np.ndarray]] = {
    "relax.add": lambda call, a, b: a + b,
    "relax.subtract": lambda call, a, b: a - b,
    "relax.multiply": lambda call, a, b: a * b,
    "relax.divide": lambda call, a, b: a / b,
    "relax.sqrt": lambda call, a: np.sqrt(a),
    "relax.permute_dims": lambda call, a: a.transpose(None if call.attrs.axes is None else [int(i) for i in call.attrs.axes]),
    "relax.reshape": _arrange,
    "relax.expand_dims": _arrange,
    "relax.squeeze": _arrange,
}


def folded(module: tvm.IRModule) -> tvm.IRModule:
    """The module with what batch norms and layouts do to weights done."""
    module["main"] = _Folded(module).visit_expr(module["main"])
    return tvm.transform.Sequential([relax.transform.CanonicalizeBindings(), relax.transform.DeadCodeElimination()])(module)


@expr_functor.mutator
class _Folded(PyExprMutator):
    def visit_call_(self, call: Any) -> Any:
        call = super().visit_call_(call)
        make = FOLDED.get(getattr(call.op, "name", ""))
        values = [self.known(x) for x in call.args]
        if make is None or not values or any(x is None for x in values):
            return call
        return relax.const(np.ascontiguousarray(make(call, *values)).astype(str(call.ty.dtype)))

    def known(self, x: Any) -> Any:
        """The value of a constant, a number, a shape, or a variable that is bound to one; None for others."""
        bound = self.lookup_binding(x) if isinstance(x, relax.Var) else x
        if isinstance(bound, GenericConst):
            return bound.value.numpy()
        return x if isinstance(x, tirx.FloatImm | tirx.IntImm | relax.ShapeExpr) else None


def lifted(module: tvm.IRModule, dtypes: Container[str] | None = None) -> tuple[tvm.IRModule, list[np.ndarray]]:
    """The module whose large constants, of some dtypes, are inputs behind the others, and their values, without repetition."""
    lift = _Lifted(module, dtypes)
    main = lift.visit_expr(module["main"])
    module["main"] = relax.Function([*main.params, *lift.inputs], main.body, main.ret_ty, main.is_pure, main.attrs)
    return module, lift.values


@expr_functor.mutator
class _Lifted(PyExprMutator):
    def __init__(self, module: tvm.IRModule, dtypes: Container[str] | None) -> None:
        super().__init__(module)
        self.dtypes = dtypes
        self.inputs: list[Any] = []
        self.values: list[np.ndarray] = []
        self.places: dict[bytes, Any] = {}

    def visit_generic_const_(self, constant: Any) -> Any:
        value = constant.value.numpy()
        if value.nbytes < LARGE or not (self.dtypes is None or str(value.dtype) in self.dtypes):
            return constant
        key = hashlib.sha256(value.tobytes() + str((value.shape, value.dtype)).encode()).digest()
        if key not in self.places:
            self.places[key] = relax.Var(f"weight{len(self.inputs)}", constant.ty)
            self.inputs.append(self.places[key])
            self.values.append(value)
        return self.places[key]
