"""Ranks in teams: what a team computes together is one part of a batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar, final

import torch
from torch import Tensor

from thrifty.recipes.ranks import Ranks

T = TypeVar("T")


@final
@dataclass(frozen=True)
class Teams(Ranks):
    """Ranks of which so many in a row take the same part of every batch: to a training, each such team is one rank.

    A sum has each team's first member in it, so that nothing counts twice; the others hold the same.

    Args:
        ranks: all of them.
        size: of a team; it divides their number.
    """

    ranks: Ranks
    size: int

    @property
    def index(self) -> int:
        return self.ranks.index // self.size

    @property
    def count(self) -> int:
        return self.ranks.count // self.size

    @property
    def processes(self) -> int:
        return self.ranks.processes

    def sum(self, x: Tensor) -> Tensor:
        return self.ranks.sum(torch.zeros_like(x) if self.ranks.index % self.size else x)

    def any(self, flag: bool) -> bool:
        return self.ranks.any(flag)

    def gather(self, value: T) -> list[T]:
        return self.ranks.gather(value)[:: self.size]
