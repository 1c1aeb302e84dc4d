from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from thrifty.numerics.grid import Affine, affine, from_group, per_group, per_row, per_token, rows, to_group


def floats(seed: int, *shape: int, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


@given(st.integers(0, 999), st.integers(1, 7), st.integers(1, 33), st.floats(1e-4, 1e4))
def test_weights_round_to_half_a_step(seed, out, inputs, scale):
    weight = floats(seed, out, inputs, scale=scale)
    q, s = per_row(weight)
    assert q.dtype == torch.int8 and int(q.min()) >= -127
    assert bool(((rows(q, s) - weight).abs() <= s[:, None] * 0.5001).all())


def test_weights_equal_torchaos():
    observers = pytest.importorskip("torchao.quantization.pt2e.observer")
    weight = floats(0, 24, 8, 3, 3)
    observer = observers.PerChannelMinMaxObserver(ch_axis=0, dtype=torch.int8, qscheme=torch.per_channel_symmetric,
                                                  quant_min=-127, quant_max=127)
    observer(weight)
    scale, zero = observer.calculate_qparams()
    theirs = torch.fake_quantize_per_channel_affine(weight, scale, zero.int(), 0, -127, 127)
    torch.testing.assert_close(rows(*per_row(weight)), theirs, rtol=1e-6, atol=1e-7)


@given(st.floats(-50, 50), st.floats(-50, 50), st.integers(0, 99))
def test_rounding_twice_is_rounding_once_and_keeps_zero(a, b, seed):
    low, high = min(a, b), max(a, b) + 1e-3
    grid = Affine.of(low, high)
    scale, zero = torch.tensor(grid.scale), torch.tensor(float(grid.zero))
    x = floats(seed, 64, scale=20)
    once = affine(x, scale, zero)
    assert torch.equal(affine(once, scale, zero), once)
    assert float(affine(torch.zeros(1), scale, zero)) == 0.0
    inside = (x >= min(low, 0)) & (x <= max(high, 0))
    assert bool(((once - x).abs()[inside] <= grid.scale * 1.01).all())


def test_tokens_equal_a_loop():
    x = floats(3, 5, 9, 17)
    q, scale = per_token(x)
    for i in range(5):
        for j in range(9):
            peak = max(abs(float(v)) for v in x[i, j])
            assert float(scale[i, j, 0]) == pytest.approx(peak / 127, rel=1e-6)
            for k in range(17):
                assert abs(float(q[i, j, k]) - float(x[i, j, k]) / peak * 127) <= 0.5001


def test_a_token_of_zeros_stays_zero():
    q, scale = per_token(torch.zeros(2, 4))
    assert not q.any()
    assert torch.isfinite(scale).all()


@given(st.integers(0, 999), st.sampled_from([3, 4, 8]), st.sampled_from([8, 16]), st.floats(1e-3, 1e3), st.floats(-3, 3))
def test_groups_round_to_half_a_step_and_keep_zero(seed, bits, group, scale, shift):
    weight = floats(seed, 3, 48, scale=scale) + shift * scale
    weight[0, :5] = 0
    s, z = per_group(weight, bits, group)
    assert s.shape == z.shape == (3, 48 // group) and z.dtype == torch.uint8
    q = to_group(weight, s, z, bits)
    assert int(q.max()) < 2**bits
    back = from_group(q, s, z)
    # Half a step, and half of one more where the zero was rounded and an extreme fell off the grid.
    assert bool(((back - weight).abs().unflatten(1, (-1, group)) <= s.unsqueeze(2) * 1.001).all())
    assert not back[0, :5].any()


def test_groups_equal_torchaos():
    primitives = pytest.importorskip("torchao.quantization.quant_primitives")
    weight = floats(1, 6, 64) + 0.3
    s, z = primitives.choose_qparams_affine(weight, primitives.MappingType.ASYMMETRIC, (1, 32), torch.int32, 0, 15,
                                            eps=1e-12, scale_dtype=torch.float32, zero_point_dtype=torch.int32)
    theirs = primitives.dequantize_affine(
        primitives.quantize_affine(weight, (1, 32), s, z, torch.int32, 0, 15), (1, 32), s, z, torch.int32, 0, 15)
    ours = per_group(weight, 4, 32)
    torch.testing.assert_close(from_group(to_group(weight, *ours, 4), *ours), theirs, rtol=1e-6, atol=1e-7)
