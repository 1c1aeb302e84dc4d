"""Batches of several ranks: one order whatever their number, no example twice, and each rank reads its own alone."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from thrifty import TokenFiles, write_tokens
from thrifty.recipes.ranks import Alone
from thrifty.training.data import Loader
from thrifty.training.distributed.teams import Teams


@dataclass(frozen=True)
class One(Alone):
    """One of several ranks, which says nothing to the others."""

    number: int
    of: int

    @property
    def index(self) -> int:
        return self.number

    @property
    def count(self) -> int:
        return self.of


@dataclass
class Watched(Dataset[Any]):
    """A data set that notes what is read of it."""

    inner: Dataset[Any]
    read: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.inner)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Any:
        self.read.append(index)
        return self.inner[index]


def taken(windows: TokenFiles, ranks: Alone, size: int, skip: int = 0, epochs: int = 2) -> tuple[list[Tensor], list[int]]:
    """The batches of some epochs, and the examples that were read for them."""
    watched = Watched(windows)
    loader = Loader(watched, size, seed=7, ranks=ranks)
    batches = itertools.islice(loader.batches(skip), epochs * loader.steps_per_epoch - skip)
    return [inputs[0] for inputs, _ in batches], watched.read


@pytest.fixture
def windows(tmp_path: Path) -> TokenFiles:
    """61 windows over two files, every token another."""
    write_tokens(tmp_path / "a.npy", [range(1, 124)])
    write_tokens(tmp_path / "b.npy", [range(200, 323)])
    return TokenFiles([tmp_path / "a.npy", tmp_path / "b.npy"], 4)


@pytest.mark.parametrize(("count", "size"), [(2, 8), (3, 7), (4, 4), (5, 13)])
def test_ranks_read_parts_of_one_order(windows: TokenFiles, count: int, size: int) -> None:
    whole, _ = taken(windows, Alone(), size)
    of_ranks = [taken(windows, One(i, count), size) for i in range(count)]
    for step, batch in enumerate(whole):
        assert torch.equal(torch.cat([batches[step] for batches, _ in of_ranks]), batch)
    steps = len(whole) // 2
    per_epoch = [[sum(len(x) for x in batches[:steps]), sum(len(x) for x in batches[steps:])] for batches, _ in of_ranks]
    for epoch in (0, 1):  # no example twice, on no rank and on no two
        read = [i for (_, found), sizes in zip(of_ranks, per_epoch, strict=True)
                for i in (found[: sizes[0]] if epoch == 0 else found[sizes[0]:])]
        assert len(read) == len(set(read)) == steps * size


def test_a_training_that_goes_on_reads_nothing_of_what_it_passed(windows: TokenFiles) -> None:
    whole, _ = taken(windows, One(1, 2), 8)
    left, read = taken(windows, One(1, 2), 8, skip=5)
    assert all(torch.equal(a, b) for a, b in zip(left, whole[5:], strict=True)) and len(read) == 4 * len(left)


def test_members_of_a_team_read_the_same(windows: TokenFiles) -> None:
    first, second, third = (taken(windows, Teams(One(i, 4), 2), 8)[0] for i in (0, 1, 2))  # type: ignore[arg-type]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True)) and not torch.equal(first[0], third[0])
