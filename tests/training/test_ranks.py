"""Two processes that train together: what one would do with the whole batch, and what happens when one fails."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import TensorDataset

from tests.training.distributed.ranks import together
from thrifty import AdamW, CrossEntropy, Sophia, ThriftyError, Train, TrainingMethod, fit
from thrifty.recipes.ranks import Alone, Ranks
from thrifty.training.data import Loader
from thrifty.training.optimizers import curvature
from thrifty.training.session import TrainingSession
from thrifty.training.setup import Setup

HERE = "tests.training.test_ranks"


# -- what the ranks run -----------------------------------------------------------------------------------------


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 3))


def data() -> TensorDataset:
    """52 examples, of which some have no valid target: the halves of a batch have different weights."""
    generator = torch.Generator().manual_seed(101)
    target = torch.arange(52) % 3
    target[torch.randperm(52, generator=generator)[:17]] = -100
    return TensorDataset(torch.randn(52, 5, generator=generator), target)


def certain(logits: Tensor, noise: torch.Generator) -> Tensor:
    """In place of a draw: the noise of ranks differs by design, the labels here may not."""
    return logits.argmax(-1)


def trained(ranks: Ranks) -> dict[str, list[Tensor]]:
    """Losses and weights by two optimizers, one of them over micro-batches."""
    found = {}
    for method, accumulate in ((AdamW(lr=0.01), 2), (Sophia(lr=0.01, every=2), 1)):
        before, curvature.draw = curvature.draw, certain
        try:
            done = fit(net(), [method], data(), CrossEntropy(), batch_size=13, ranks=ranks,
                       settings=Train(steps=9, clip=0.5, accumulate=accumulate), evaluate=lambda model: float(ranks.index))
        finally:
            curvature.draw = before
        assert [point.quality for point in done.evaluations] == [0.0]  # the first rank's counts
        found[method.name] = [torch.tensor([loss for _, loss in done.history]), *(x.detach() for x in done.model.parameters())]
    return found


class Apart(nn.Module):
    """Each rank reaches a head of its own."""

    def __init__(self, index: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.heads, self.index = nn.ModuleList(nn.Linear(5, 3) for _ in range(3)), index

    def forward(self, x: Tensor) -> Tensor:
        return self.heads[self.index](x)  # type: ignore[no-any-return]


def unreached(ranks: Ranks) -> list[Tensor]:
    """Gradients of heads that one rank alone reached, and of one that none did."""
    model = Apart(ranks.index)
    session = TrainingSession(model, [AdamW()], CrossEntropy(), steps=1, ranks=ranks, settings=Train(clip=None))
    session.step(((torch.ones(2, 5),), torch.tensor([0, 1])))
    assert model.heads[2].weight.grad is None
    return [head.weight.grad for head in list(model.heads)[:2]]  # type: ignore[misc]


class Raises(TrainingMethod):
    """Raises on the second rank, while the first waits for it."""

    name = "raises"
    card = AdamW.card

    def update(self, session, proceed):  # type: ignore[no-untyped-def]
        if session.ranks.index == 1 and session.step_number == 3:
            raise ThriftyError("the disk is full")
        proceed()


def raising(ranks: Ranks) -> None:
    session = TrainingSession(net(), [AdamW()], CrossEntropy(), steps=9, ranks=ranks)
    session.methods.append(Raises())
    for _ in range(9):
        session.step(((torch.ones(2, 5),), torch.tensor([0, 1])))


def overflowing(ranks: Ranks) -> None:
    model = net()
    if ranks.index == 1:
        nn.init.constant_(model[2].bias, float("inf"))  # type: ignore[index, arg-type]
    fit(model, [AdamW()], data(), CrossEntropy(), batch_size=13, ranks=ranks)


def hanging(ranks: Ranks) -> None:
    if ranks.index == 1:
        time.sleep(8)
    ranks.any(True)


# -- tests ------------------------------------------------------------------------------------------------------


def test_two_ranks_train_what_one_does(tmp_path: Path) -> None:
    first, second = together(tmp_path, 2, HERE, "trained").found("trained")
    alone = trained(Alone())
    for name, tensors in alone.items():
        for a, b, want in zip(first[name], second[name], tensors, strict=True):
            assert torch.equal(a, b)  # both ranks end with the same model
            torch.testing.assert_close(a, want, rtol=2e-4, atol=2e-5)


@pytest.mark.slow
def test_what_one_rank_alone_reached_is_trained_on_both(tmp_path: Path) -> None:
    first, second = together(tmp_path, 2, HERE, "unreached").found("unreached")
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b) and bool(a.any())


def test_a_rank_that_raises_ends_both_with_its_error(tmp_path: Path) -> None:
    ended = together(tmp_path, 2, HERE, "raising")
    assert ended.failures[1] == ["ThriftyError", "the disk is full"]
    assert ended.failures[0] == ["RankFailed", "rank 1: ThriftyError: the disk is full"]
    assert ended.seconds < 40  # and not the minute that a rank would wait


def test_a_loss_that_is_not_finite_on_one_rank_ends_both_with_one_reason(tmp_path: Path) -> None:
    told = together(tmp_path, 2, HERE, "overflowing").failures
    assert told[0] == told[1] and told[0] is not None
    assert told[0][0] == "TrainingFailed" and "2.bias are no longer finite" in told[0][1]


@pytest.mark.slow
def test_a_rank_that_does_not_come_is_not_waited_for_without_end(tmp_path: Path) -> None:
    told = together(tmp_path, 2, HERE, "hanging", timeout=2.0).failures
    assert told[0] is not None and told[0][0] == "RankFailed" and "waited 2 s for the others" in told[0][1]


def test_every_rank_has_its_own_part_of_every_batch() -> None:
    class Of(Alone):
        def __init__(self, index: int) -> None:
            object.__setattr__(self, "_index", index)

        @property
        def index(self) -> int:
            return self._index  # type: ignore[attr-defined, no-any-return]

        @property
        def count(self) -> int:
            return 2

    whole = Loader(data(), 13, 5)
    parts = [Loader(data(), 13, 5, ranks=Of(i)) for i in range(2)]
    for want, *got in zip(*(loader.batches() for loader in (whole, *parts)), range(9), strict=False):
        batches = got[:2]
        assert torch.equal(want[0][0], torch.cat([inputs[0] for inputs, _ in batches]))
        assert torch.equal(want[1], torch.cat([target for _, target in batches]))


def test_more_ranks_than_examples_and_a_wrapped_model_are_refused() -> None:
    class Many(Alone):
        @property
        def count(self) -> int:
            return 64

    with pytest.raises(ThriftyError, match="a batch of 13 cannot be divided over 64 ranks and 1 micro-batches"):
        _ = Setup(Train(), data(), CrossEntropy(), batch_size=13, ranks=Many()).size
    wrapped = DistributedDataParallel.__new__(DistributedDataParallel)
    nn.Module.__init__(wrapped)
    with pytest.raises(ThriftyError, match="give the bare model"):
        TrainingSession(wrapped, [AdamW()], CrossEntropy(), steps=1)
