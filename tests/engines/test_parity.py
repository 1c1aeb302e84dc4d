from __future__ import annotations

import numpy as np
import pytest

from thrifty.engines import EngineError
from thrifty.engines.parity import relative_error, tolerance


def test_the_coarsest_part_decides():
    assert tolerance("fp32") < tolerance("bf16") < tolerance("int8") == tolerance("int8+bf16")
    assert tolerance("fp32", "cuda") > tolerance("fp32") and tolerance("int8", "cuda") == tolerance("int8")


@pytest.mark.parametrize("precision", ["", "fp64", "fp32+", "FP32"])
def test_unknown_precisions_are_named(precision):
    with pytest.raises(EngineError, match=r"no precision .*known: fp32, bf16, int8"):
        tolerance(precision)


def test_the_error_is_relative_and_never_hides_what_is_not_finite():
    a = np.random.default_rng(0).normal(size=(3, 4, 5))
    assert relative_error(a, a * 1.25) == pytest.approx(0.25) and relative_error(a, a) == 0
    assert relative_error(a.astype("float32"), a.astype("float32")) == 0
    assert not relative_error(a, a * np.nan) <= 1 and not relative_error(a, a * np.inf) <= 1
    assert relative_error(np.zeros(3), np.ones(3)) > 1e6
