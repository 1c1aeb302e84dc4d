from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.numerics.test_gptq import weights

from thrifty.numerics.grid import per_group
from thrifty.numerics.grouped import rtn
from thrifty.numerics.hqq import hqq


def missed(weight: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return (weight - other).abs().pow(0.7)


def naive(row: list[float], scale: float, zero: int, most: int) -> tuple[float, int]:
    """One group, number by number."""
    def nearest(w: float, s: float, z: int) -> int:
        return min(max(round(w / s) + z, 0), most)

    def errors(s: float, z: int) -> tuple[float, float]:
        lost = [w - s * (nearest(w, s, z) - z) for w in row]
        return sum(abs(x) ** 0.7 for x in lost), abs(sum(lost))

    s, z, beta = scale, zero, 1.0
    best, least = (s, z), errors(s, z)
    for _ in range(20):
        q = [nearest(w, s, z) for w in row]
        aimed = []
        for w, n in zip(row, q, strict=True):
            x = (w - s * (n - z)) / s
            spared = max(0.0, abs(x) - max(abs(x), 1e-12) ** -0.3 / beta) * (1 if x > 0 else -1)
            aimed.append(w - s * spared)
        z = min(max(round(sum(n - a / s for n, a in zip(q, aimed, strict=True)) / len(row)), 0), most)
        s = sum((n - z) * a for n, a in zip(q, aimed, strict=True)) / sum((n - z) ** 2 for n in q)
        beta *= 1.01
        found = errors(s, z)
        if found[0] < least[0] and found[1] <= least[1]:
            best, least = (s, z), found
    return best


@pytest.mark.parametrize("bits", [3, 4])
def test_it_is_the_iteration_number_by_number(bits):
    weight = weights(bits, 4, 48) + 0.2
    weight[0, 5] = 9  # far off
    found = hqq(weight, bits, 24)
    scale, zero = per_group(weight, bits, 24)
    for i in range(4):
        for g in range(2):
            group = weight[i, 24 * g:24 * g + 24].tolist()
            s, z = naive(group, float(scale[i, g]), int(zero[i, g]), 2**bits - 1)
            assert float(found.scale[i, g]) == pytest.approx(s, rel=1e-4) and int(found.zero[i, g]) == z


@given(st.integers(0, 10_000), st.sampled_from([3, 4]), st.sampled_from([8, 16, 33]))
def test_no_group_is_missed_by_more_than_by_rounding_to_nearest(seed, bits, group):
    weight = weights(seed, 5, 2 * group)
    ours, plain = hqq(weight, bits, group).dequantized(), rtn(weight, bits, group).dequantized()
    per = [missed(weight, other).unflatten(1, (-1, group)).sum(2) for other in (ours, plain)]
    assert bool((per[0] <= per[1] * 1.0001).all())
    sums = [(weight - other).unflatten(1, (-1, group)).sum(2).abs() for other in (ours, plain)]
    assert bool((sums[0] <= sums[1] + 1e-4).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_it_means_the_same_for_small_weights(dtype):
    weight = weights(0, 3, 32).to(dtype)
    found, small = hqq(weight, 4, 16), hqq(weight / 1024, 4, 16)
    assert torch.equal(found.q, small.q)
    torch.testing.assert_close(found.scale, small.scale * 1024)


def test_zeros_stay_zero():
    assert not hqq(torch.zeros(2, 16), 4, 16).dequantized().any()
