"""What a run is told to do, and what it leaves: values that go from one process to another."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import final

import torch

from thrifty.measure.environment import VERSION
from thrifty.recipes.recipe import Recipe
from thrifty.studies.ledger import Charge
from thrifty.studies.trial import Effect
from thrifty.target import Target


@final
@dataclass(frozen=True)
class Job:
    """What one run is told to do.

    Args:
        workload: a reference that `load_workload` takes.
        workload_hash: of its source and data.
        recipe: text.
        seed: of every random stream of the run.
        target: what the model will run on.
        lower: whether to end with an engine; a teacher or a baseline needs none.
    """

    workload: str
    workload_hash: str
    recipe: str
    seed: int
    target: Target
    lower: bool = True
    spawned: float = 0.0
    """time.time() when the process was started, so that its start is charged."""


@final
@dataclass(frozen=True)
class Outcome:
    """What a run left: places, cost as if alone, effects, and how quality rose with seconds."""

    checkpoint: str
    artifact: str | None
    charges: tuple[Charge, ...]
    effects: tuple[Effect, ...]
    curve: tuple[tuple[float, float], ...]


def prefix_key(job: Job, prefix: Recipe) -> str:
    """Recipes with a common prefix share its checkpoint: the hash of everything that determines the weights."""
    facts = (job.workload_hash, prefix.hash(), job.seed, VERSION, torch.__version__,
             sorted(job.target.to_json().items()))
    return hashlib.sha256(repr(facts).encode()).hexdigest()


def seed_of(seed: int, phase: int, stream: str) -> int:
    """The seed of one stream of one phase: a 63-bit hash of (seed, phase index, stream)."""
    digest = hashlib.sha256(f"{seed}/{phase}/{stream}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
