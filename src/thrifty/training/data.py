"""Batches of training data: shuffled anew each epoch, from a generator of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from thrifty.recipes.claim import Claim
from thrifty.recipes.ranks import Alone, Ranks
from thrifty.recipes.session import Session
from thrifty.training.workers import in_workers
from thrifty.workloads.quality import as_inputs, length
from thrifty.workloads.workload import Batch


@final
@dataclass
class Loader:
    """Shuffled batches of a map-style dataset, epoch after epoch, from a generator of its own.

    Args:
        dataset: items (input, target).
        batch_size: examples a batch, over all ranks.
        seed: of the order, the same on every rank.
        collate: joins items; torch's default where None.
        ranks: that train together; batches are this rank's part.
        workers: processes that make batches ahead; 0 to make them where they are used.
    """

    dataset: Dataset[Any]
    batch_size: int
    seed: int
    collate: Callable[[list[Any]], Any] | None = None
    ranks: Ranks = Alone()
    workers: int = 0
    _whole: Any = field(default=None, init=False)

    LARGEST_WHOLE = 256 * 2**20

    def __post_init__(self) -> None:
        tensors = getattr(self.dataset, "tensors", None)
        small = isinstance(tensors, tuple) and sum(t.nbytes for t in tensors) <= self.LARGEST_WHOLE
        if small and self.collate is None and len(tensors or ()) == 2:
            self._whole = tensors  # a TensorDataset is indexed at once: the same batches, without a Python loop

    def __iter__(self) -> Iterator[Batch]:
        return self.batches()

    def batches(self, skip: int = 0) -> Iterator[Batch]:
        """Batches without end; the first ``skip`` of them are passed over unread."""
        if self.workers and self._whole is None:
            return in_workers(self.batch, self._chosen(skip), skip, self.workers, self.seed)
        return map(self.batch, self._chosen(skip))

    def _chosen(self, skip: int) -> Iterator[Tensor]:
        """This rank's examples of each batch."""
        n, epoch = length(self.dataset), skip // self.steps_per_epoch
        skip %= self.steps_per_epoch
        while True:
            generator = torch.Generator().manual_seed(self.seed + epoch)
            order = torch.randperm(n, generator=generator)
            for chosen in order.split(self.batch_size):
                # A smaller last batch would be a noisier step, and another shape: it waits for the next epoch.
                if len(chosen) == self.batch_size or n < self.batch_size:
                    if skip > 0:
                        skip -= 1
                    else:
                        yield chosen.tensor_split(self.ranks.count)[self.ranks.index]
            epoch += 1

    def batch(self, chosen: Tensor) -> Batch:
        if self._whole is not None:
            return (self._whole[0][chosen],), self._whole[1][chosen]
        inputs, target = (self.collate or default_collate)([self.dataset[int(i)] for i in chosen])
        return as_inputs(inputs), target

    @property
    def steps_per_epoch(self) -> int:
        return max(1, length(self.dataset) // self.batch_size)

    def steps(self, epochs: float) -> int:
        return max(1, round(epochs * self.steps_per_epoch))

    def again(self, batch_size: int, seed: int) -> Loader:
        return Loader(self.dataset, batch_size, seed, self.collate)

    # -- what a loader that changes the examples has more to say of ------------------------------------------------

    @property
    def examples_per_batch(self) -> float:
        return self.batch_size

    @property
    def tokens_per_batch(self) -> float | None:
        """Real ones, where they are known."""
        return None

    def claims(self) -> tuple[tuple[str, Claim], ...]:
        """What it did to the data."""
        return ()

    def require_suited(self, session: Session) -> None:
        """Any model takes its batches."""
