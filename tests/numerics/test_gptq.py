from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from thrifty.numerics.gptq import NotDefinite, gptq
from thrifty.numerics.grid import per_group
from thrifty.numerics.grouped import output_error, rtn


def correlated(seed: int, rows: int, inputs: int) -> torch.Tensor:
    """Inputs [rows, inputs] of a few strong directions and a little of all, as layers read them."""
    generator = torch.Generator().manual_seed(seed)
    strong = torch.randn(rows, inputs // 4, generator=generator) @ torch.randn(inputs // 4, inputs, generator=generator)
    return strong + 0.3 * torch.randn(rows, inputs, generator=generator)


def weights(seed: int, out: int, inputs: int) -> torch.Tensor:
    return torch.randn(out, inputs, generator=torch.Generator().manual_seed(seed + 1000))


def naive(weight, x, bits, group, reordered, damping=0.01):
    """Optimal brain quantization in a given order: after each column its row and column leave the inverse Hessian."""
    w, h = weight.double().clone(), 2 * x.double().T @ x.double()
    dead = [j for j in range(len(h)) if h[j, j] == 0]
    for j in dead:
        h[j, j] = 1  # other data may bring the input to life: the weight stays
    order = sorted(range(len(h)), key=lambda j: -float(h[j, j])) if reordered else list(range(len(h)))
    scale, zero = per_group(w.float(), bits, group)
    inverse = torch.linalg.inv(h + damping * h.diagonal().mean() * torch.eye(len(h), dtype=h.dtype))
    q = torch.zeros_like(w)
    for j in order:
        s, z = scale[:, j // group].double(), zero[:, j // group].double()
        q[:, j] = (torch.round(w[:, j] / s) + z).clamp(0, 2**bits - 1)
        error = (w[:, j] - s * (q[:, j] - z)) / inverse[j, j]
        w -= torch.outer(error, inverse[j])
        inverse = inverse - torch.outer(inverse[:, j], inverse[j]) / inverse[j, j]
        inverse[j, j] = 1  # it is done: nothing of it is read again
    return q


@pytest.mark.parametrize("reordered", [True, False])
@pytest.mark.parametrize(("out", "inputs", "group", "bits"), [(5, 24, 8, 4), (3, 33, 11, 3), (1, 8, 8, 8), (7, 40, 40, 4)])
def test_it_is_optimal_brain_quantization_column_by_column(out, inputs, group, bits, reordered):
    x = correlated(bits, 200, inputs)
    x[:, 3] = 0  # nothing reads it
    weight = weights(bits, out, inputs)
    found = gptq(weight, (x.T @ x).double(), bits, group, reordered=reordered, block=10)
    expected = naive(weight, x, bits, group, reordered)
    assert torch.equal(found.q.double(), expected)
    off = (found.dequantized()[:, 3] - weight[:, 3]).abs()  # other data may bring the input to life: rounded to nearest
    assert bool((off <= 0.51 * found.scale[:, 3 // group]).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_blocks_change_nothing(dtype):
    weight, x = weights(0, 6, 64).to(dtype), correlated(0, 300, 64)
    moment = (x.T @ x).double()
    whole, parts = (gptq(weight, moment, 4, 32, block=block) for block in (64, 7))
    assert torch.equal(whole.q, parts.q)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([3, 4]), st.booleans())
def test_outputs_change_less_than_by_rounding_to_nearest(seed, bits, reordered):
    x, weight = correlated(seed, 256, 32), weights(seed, 9, 32)
    moment = (x.T @ x).double()
    solved, plain = gptq(weight, moment, bits, 16, reordered=reordered), rtn(weight, bits, 16)
    assert output_error(weight, solved.dequantized(), moment) < output_error(weight, plain.dequantized(), moment)


def test_smoothed_columns_are_those_of_a_scaled_layer():
    x, weight = correlated(1, 256, 32), weights(1, 4, 32)
    smooth = torch.rand(32, generator=torch.Generator().manual_seed(2)) + 0.5
    found = gptq(weight, (x.T @ x).double(), 4, 16, smooth=smooth)
    scaled = (x / smooth).double()
    assert torch.equal(found.q, gptq(weight * smooth, scaled.T @ scaled, 4, 16).q)


def test_a_moment_that_is_none_is_an_error():
    moment = torch.eye(8, dtype=torch.float64)
    moment[0, 1] = moment[1, 0] = 5
    with pytest.raises(NotDefinite):
        gptq(weights(0, 2, 8), moment, 4, 8)
