from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from thrifty.compilers.parity import ParityError, check_parity, check_random, random_requests
from thrifty.engines.parity import PARITY, relative_error, tolerance

REQUESTS = [(torch.randn(1, 6, generator=torch.Generator().manual_seed(i)),) for i in range(3)]


def module(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return (x * 2, x + 1)


@given(st.floats(1e-6, 1e6), st.floats(-0.9, 3))
def test_the_error_is_relative(scale, change):
    x = np.array([3.0, -4.0]) * scale
    assert relative_error(x, x * (1 + change)) == pytest.approx(abs(change), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("precision", PARITY)
def test_an_engine_within_its_precision_passes_and_one_outside_does_not(precision):
    bound = tolerance(precision)
    check_parity(module, lambda x: tuple(y * (1 + bound / 2) for y in module(x)), REQUESTS, precision)
    with pytest.raises(ParityError, match=precision):
        check_parity(module, lambda x: tuple(y * (1 + bound * 2) for y in module(x)), REQUESTS, precision)


def test_a_model_that_magnifies_roundings_explains_what_its_precision_does_not():
    def steep(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (torch.sin(40 * x),)

    def rounded(x: torch.Tensor) -> torch.Tensor:
        return steep(x.bfloat16().float())[0]

    assert max(relative_error(steep(*x)[0].numpy(), rounded(*x).numpy()) for x in REQUESTS) > PARITY["bf16"]
    check_parity(steep, rounded, REQUESTS, "bf16")
    with pytest.raises(ParityError):
        check_parity(steep, rounded, REQUESTS, "fp32")
    with pytest.raises(ParityError):
        check_parity(steep, lambda x: -steep(x)[0], REQUESTS, "bf16")


def test_the_coarsest_part_of_a_precision_decides():
    assert tolerance("int8+bf16") == PARITY["int8"] and tolerance("bf16") == PARITY["bf16"]


def test_one_output_stands_bare():
    check_parity(lambda x: (x,), lambda x: x, REQUESTS, "fp32")


def test_nothing_that_is_not_finite_passes():
    assert math.isnan(relative_error(np.ones(2), np.array([1.0, float("nan")])))
    with pytest.raises(ParityError):
        check_parity(lambda x: (x,), lambda x: x * float("nan"), REQUESTS, "int8")


def test_a_number_of_outputs_that_differs_is_an_error():
    with pytest.raises(ValueError, match="shorter"):
        check_parity(module, lambda x: module(x)[:1], REQUESTS, "fp32")


def test_an_output_of_another_shape_is_an_error():
    with pytest.raises(ParityError, match=r"output 0 is \[.*\] and the model's \["):
        check_parity(lambda x: (x,), lambda x: x[..., :1], REQUESTS, "fp32")


def test_a_wrong_layer_is_found():
    torch.manual_seed(0)
    right, wrong = nn.Linear(6, 4), nn.Linear(6, 4)
    with pytest.raises(ParityError, match="nothing is kept"):
        check_parity(lambda x: (right(x),), wrong, REQUESTS, "fp32")


@given(st.integers(1, 9), st.integers(0, 40), st.integers(1, 5), st.sampled_from([torch.int64, torch.int32, torch.bool]))
def test_random_requests_are_like_the_example(low, more, tokens, dtype):
    ids = torch.randint(0, 2, (low, tokens), generator=torch.Generator().manual_seed(0)).to(dtype)
    example = (ids, torch.randn(low, 3) * 100 + 7, torch.tensor(5.0))
    shapes = {0: {0: (low, low + more)}, 1: {0: (low, low + more)}}
    for a, b, c in random_requests(example, shapes):
        assert (a.dtype, b.dtype, c.dtype) == (dtype, torch.float32, torch.float32)
        assert a.shape == (len(b), tokens) and b.shape[1:] == (3,) and c.shape == ()
        assert low <= len(a) <= low + more
        assert (ids.int().min() <= a.int().min() and a.int().max() <= ids.int().max()) or dtype == torch.bool
        assert c == 5


def test_random_requests_have_odd_sizes_and_other_values():
    x = torch.randn(1, 4)
    found = [request for request, in random_requests((x,), {0: {0: (1, 64)}})]
    assert [len(request) for request in found] == [1, 3, 13]
    assert not torch.equal(found[0], x)
    assert [len(request) for request, in random_requests((x,), {})] == [1], "nothing varies: one request of the example's shape"


def test_an_engine_that_is_only_right_on_the_example_is_found():
    x = torch.randn(1, 6)
    with pytest.raises(ParityError) as caught:
        check_random(lambda x: (x * 2,), lambda x: x * (2 if len(x) < 3 else 3), (x,), {0: {0: (1, 8)}}, "fp32")
    assert [len(y) for y in caught.value.inputs] == [3]


def test_where_the_model_itself_has_no_finite_answer_nothing_is_compared():
    x = torch.tensor([[-1.0]])
    check_random(lambda x: (x.log(),), lambda x: x * 0, (x,), {}, "fp32")


def test_dictionaries_are_compared_in_order():
    check_parity(lambda x: module(x), lambda x: {"a": x * 2, "b": (x + 1,)}, REQUESTS, "fp32")


def test_rows_that_the_model_answers_with_nan_do_not_count():
    x = torch.tensor([[1.0, 2.0], [0.0, 0.0]])

    def module(x):
        return (x / x,)

    check_parity(module, lambda x: torch.ones(2, 2), [(x,)], "fp32")
    for wrong in (torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.full((2, 2), torch.nan)):
        with pytest.raises(ParityError):
            check_parity(module, lambda x, wrong=wrong: wrong, [(x,)], "fp32")
    with pytest.raises(ParityError):
        check_parity(module, lambda x: torch.ones(2, 2), [(torch.zeros(2, 2),)], "fp32")
