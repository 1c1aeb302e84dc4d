"""The law of any module, for training that rounds: what leaves it answers as the same training without it, within rounding."""

from __future__ import annotations

import copy
import tempfile
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from tests.generated_models import Drawn, draw
from tests.rounding_noise import ROUNDING, SLACK, noisy
from thrifty import AdamW, Loss, Qat, Train, fit
from thrifty.errors import ThriftyError
from thrifty.numerics.flat import distance, tensors_of
from thrifty.numerics.schemes import INTEGERS
from thrifty.runs import checkpoint
from thrifty.runs.checkpoint import Checkpoint

SCHEMES = tuple(INTEGERS)
STEPS = 2
"""So few, at so small a learning rate, that weights stay: what is left is what the method does to a model."""


class Requests(Dataset[Any]):
    def __init__(self, inputs: tuple[Tensor, ...]) -> None:
        self.inputs = inputs

    def __len__(self) -> int:
        return len(self.inputs[0])

    def __getitem__(self, i: int) -> Any:
        row = tuple(x[i] for x in self.inputs)
        return (row if len(row) > 1 else row[0]), torch.tensor(0)


class Small(Loss):
    """The mean square of all that a model gives."""

    def __call__(self, outputs: Any, batch: Any) -> tuple[Tensor, Tensor]:
        found = [x.real if x.is_complex() else x for x in tensors_of(outputs)]
        return torch.stack([x.square().mean() for x in found]).sum() * len(batch[1]), torch.tensor(float(len(batch[1])))

    def logits(self, outputs: Any, batch: Any) -> Any:
        return tensors_of(outputs)[0], batch[1] >= 0


def trained(drawn: Drawn, seed: int, *methods: Any) -> Any:
    torch.manual_seed(seed)
    model = drawn.make()
    for module in model.modules():  # its masks are drawn apart where something else draws too
        if isinstance(module, nn.Dropout | nn.MultiheadAttention | nn.RNNBase):
            setattr(module, "p" if isinstance(module, nn.Dropout) else "dropout", 0.0)
    settings = Train(AdamW(lr=1e-6, weight_decay=0.0), steps=STEPS, batch_size=32)
    return fit(model, [*settings.methods, *methods], Requests(drawn.inputs(STEPS * 32, 1)), Small(), settings=settings)


def law(seed: int) -> tuple[float, float] | str:
    """Hold the scheme whose turn it is to the law on one model.

    Returns:
        (the error of its answers, that of noise), or the words of its refusal.
    """
    drawn, scheme = draw(seed), SCHEMES[seed % len(SCHEMES)]
    requests = drawn.asked(24, 5)
    method = Qat(scheme, freeze=0.0, group=32) if INTEGERS[scheme].grouped else Qat(scheme, freeze=0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = trained(drawn, seed).model.eval()
        try:
            done = trained(drawn, seed, method)
        except ThriftyError as error:
            assert "\n" not in str(error).strip(), str(error)
            return str(error)
        with torch.no_grad(), tempfile.TemporaryDirectory() as place:
            got = copy.deepcopy(done.model)(*requests)
            checkpoint.save(Checkpoint("", "", tuple((str(transform), plan) for transform, plan in done.plans)), done.model,
                            Path(place))
            torch.manual_seed(seed + 1)
            again = checkpoint.load(Path(place), drawn.make())[1].eval()
            assert distance(again(*requests), got) < 1e-5, "a reload answers something else"
            return distance(got, plain(*requests)), noisy(plain, ROUNDING[scheme], requests)


def held(seed: int) -> bool:
    found = law(seed)
    if isinstance(found, str):
        return False
    off, noise = found
    assert off <= SLACK * noise, f"{SCHEMES[seed % len(SCHEMES)]} on {draw(seed).words}: off by {off:.3g}, noise by {noise:.3g}"
    return True


@pytest.mark.parametrize("seed", range(0, 100, 3))
def test_what_leaves_training_answers_as_the_same_training_without_rounding_or_says_why_not(seed):
    held(seed)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("start", range(0, 2000, 100))
def test_the_law_over_many_models(start):
    assert sum(held(seed) for seed in range(start, start + 100)) > 60
