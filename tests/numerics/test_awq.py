from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.numerics.test_gptq import correlated, weights

from thrifty.numerics.awq import awq, awq_scales
from thrifty.numerics.clipping import clips
from thrifty.numerics.gptq import gptq
from thrifty.numerics.grouped import output_error, rtn


def outliers(seed: int, rows: int, inputs: int) -> torch.Tensor:
    x = correlated(seed, rows, inputs)
    x[:, seed % inputs] *= 20
    return x


def naive(weight: torch.Tensor, x: torch.Tensor, bits: int, group: int) -> torch.Tensor:
    """The search of the paper on the inputs themselves: scales, then the clipping of each row's every group."""
    exact, best, scales = x @ weight.T, float("inf"), None
    for step in range(20):
        s = x.abs().mean(0) ** (step / 20)
        s = s / (s.max() * s.min()) ** 0.5
        error = float(((x / s) @ rounded(weight * s, bits, group).T - exact).double().square().sum())
        if error < best:
            best, scales = error, s
    assert scales is not None
    w, x = weight * scales, x / scales
    result = torch.empty_like(w)
    for row in range(len(w)):
        for start in range(0, w.shape[1], group):
            part, reads = w[row:row + 1, start:start + group], x[:, start:start + group]
            tried = [rounded(part, bits, group, 1 - 0.05 * i) for i in range(10)]
            errors = [float(((one - part) @ reads.T).double().square().sum()) for one in tried]
            result[row, start:start + group] = tried[errors.index(min(errors))][0]
    return result / scales


def rounded(weight: torch.Tensor, bits: int, group: int, ratio: float = 1.0) -> torch.Tensor:
    return rtn(weight, bits, group, ratio).dequantized()


@pytest.mark.parametrize(("out", "inputs", "group", "bits"), [(5, 24, 8, 4), (3, 33, 11, 3), (6, 32, 32, 4)])
def test_it_is_the_search_of_the_paper(out, inputs, group, bits):
    x, weight = outliers(bits, 150, inputs), weights(bits, out, inputs)
    moment = (x.double().T @ x.double())
    scales = awq_scales([weight], moment, x.abs().mean(0), bits, group)
    torch.testing.assert_close(awq(weight, moment, scales, bits, group).dequantized(), naive(weight, x, bits, group))


def test_layers_that_read_the_same_share_their_scales():
    x, first, second = outliers(0, 150, 32), weights(0, 4, 32), weights(1, 6, 32)
    moment = (x.double().T @ x.double())
    together = awq_scales([first, second], moment, x.abs().mean(0), 4, 16)
    assert torch.equal(together, awq_scales([torch.cat([first, second])], moment, x.abs().mean(0), 4, 16))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([3, 4]))
def test_outputs_change_less_than_by_rounding_to_nearest(seed, bits):
    x, weight = outliers(seed, 256, 32), weights(seed, 9, 32)
    moment = (x.double().T @ x.double())
    scales = awq_scales([weight], moment, x.abs().mean(0), bits, 16)
    found = awq(weight, moment, scales, bits, 16)
    assert output_error(weight, found.dequantized(), moment) < output_error(weight, rounded(weight, bits, 16), moment)


@given(st.integers(0, 10_000))
def test_clipping_costs_no_group_anything(seed):
    x, weight = correlated(seed, 64, 16), weights(seed, 3, 16)
    moment = (x.double().T @ x.double())
    ratio = clips(weight, moment, 3, 16)
    for row in range(3):
        one = weight[row:row + 1]
        clipped, plain = (rtn(one, 3, 16, r).dequantized() for r in (ratio[row:row + 1], 1.0))
        assert output_error(one, clipped, moment) <= output_error(one, plain, moment) * 1.001


@pytest.mark.parametrize("algorithm", ["gptq", "awq"])
@pytest.mark.parametrize("bits", [3, 4])
def test_inputs_that_were_not_seen_change_less_on_nearly_every_layer(algorithm, bits):
    below = 0
    for seed in range(40):
        x, weight = outliers(seed, 512, 32), weights(seed, 9, 32)
        seen, held = ((part.double().T @ part.double()) for part in x.split(256))
        scales = awq_scales([weight], seen, x[:256].abs().mean(0), bits, 16)
        found = awq(weight, seen, scales, bits, 16) if algorithm == "awq" else gptq(weight, seen, bits, 16)
        below += output_error(weight, found.dequantized(), held) < output_error(weight, rounded(weight, bits, 16), held)
    assert below >= 38
