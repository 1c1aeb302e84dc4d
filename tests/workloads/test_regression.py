from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics
from torch import Tensor
from torch.utils.data import TensorDataset

from thrifty.errors import WorkloadError
from thrifty.measure.statistics import paired_drop
from thrifty.workloads.quality import Batched, Quality, Scores
from thrifty.workloads.regression import R2, RMSE, MeanAbsoluteError


def judged(quality: Quality, outputs: Tensor, target: Tensor) -> Scores:
    return quality(lambda inputs: outputs[inputs[0]], TensorDataset(torch.arange(len(target)), target))


def drawn(n: int, outputs: int, seed: int, shift: float = 0.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target = torch.randn(n, outputs, generator=generator, dtype=torch.float64) + shift
    return target + 0.5 * torch.randn(n, outputs, generator=generator, dtype=torch.float64), target


@given(st.integers(2, 30), st.integers(1, 4), st.integers(1, 40), st.integers(0, 2**31), st.sampled_from([0.0, 1000.0]))
def test_values_are_scikit_learns(n: int, outputs: int, batch_size: int, seed: int, shift: float) -> None:
    z, y = drawn(n, outputs, seed, shift)
    assert judged(MeanAbsoluteError(batch_size), z, y).value == pytest.approx(metrics.mean_absolute_error(y, z))
    assert judged(R2(batch_size), z, y).value == pytest.approx(metrics.r2_score(y, z), rel=1e-6, abs=1e-9)
    assert judged(RMSE(batch_size), z, y).value == pytest.approx(metrics.root_mean_squared_error(y.flatten(), z.flatten()))


@pytest.mark.parametrize(("quality", "oracle"), [(RMSE(), metrics.root_mean_squared_error), (R2(), metrics.r2_score)])
def test_resampled_values_are_those_of_the_repeated_examples(quality: Batched, oracle: Any) -> None:
    z, y = (x[:, 0] for x in drawn(25, 1, 1, 10.0))
    scores = judged(quality, z, y)
    counts = np.random.default_rng(0).multinomial(25, np.full(25, 1 / 25), 20)
    values = scores.statistic(scores.numerator.reshape(25, -1), scores.denominator.reshape(25, -1),  # type: ignore[misc]
                              counts.astype(float))
    repeated = [np.repeat(np.arange(25), row) for row in counts]
    np.testing.assert_allclose(values, [oracle(y[i], z[i]) for i in repeated])


@pytest.mark.parametrize("quality", [MeanAbsoluteError(), RMSE(), R2()])
@pytest.mark.parametrize(("outputs", "target"), [((9, 1), (9,)), ((9,), (9, 1)), ((9, 1, 4), (9, 4)), ((9, 3), (9, 3))])
def test_a_dimension_of_one_is_not_broadcast(quality: Quality, outputs: Any, target: Any) -> None:
    y = torch.randn(target)
    z = (y + 1).reshape(outputs)
    assert judged(quality, z, y).value == pytest.approx(judged(quality, y + 1, y).value)


@pytest.mark.parametrize("quality", [MeanAbsoluteError(), RMSE(), R2()])
def test_the_best_constant_answer_is_the_best(quality: Quality) -> None:
    _, y = drawn(50, 2, 3, 5.0)
    data = TensorDataset(torch.arange(50), y)
    found = quality.constant(data)
    assert found is not None
    best = y.median(0).values if isinstance(quality, MeanAbsoluteError) else y.mean(0)
    assert judged(quality, best.expand_as(y), y).value == pytest.approx(found, rel=0.02, abs=1e-9)
    sign = 1 if quality.higher_is_better else -1
    for off in (0.3, -0.3):
        assert sign * judged(quality, (best + off).expand_as(y), y).value < sign * found


def test_a_noisier_model_loses_significantly_and_an_equal_one_does_not() -> None:
    z, y = drawn(400, 1, 5)
    for quality in (MeanAbsoluteError(), RMSE(), R2()):
        reference = judged(quality, z, y)
        worse = paired_drop(reference, judged(quality, y + 1.5 * (z - y), y), quality.higher_is_better)
        assert worse.low is not None and worse.low > 0
        alike = judged(quality, z + 1e-3 * torch.randn(z.shape, generator=torch.Generator().manual_seed(0)), y)
        drop = paired_drop(reference, alike, quality.higher_is_better)
        assert drop.low is not None and drop.high is not None and drop.low < 0 < drop.high < 0.01


def test_what_has_no_value_or_does_not_fit_is_told() -> None:
    assert np.isnan(judged(R2(), torch.randn(4), torch.ones(4)).value)
    with pytest.raises(WorkloadError, match=r"outputs \[4, 2\] and targets \[4\] do not fit: RMSE\(\) compares"):
        judged(RMSE(), torch.randn(4, 2), torch.ones(4))
    with pytest.raises(WorkloadError, match="the targets are a tuple but RMSE"):
        RMSE()(lambda inputs: inputs[0], [(torch.zeros(2), "a"), (torch.zeros(2), "b")])  # type: ignore[arg-type]
