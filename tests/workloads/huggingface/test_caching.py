from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("transformers")

from tests.artifacts.test_generator import MAKERS, WORDS

from thrifty.workloads.huggingface.caching import CachedStep, CacheShape, from_int8, to_int8


def naive(x):
    """Numbers of one token and head at a time, in numpy's float64."""
    q, scale = np.zeros(x.shape, np.int8), np.zeros((*x.shape[:-1], 1))
    for at in np.ndindex(x.shape[:-1]):
        peak = max(abs(float(v)) for v in x[at])
        scale[at] = peak / 127
        for i, value in enumerate(x[at]):
            q[(*at, i)] = round(float(value) / (peak / 127)) if peak else 0
    return q, scale


@settings(deadline=None, max_examples=30)
@given(st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 17)), st.sampled_from([1e-4, 1.0, 300.0]),
       st.sampled_from([torch.float32, torch.bfloat16, torch.float16]), st.integers(0, 99))
def test_rounding_is_that_of_the_maths(sizes, size, dtype, seed):
    x = (torch.randn(sizes, generator=torch.Generator().manual_seed(seed)) * size).to(dtype)
    x[0, 0] = 0
    q, scale = to_int8(x)
    expected, steps = naive(x.float().numpy())
    assert q.dtype == torch.int8 and scale.dtype == torch.float32 and scale.shape == (*sizes[:-1], 1)
    assert (q.numpy() - expected.astype(int) != 0).mean() < 0.02, "only what lies half way may go the other way"
    np.testing.assert_allclose(scale.numpy(), steps, rtol=1e-5, atol=1e-13)
    assert ((from_int8(q, scale) - x.float()).abs() <= 0.501 * scale).all()


def said(body, numbers, ids, prompt):
    """Logits after the prompt and after each token that follows it, all given; and the cache at the end."""
    shape = CacheShape.of(body, 48, numbers)
    step = CachedStep(body, shape)
    cache = [torch.zeros_like(x) for x in step.example(prompt)[3:]]
    with torch.no_grad():
        logits, *cache = step(ids[None, :prompt], torch.tensor([0]), torch.tensor([prompt - 1]), *cache)
        found = [logits]
        for done in range(prompt, len(ids)):
            logits, *cache = step(ids[None, done:done + 1], torch.tensor([done]), torch.tensor([0]), *cache)
            found.append(logits)
    return torch.cat(found), cache


@pytest.mark.parametrize(("spread", "most"), [(0.1, 2e-2), (0.3, 4e-2)])
@pytest.mark.parametrize("maker", MAKERS)
def test_eight_bits_say_nearly_the_same(maker, spread, most):
    """Weights of the larger spread make attention sharp, which magnifies what keys lose."""
    body = MAKERS[maker](spread)
    same, lost = [], []
    for seed in range(4):
        ids = torch.randint(0, WORDS, (40,), generator=torch.Generator().manual_seed(seed))
        exact, _ = said(body, "fp32", ids, 9)
        near, _ = said(body, "int8", ids, 9)
        whole = body(ids[None]).logits[0, 8:]
        assert torch.allclose(exact, whole, atol=1e-3, rtol=1e-3)
        same.append((exact.argmax(-1) == near.argmax(-1)).float().mean())
        lost.append((near - exact).norm() / exact.norm())
    assert max(lost) < most
    assert sum(same) / len(same) > 0.95


def test_a_token_is_rounded_once():
    """What was written at a token's turn stays bit for bit, and what comes later is still empty."""
    ids = torch.randint(0, WORDS, (30,), generator=torch.Generator().manual_seed(1))
    body = MAKERS["llama"]()
    _, early = said(body, "int8", ids[:12], 9)
    _, late = said(body, "int8", ids, 9)
    for before, after in zip(early, late, strict=True):
        assert torch.equal(before[:, :, :, :12], after[:, :, :, :12])
        assert not torch.equal(before[:, :, :, 12:30], after[:, :, :, 12:30])
    assert [x.dtype for x in late] == [torch.int8, torch.float32] * 2
    assert all(x[:, :, :, 30:].abs().max() < 1e-10 for x in late)
