from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.compilers.nets import encoder, texts
from tests.unusual_layers import Answer
from thrifty.compilers.buckets import MOST, layout, resized, sizes
from thrifty.compilers.capture import LoweringError


class Pooled(nn.Module):
    """The mean over a sequence, of what the mask leaves where it is heeded."""

    def __init__(self, heeds):
        super().__init__()
        self.heeds, self.table = heeds, nn.Embedding(300, 8)

    def forward(self, ids, mask):
        x = self.table(ids)
        if not self.heeds:
            return x.mean(1)
        seen = mask[..., None].float()
        return (x * seen).sum(1) / seen.sum(1).clamp(min=1)


BOTH = {0: {0: (1, 6), 1: (3, 20)}, 1: {0: (1, 6), 1: (3, 20)}}


@given(st.integers(1, 100), st.integers(0, 1000), st.sampled_from([2, 4, 8]))
def test_sizes_grow_and_hold_all_of_the_range(low, more, factor):
    found = sizes(low, low + more, factor)
    assert list(found) == sorted(set(found))
    assert found[-1] == low + more and found[0] >= low
    assert all(b <= a * factor for a, b in itertools.pairwise(found))


def test_one_axis_for_a_dimension_of_all_inputs():
    made = layout(encoder(), texts(), BOTH)
    assert made.ranges == ((1, 6), (3, 20))
    assert made.inputs == ({0: 0, 1: 1}, {0: 0, 1: 1})
    assert made.outputs == ({0: 0, 1: 1},)
    assert made.sizes[0] == (1, 4) and made.sizes[-1] == (6, 20) and len(made.sizes) == 4 * 4


def test_sizes_grow_faster_where_programs_would_be_too_many():
    shapes = {0: {0: (1, 512), 1: (1, 500)}}
    made = layout(nn.Softplus(), (torch.ones(1, 1),), shapes)
    assert len(made.sizes) <= MOST and made.sizes[-1] == (512, 500)


def test_chosen_sizes_count_where_they_are_in_range():
    made = layout(encoder(), texts(), BOTH, (1, 4, 8, 64))
    assert made.sizes == ((1, 4), (1, 8), (1, 20), (4, 4), (4, 8), (4, 20), (6, 4), (6, 8), (6, 20))
    with pytest.raises(LoweringError, match="would be 36 programs, more than 16: give fewer sizes"):
        layout(nn.Softplus(), (torch.ones(1, 1),), {0: {0: (1, 9), 1: (1, 8)}}, (1, 2, 3, 4, 5))


def test_padding_that_changes_answers_is_refused():
    layout(Pooled(True), texts(), BOTH)
    with pytest.raises(LoweringError, match=r"padding sizes \(\d+, \d+\) to \(\d+, \d+\) with zeros changes output 0 by .*mask"):
        layout(Pooled(False), texts(), BOTH)


def test_a_model_that_mixes_its_rows_is_refused():
    class Mixes(nn.Module):
        def forward(self, x):
            return x - x.mean(0)

    with pytest.raises(LoweringError, match="padding sizes"):
        layout(Mixes(), (torch.randn(2, 3),), {0: {0: (1, 8)}})


def test_outputs_that_cannot_be_cut_back_are_refused():
    class Doubles(nn.Module):
        def forward(self, x):
            return torch.cat([x, x])

    with pytest.raises(LoweringError, match="dimension 0 of output 0 is 2 where an input's is 1 and 4 where it is 2"):
        layout(Doubles(), (torch.randn(1, 3),), {0: {0: (1, 8)}})


def test_a_request_of_another_size_repeats_the_values():
    x, = resized((torch.tensor([[1, 2, 3]]),), ({0: 0, 1: 1},), (2, 5))
    assert x.tolist() == [[1, 2, 3, 1, 2]] * 2


def test_an_output_of_a_class_is_told():
    class Gives(nn.Module):
        def forward(self, x):
            return Answer(x, x)

    with pytest.raises(LoweringError, match="the model returns a Answer, but an engine returns only tensors"):
        layout(Gives(), (torch.ones(1, 2),), {0: {0: (1, 4)}})
