"""Sophia over two processes: what one would do with both halves of the batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from thrifty import CrossEntropy, Sophia
from thrifty.recipe import Train
from thrifty.training.loop import Fit
from thrifty.training.optimizers import curvature


def certain(logits: Tensor, noise: torch.Generator) -> Tensor:
    """In place of a draw: the noise of ranks differs by design, the labels here may not."""
    return logits.argmax(-1)


def curvatures(rank: int, ranks: int) -> Tensor:
    """h after an estimate on this rank's rows, of which the ranks have unequally many valid."""
    curvature.draw = certain
    torch.manual_seed(0)
    model: nn.Module = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    generator = torch.Generator().manual_seed(1)
    x, target = torch.randn(12, 5, generator=generator), torch.arange(12) % 3
    target[8:] = -100
    mine = slice(rank * 12 // ranks, (rank + 1) * 12 // ranks)
    wrapped = DistributedDataParallel(model) if ranks > 1 else model
    session = Fit(wrapped, [Sophia(estimator_batch=1.0)], CrossEntropy(), steps=1, settings=Train(warmup=0))
    session.step(((x[mine],), target[mine]))
    return torch.cat([session.optimizer.state[p]["h"].flatten() for p in model.parameters()])


def work(rank: int, place: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{place}/meet", rank=rank, world_size=2)
    torch.save(curvatures(rank, 2), f"{place}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_estimate_what_one_does(tmp_path: Path) -> None:
    context = mp.spawn(work, args=(str(tmp_path),), nprocs=2, join=False)
    while not context.join():
        pass
    before = curvature.draw
    try:
        alone = curvatures(0, 1)
    finally:
        curvature.draw = before
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), alone)
