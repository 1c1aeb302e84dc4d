from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from thrifty.numerics.adaround import Layer, adaround, beta_at, rectified, regulariser, unrectified
from thrifty.numerics.grid import per_row


def correlated(seed: int, groups: int, rows: int, inputs: int) -> torch.Tensor:
    """Rows whose columns move together, as activations do: that is what rounding to nearest ignores."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(groups, inputs, inputs, generator=generator)
    return torch.relu(torch.randn(groups, rows, inputs, generator=generator) @ mix + 0.5)


def drawn(seed: int, groups: int, outputs: int, inputs: int, bits: int, activation=torch.relu) -> Layer:
    generator = torch.Generator().manual_seed(seed + 1)
    weight = torch.randn(groups, outputs, inputs, generator=generator) / inputs**0.5
    _, scale = per_row(weight.flatten(0, 1), bits)
    return Layer(weight, scale.reshape(groups, outputs), torch.randn(groups, outputs, generator=generator) * 0.1, activation)


def nearest(layer: Layer, bits: int) -> torch.Tensor:
    most = 2 ** (bits - 1) - 1
    return torch.round(layer.weight / layer.scale.unsqueeze(2)).clamp(-most, most)


def learn(layer: Layer, x: torch.Tensor, bits: int, steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    exact = layer.outputs(layer.weight, x)
    return adaround(layer, x, exact, bits, steps, torch.Generator().manual_seed(0)), exact


def test_the_rectified_sigmoid_and_its_inverse_as_in_the_paper():
    for v in torch.linspace(-8, 8, 33):
        want = min(1.0, max(0.0, 1 / (1 + math.exp(-float(v))) * (1.1 - -0.1) + -0.1))
        assert float(rectified(v)) == pytest.approx(want, abs=1e-6)
    h = torch.linspace(0, 0.999, 50)
    torch.testing.assert_close(rectified(unrectified(h)), h, rtol=0, atol=1e-6)
    assert rectified(torch.tensor([-5.0, 5.0])).tolist() == [0.0, 1.0]


def test_the_regulariser_equals_a_loop_and_vanishes_at_decisions():
    h = torch.rand(3, 5, generator=torch.Generator().manual_seed(0))
    for beta in (20.0, 7.5, 2.0):
        want = sum(1 - abs(2 * float(x) - 1) ** beta for x in h.flatten())
        assert float(regulariser(h, beta)) == pytest.approx(want, rel=1e-5)
    assert float(regulariser(torch.tensor([0.0, 1.0]), 3.0)) == 0.0


def test_the_exponent_is_annealed_after_the_warm_up():
    assert beta_at(19, 100) is None
    assert beta_at(20, 100) == 20.0
    assert beta_at(99, 100) == pytest.approx(2.0)
    assert 2.0 < beta_at(60, 100) < 20.0


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 999), st.sampled_from([1, 3]), st.integers(1, 5), st.integers(2, 9), st.sampled_from([3, 4, 8]),
       st.integers(1, 30))
def test_no_output_is_worse_than_nearest_and_none_is_further_than_a_step(seed, groups, outputs, inputs, bits, steps):
    layer, x = drawn(seed, groups, outputs, inputs, bits), correlated(seed, groups, 40, inputs)
    q, exact = learn(layer, x, bits, steps)
    assert q.dtype == torch.int8 and q.shape == layer.weight.shape
    assert bool((layer.errors(q, x, exact) <= layer.errors(nearest(layer, bits), x, exact)).all())
    assert bool(((q - layer.weight / layer.scale.unsqueeze(2)).abs() < 1 + 1e-4).all())


def test_correlated_inputs_are_reconstructed_better_than_by_nearest():
    layer, x = drawn(0, 1, 16, 64, 4), correlated(0, 1, 1024, 64)
    q, _ = learn(layer, x, 4, 500)
    fresh = correlated(0, 1, 2048, 64)[:, 1024:]
    for inputs, most in ((x, 0.5), (fresh, 0.55)):
        outputs = layer.outputs(layer.weight, inputs)
        ratio = layer.errors(q, inputs, outputs).sum() / layer.errors(nearest(layer, 4), inputs, outputs).sum()
        assert float(ratio) < most


def test_most_of_what_the_best_of_all_roundings_gains():
    """Nine inputs, as a depthwise kernel has, can be rounded in 512 ways: all are tried, for 24 outputs."""
    layer, x = drawn(5, 24, 1, 9, 4, lambda y: y), correlated(5, 24, 200, 9)
    q, exact = learn(layer, x, 4, 600)
    below = torch.floor(layer.weight / layer.scale.unsqueeze(2))
    best = torch.stack([layer.errors((below + torch.tensor(up)).clamp(-7, 7), x, exact)
                        for up in itertools.product((0, 1), repeat=9)]).amin(0)
    start, end = layer.errors(nearest(layer, 4), x, exact), layer.errors(q, x, exact)
    assert bool((end >= best - 1e-6).all())
    assert float((start - end).sum() / (start - best).sum()) > 0.75


def test_groups_are_separate_layers():
    layer, x = drawn(3, 4, 2, 9, 4), correlated(3, 4, 300, 9)
    exact = layer.outputs(layer.weight, x)
    got = layer.errors(nearest(layer, 4), x, exact)
    for g in range(4):
        for o in range(2):
            q = nearest(layer, 4)[g, o] * layer.scale[g, o]
            y = torch.relu(x[g] @ q + layer.bias[g, o])
            want = torch.relu(x[g] @ layer.weight[g, o] + layer.bias[g, o])
            assert float(got[g, o]) == pytest.approx(float((y - want).square().mean()), rel=1e-4, abs=1e-7)
