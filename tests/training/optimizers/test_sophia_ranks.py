"""Sophia over two processes: what one would do with both halves of the batch."""

from __future__ import annotations

from pathlib import Path

import torch
from tests.training.distributed.ranks import together
from torch import Tensor, nn

from thrifty import CrossEntropy, Sophia
from thrifty.recipes.phases import Train
from thrifty.recipes.ranks import Alone, Ranks
from thrifty.training.optimizers import curvature
from thrifty.training.session import TrainingSession


def certain(logits: Tensor, noise: torch.Generator) -> Tensor:
    """In place of a draw: the noise of ranks differs by design, the labels here may not."""
    return logits.argmax(-1)


def curvatures(ranks: Ranks) -> Tensor:
    """h after an estimate on this rank's rows, of which the ranks have unequally many valid; gamma after another."""
    curvature.draw = certain
    torch.manual_seed(0)
    model: nn.Module = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    generator = torch.Generator().manual_seed(1)
    x, target = torch.randn(12, 5, generator=generator), torch.arange(12) % 3
    target[8:] = -100
    mine = slice(ranks.index * 12 // ranks.count, (ranks.index + 1) * 12 // ranks.count)
    session = TrainingSession(model, [Sophia(gamma="auto", lr=1e-9, every=1, estimator_batch=1.0)], CrossEntropy(), steps=2,
                              settings=Train(warmup=0), ranks=ranks)
    for group in session.optimizer.param_groups:
        group["gamma"] = 1e-3
    session.step(((x[mine],), target[mine]))
    found = torch.cat([session.optimizer.state[p]["h"].flatten() for p in model.parameters()])
    session.step(((x[mine],), target[mine]))
    gamma = session.optimizer.param_groups[0]["gamma"]
    assert gamma > 1e-3  # far too little was within the bound
    return torch.cat([found, torch.tensor([gamma])])


def test_two_ranks_estimate_what_one_does(tmp_path: Path) -> None:
    both = together(tmp_path, 2, "tests.training.optimizers.test_sophia_ranks", "curvatures").found("curvatures")
    before = curvature.draw
    try:
        alone = curvatures(Alone())
    finally:
        curvature.draw = before
    for found in both:
        torch.testing.assert_close(found, alone)
