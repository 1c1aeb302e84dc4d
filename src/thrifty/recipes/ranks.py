"""The ranks of a training: the one place where a training knows that others run beside it."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import TypeVar, final

from torch import Tensor

T = TypeVar("T")


class Ranks(abc.ABC):
    """The processes that train one model together, each on its own part of every batch.

    Every rank makes the same calls in the same order: each of them waits for all ranks.
    """

    @property
    @abc.abstractmethod
    def index(self) -> int:
        """This process's number, from 0 to ``count - 1``."""

    @property
    @abc.abstractmethod
    def count(self) -> int:
        """How many processes train together."""

    @property
    def processes(self) -> int:
        """How many processes there are; more than ``count`` where several compute one part of a batch together."""
        return self.count

    @abc.abstractmethod
    def sum(self, x: Tensor) -> Tensor:
        """Add a tensor over all ranks.

        Args:
            x: a tensor of any shape, the same shape and dtype on every rank; it is left as it is.

        Returns:
            the sum, detached, the same on every rank.
        """

    @abc.abstractmethod
    def any(self, flag: bool) -> bool:
        """Whether the flag is true on at least one rank."""

    @abc.abstractmethod
    def gather(self, value: T) -> list[T]:
        """Every rank's value, in the order of ``index``; values are JSON values or tensors."""


@final
@dataclass(frozen=True)
class Alone(Ranks):
    """One process: nothing is sent, nothing waits.

    >>> Alone().count, Alone().any(True), Alone().gather("x")
    (1, True, ['x'])
    """

    @property
    def index(self) -> int:
        return 0

    @property
    def count(self) -> int:
        return 1

    def sum(self, x: Tensor) -> Tensor:
        return x.detach()

    def any(self, flag: bool) -> bool:
        return flag

    def gather(self, value: T) -> list[T]:
        return [value]
