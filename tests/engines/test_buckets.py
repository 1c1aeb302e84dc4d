from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thrifty.engines.buckets import Buckets, Layout, cut, padded
from thrifty.engines.engine import Engine, EngineError

GRID = tuple(itertools.product((1, 4, 9), (5, 16)))
LAYOUT = Layout(((1, 9), (2, 16)), ({0: 0, 1: 1}, {0: 0}), ({0: 0}, {1: 1, 0: 0}), GRID)


class Fixed(Engine):
    """Row sums and a copy, of inputs of one size."""

    def __init__(self, rows, columns):
        self.shapes, self.closed = [(rows, columns), (rows, 3)], False

    def native(self, arrays):
        assert [x.shape for x in arrays] == self.shapes
        return arrays

    def run(self, native):
        x, y = native
        return [x.sum(1) + y.sum(1), x * 2]

    def arrays(self, outputs):
        return outputs

    def close(self):
        self.closed = True


def engine():
    return Buckets(LAYOUT, [Fixed(*sizes) for sizes in GRID])


@given(st.integers(1, 9), st.integers(2, 16), st.sampled_from(["float32", "float64", "int64", "bool"]))
def test_every_size_in_the_ranges_is_answered_as_without_padding(rows, columns, dtype):
    rng = np.random.default_rng(rows * 100 + columns)
    x, y = (rng.integers(0, 5, shape).astype(dtype) for shape in ((rows, columns), (rows, 3)))
    one = engine()
    sums, twice = one.arrays(one.run(one.native([x, y])))
    np.testing.assert_array_equal(sums, x.sum(1) + y.sum(1))
    np.testing.assert_array_equal(twice, x * 2)


@given(st.integers(1, 9), st.integers(2, 16))
def test_the_bucket_is_the_least_that_holds_the_request(rows, columns):
    holding = [r * c for r, c in GRID if r >= rows and c >= columns]
    r, c = GRID[LAYOUT.bucket((rows, columns))]
    assert r >= rows and c >= columns and r * c == min(holding)


@pytest.mark.parametrize("shapes", [((10, 5), (10, 3)), ((1, 1), (1, 3)), ((1, 17), (1, 3)), ((2, 5), (3, 3)), ((), (1, 3))])
def test_what_is_outside_is_refused_with_what_is_permitted(shapes):
    with pytest.raises(EngineError, match=r"dimension \d of input \d must be (1 to 9|2 to 16), the same wherever it varies"):
        engine().native([np.zeros(shape, np.float32) for shape in shapes])
    with pytest.raises(EngineError, match="takes 2 inputs but got 1"):
        engine().native([np.zeros((1, 2), np.float32)])


def test_a_layout_is_read_as_it_was_written(tmp_path):
    LAYOUT.write(tmp_path / "x.json")
    assert Layout.read(tmp_path / "x.json") == LAYOUT


@given(st.integers(0, 4), st.integers(0, 4))
def test_cutting_undoes_padding(rows, more):
    x = np.arange(rows * 3).reshape(rows, 3)
    filled = padded(x, {0: 0}, (rows + more,))
    assert filled.shape == (rows + more, 3) and not filled[rows:].any()
    np.testing.assert_array_equal(cut(filled, {0: 0}, (rows,)), x)


def test_closing_closes_every_program():
    one = engine()
    one.close()
    assert all(program.closed for program in one.programs)
