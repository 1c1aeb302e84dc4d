from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("tvm")
import tvm
from tvm import relax

from thrifty.compilers.tvm.constants import FOLDED, LARGE, folded, lifted


def module(make, x=None):
    """A module whose main gives make(its input)."""
    builder = relax.BlockBuilder()
    given = relax.Var("x", relax.TensorType((4, 16, 16), "float32"))
    with builder.function("main", [given]):
        with builder.dataflow():
            out = builder.emit_output(make(builder, given))
        builder.emit_func_output(out)
    return builder.get()


def called(mod, *arrays):
    machine = relax.VirtualMachine(tvm.compile(mod, "llvm"), tvm.cpu())
    return machine["main"](*(tvm.runtime.tensor(x) for x in arrays)).numpy()


def operators(mod):
    return [binding.value.op.name for block in mod["main"].body.blocks for binding in block.bindings
            if isinstance(binding.value, relax.Call)]


def test_what_only_constants_make_is_folded():
    rng = np.random.default_rng(0)
    weight, variance = rng.normal(size=(16, 16)).astype("float32"), rng.random(16).astype("float32")

    def make(builder, x):
        op, emit = relax.op, builder.emit
        scale = emit(op.divide(relax.const(weight), emit(op.sqrt(emit(op.add(relax.const(variance), relax.const(1e-5)))))))
        turned = emit(op.permute_dims(scale, [1, 0]))
        flat = emit(op.squeeze(emit(op.expand_dims(emit(op.reshape(turned, (4, 64))), 0)), [0]))
        less = emit(op.subtract(emit(op.multiply(flat, relax.const(2.0))), relax.const(1.0)))
        return emit(op.add(x, emit(op.reshape(less, (1, 16, 16)))))

    mod, x = module(make), rng.normal(size=(4, 16, 16)).astype("float32")
    want = x + 2 * (weight / np.sqrt(variance + 1e-5)).T - 1
    assert set(operators(mod)) >= FOLDED.keys()
    assert operators(folded(mod)) == ["relax.add"]
    np.testing.assert_allclose(called(mod, x), want, rtol=1e-5, atol=1e-6)


def test_large_constants_become_inputs_without_repetition():
    small, large = np.ones(16, "float32"), np.arange(16 * 16, dtype="float32").reshape(16, 16)
    assert small.nbytes < LARGE <= large.nbytes

    def make(builder, x):
        op, emit = relax.op, builder.emit
        y = emit(op.add(emit(op.add(x, relax.const(small))), relax.const(large)))
        return emit(op.multiply(y, relax.const(large.copy())))

    mod, values = lifted(module(make))
    assert len(values) == 1
    assert np.array_equal(values[0], large)
    x = np.random.default_rng(0).normal(size=(4, 16, 16)).astype("float32")
    np.testing.assert_allclose(called(mod, x, *values), (x + small + large) * large, rtol=1e-6)
