from __future__ import annotations

import itertools
import os
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from thrifty.errors import WorkloadError
from thrifty.target import Machine, cores
from thrifty.training.data import Loader
from thrifty.training.workers import crowded


class Rows(Dataset[Any]):
    """Examples with an augmentation that draws from every generator; what makes them is told too."""

    def __init__(self, noise: float = 0.0) -> None:
        self.noise = noise

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        drawn = float(torch.rand(())) + random.random() + float(np.random.rand())
        return torch.tensor([index + self.noise * drawn, os.getpid()]), index


class Broken(Rows):
    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        raise FileNotFoundError(f"no picture {index}")


def taken(workers: int, count: int, skip: int = 0, noise: float = 0.0) -> list[tuple[Tensor, Tensor]]:
    batches = Loader(Rows(noise), 8, 3, workers=workers).batches(skip)
    return [(inputs[0], target) for inputs, target in itertools.islice(batches, count)]


def test_workers_make_the_batches_that_would_be_made_here_in_their_order() -> None:
    here, there = taken(0, 7), taken(2, 7)
    for (a, y), (b, z) in zip(here, there, strict=True):
        assert torch.equal(y, z) and torch.equal(a[:, 0], b[:, 0])
    assert all(float(process) != os.getpid() for rows, _ in there for process in rows[:, 1])
    assert len({float(process) for rows, _ in there for process in rows[:, 1]}) == 2


def test_what_is_drawn_depends_neither_on_the_number_of_workers_nor_on_interruptions() -> None:
    whole = [rows[:, 0] for rows, _ in taken(1, 8, noise=1.0)]
    assert len({float(rows.frac().sum()) for rows in whole}) == 8
    for workers, skip in ((2, 0), (3, 5), (1, 6)):
        again = [rows[:, 0] for rows, _ in taken(workers, 8 - skip, skip, noise=1.0)]
        assert all(torch.equal(a, b) for a, b in zip(whole[skip:], again, strict=True))


def test_torchs_own_generator_goes_on_as_if_there_were_none() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    taken(2, 3)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_an_example_that_cannot_be_made_is_told_in_one_line() -> None:
    with pytest.raises(WorkloadError, match=r"train set raised FileNotFoundError: no picture \d+ \(test_workers.py, line \d+\)$"):
        next(Loader(Broken(), 24, 2**63 - 1, workers=1).batches())


def test_it_is_said_where_processes_and_threads_are_more_than_processors() -> None:
    n = cores()
    assert crowded(0, Machine(threads=n)) is None
    if n > 1:
        assert crowded(1, Machine(threads=n - 1)) is None
    told = crowded(n, Machine(threads=1))
    assert told is not None and "loader_workers" in told and "--training-threads" in told and "\n" not in told
    assert "in each of 2 ranks" in str(crowded(n, Machine(ranks=2)))
