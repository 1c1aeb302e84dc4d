from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from thrifty.measure.predict import PredictionError, predictor
from thrifty.measure.process import Worker
from thrifty.measure.sides import CallableSide

FACTORIES = Path(__file__).with_name("factories.py")


def test_examples_are_split_padded_and_put_together() -> None:
    with Worker(CallableSide(f"{FACTORIES}:fixed_four")) as worker:
        worker.load()
        predict = predictor(worker, batch=4)
        for n in (1, 4, 10):
            x = torch.arange(2.0 * n).reshape(n, 2)
            found = predict((x,))
            assert isinstance(found, torch.Tensor)
            assert torch.equal(found, 2 * x)


def test_any_batch_goes_in_one_call_and_arrays_are_taken() -> None:
    with Worker(CallableSide(f"{FACTORIES}:double")) as worker:
        worker.load()
        assert predictor(worker)((np.arange(5),)).tolist() == [0, 2, 4, 6, 8]


def test_outputs_that_are_not_the_examples_are_refused() -> None:
    with Worker(CallableSide(f"{FACTORIES}:scalar")) as worker:
        worker.load()
        with pytest.raises(PredictionError, match="given 3 examples but an output has shape"):
            predictor(worker)((np.ones(3),))


def test_a_batch_below_one_is_refused() -> None:
    with (
        Worker(CallableSide(f"{FACTORIES}:double")) as worker,
        pytest.raises(ValueError, match="batch must be"),
    ):
        predictor(worker, batch=0)
