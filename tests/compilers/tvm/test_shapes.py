from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("tvm")
from tvm import tirx

from thrifty.compilers.tvm.shapes import aligned, broadcast, fixed, same, up

N = tirx.Var("n", "int64")


def test_what_varies_is_no_number():
    assert fixed(3) == fixed(tirx.const(3, "int64")) == 3
    assert fixed(N) is None
    assert same(3, tirx.const(3, "int64"))
    assert not same(N, N)
    assert fixed(up(N, 4)) is None


@given(n=st.integers(1, 10**6), to=st.integers(1, 64))
def test_up_is_the_next_multiple(n, to):
    assert up(n, to) % to == 0
    assert n <= up(n, to) < n + to


def test_a_dimension_of_1_is_read_at_0():
    assert aligned([4, 1], 3) == [1, 4, 1]
    assert broadcast(["a", "b", "c"], [4, 1]) == ["b", 0]
