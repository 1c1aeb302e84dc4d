"""Everything that a training is made from, put together in one place: its batches, its steps, its session."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, final

from torch import nn
from torch.utils.data import Dataset

from thrifty.errors import ThriftyError
from thrifty.recipes.phases import Train
from thrifty.recipes.ranks import Alone, Ranks
from thrifty.recipes.session import Teachers
from thrifty.training.data import Loader
from thrifty.training.distributed.parallel import shared
from thrifty.training.packing import PackedLoader, make_loader
from thrifty.training.session import TrainingSession
from thrifty.workloads.quality import length
from thrifty.workloads.workload import Batch, Forward, Loss, call_model

ASIDE = 1_000_003
"""Batches drawn aside take their order from a seed so far from training's that epochs do not share it."""


@final
@dataclass(frozen=True)
class Setup:
    """A training before its model.

    Args:
        settings: methods, length, schedule, warm-up, clipping, evaluations; one epoch where it names no length.
        data: map-style dataset of (input, target).
        loss: (outputs, batch) -> (sum, weight).
        batch_size: examples (packed rows, where they are packed), where ``settings`` names none.
        seed: of the order of the data.
        forward: (model, batch) -> outputs.
        collate: joins dataset items.
        device: "cpu" or "cuda".
        teachers: recipe's text (and, where it is another's, the workload's reference) -> its model, for methods that distil.
        ranks: that train together.
        workers: processes that make batches ahead.
        most: largest batch, where a rehearsal takes fewer examples than the settings say.
    """

    settings: Train
    data: Dataset[Any]
    loss: Loss
    batch_size: int = 64
    seed: int = 0
    forward: Forward = call_model
    collate: Callable[[list[Any]], Any] | None = None
    device: str = "cpu"
    teachers: Teachers | None = None
    ranks: Ranks = Alone()
    workers: int = 0
    most: int | None = None

    @functools.cached_property
    def parts(self) -> Ranks:
        """Who takes a part of each batch: the ranks, or teams of them."""
        return shared(self.ranks, self.settings.methods)

    @functools.cached_property
    def size(self) -> int:
        """Examples, or packed rows, a step.

        Raises:
            ThriftyError: there are more ranks.
        """
        asked = self.settings.batch_size or self.batch_size
        found = min(asked, length(self.data), self.most or asked)
        parts = self.parts.count * self.settings.accumulate
        if self.parts.count > 1 and found < parts:
            raise ThriftyError(f"a batch of {found} cannot be divided over {self.parts.count} ranks and "
                               f"{self.settings.accumulate} micro-batches: give a larger batch_size")
        return found

    @functools.cached_property
    def loader(self) -> Loader | PackedLoader:
        """This rank's batches."""
        return make_loader(self.data, self.size, self.seed, self.collate, self.settings.packing, self.loss, self.parts,
                           self.workers)

    @functools.cached_property
    def steps(self) -> int:
        """Optimizer steps of the whole training."""
        return self.settings.steps or self.loader.steps(self.settings.epochs or 1)

    def session(self, model: nn.Module, steps: int | None = None) -> TrainingSession:
        """Begin to train a model.

        Args:
            model: trained in place, unless a method replaces it.
            steps: that its schedule goes over, where not all are taken.

        Raises:
            ThriftyError: a method cannot train the model, or the data or the model cannot be packed.
        """
        made = TrainingSession(model, self.settings.methods, self.loss, steps=steps or self.steps, settings=self.settings,
                               forward=self.forward, device=self.device, teachers=self.teachers, aside=self._aside,
                               ranks=self.ranks)
        self.loader.require_suited(made)
        return made

    def _aside(self, examples: int, drawn: int) -> Iterator[Batch]:
        return self.loader.again(examples, self.seed + ASIDE).batches(drawn)
