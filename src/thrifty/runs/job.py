"""What a run is told to do, and what it leaves: values that go from one process to another, on this machine or the next."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch

from thrifty.engines.instructions import instruction_set
from thrifty.measure.environment import VERSION, processor, runtime_versions
from thrifty.recipes.compiler import Compiler
from thrifty.recipes.method import Method
from thrifty.recipes.phases import Phase, methods_of
from thrifty.recipes.recipe import Recipe
from thrifty.recipes.transform import Transform
from thrifty.runs import cache
from thrifty.studies.ledger import Charge
from thrifty.studies.serialization import plain
from thrifty.studies.trial import Effect
from thrifty.target import Machine, Target
from thrifty.workloads.fingerprint import fingerprint
from thrifty.workloads.loading import load_workload


@final
@dataclass(frozen=True)
class Job:
    """What one run is told to do: all that determines its result.

    Args:
        workload: a reference that `load_workload` takes.
        workload_hash: of its source and data.
        recipe: text.
        seed: of every random stream of the run.
        target: what the model will run on.
        machine: what trains it.
        lower: whether to end with an engine; a teacher or a baseline needs none.
        force: whether to run what is slower here than without it.
    """

    workload: str
    workload_hash: str
    recipe: str
    seed: int
    target: Target
    machine: Machine = Machine()
    lower: bool = True
    force: bool = False


@final
@dataclass(frozen=True)
class Teacher:
    """A recipe whose model teaches.

    Args:
        recipe: text; "" for its workload's reference.
        workload: a reference that `load_workload` takes; "" for the job's own.
    """

    recipe: str = ""
    workload: str = ""


@final
@dataclass(frozen=True)
class Taught:
    """A teacher, and the key of its checkpoint."""

    teacher: Teacher
    checkpoint: str


@final
@dataclass(frozen=True)
class Task:
    """One phase of a job, as a process is handed it: keys of the cache, no paths.

    Args:
        job: that the phase is part of.
        index: of the phase among the recipe's.
        checkpoint: key of the model before it; None for the model as it comes.
        key: under which the model after it is kept.
        teachers: every one that the phase's methods name.
        taught: what those teachers cost this recipe.
    """

    job: Job
    index: int
    checkpoint: str | None
    key: str
    teachers: tuple[Taught, ...] = ()
    taught: tuple[Charge, ...] = ()

    @property
    def phase(self) -> Phase:
        return Recipe.parse(self.job.recipe).transforms.phases[self.index]

    @property
    def ranks(self) -> int:
        """Processes that take it together: only a training whose methods spread it has several."""
        return self.job.machine.ranks if spread(self.phase) else 1

    @property
    def state_key(self) -> str:
        """Where the cache keeps the state of a training under way: another number of ranks takes it up."""
        if self.ranks == 1:
            return self.key
        several = dataclasses.replace(self.job, machine=dataclasses.replace(self.job.machine, ranks=2))
        return checkpoint_key(several, Recipe(Recipe.parse(self.job.recipe).transforms.phases[: self.index + 1]))

    def seed(self, stream: str) -> int:
        """The seed of one of the phase's random streams."""
        return seed_of(self.job.seed, self.index, stream)


@final
@dataclass(frozen=True)
class Outcome:
    """What a run left.

    Args:
        checkpoint: the cache's key of the model.
        engine: the cache's key of the artifact; None where the job asked for none.
        charges: its cost, as if alone.
        effects: what its methods changed.
        curve: (seconds, quality on validation) of its training.
    """

    checkpoint: str
    engine: str | None
    charges: tuple[Charge, ...]
    effects: tuple[Effect, ...]
    curve: tuple[tuple[float, float], ...]


# -- keys of the cache ------------------------------------------------------------------------------------------


def checkpoint_key(job: Job, prefix: Recipe) -> str:
    """The key of the model that some phases leave: the hash of everything that determines its weights.

    What serves (threads, memory) decides nothing of a training. It does where a plan was timed; and this processor does where
    a method looked at it. Recipes with a common prefix share its checkpoint.
    """
    machine = job.machine if any(map(spread, prefix)) else dataclasses.replace(job.machine, ranks=1)
    facts: list[Any] = [job.workload_hash, prefix.hash(), job.seed, VERSION, torch.__version__, plain(machine)]
    facts += [_hash_of(reference) for reference in foreign(prefix)]
    if any(method.hardware_bound for method in prefix.methods()):
        facts += [processor(), instruction_set()]
    if any(isinstance(phase, Transform) and phase.timed for phase in prefix):
        facts.append(plain(job.target))
    return _digest(facts)


def engine_key(job: Job, prefix: Recipe, compiler: Compiler) -> str:
    """The key of the engine that a compiler makes of the model which some phases left."""
    return _digest([checkpoint_key(job, prefix), Recipe((compiler,)).hash(), plain(job.target), processor(), instruction_set(),
                    runtime_versions()])


def spread(phase: Phase) -> bool:
    """Whether one of the phase's methods spreads it over several ranks."""
    return any(method.card.slot == "parallelism" for method in methods_of(phase))


def place(kind: str, key: str) -> Path:
    """Where the cache keeps a checkpoint or an engine.

    Raises:
        CacheError: it is gone.
    """
    found = cache.lookup(kind, key)
    if found is None:
        raise cache.CacheError(f"the cache no longer holds {key[:12]} of {kind}; run again, and raise THRIFTY_CACHE_QUOTA "
                               "if this recurs")
    return found


def _digest(facts: list[Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def seed_of(seed: int, phase: int, stream: str) -> int:
    """The seed of one stream of one phase: a 63-bit hash of (seed, phase index, stream)."""
    digest = hashlib.sha256(f"{seed}/{phase}/{stream}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def teachers_of(phase: Phase) -> tuple[Teacher, ...]:
    """The teachers that the phase's methods name, each once."""
    return tuple(dict.fromkeys(Teacher(getattr(method, spec.name), _workload_of(method)) for method in methods_of(phase)
                               for spec in dataclasses.fields(method) if "recipe" in spec.metadata))


def _workload_of(method: Method) -> str:
    """The workload that a method names beside a recipe."""
    return next((getattr(method, spec.name) for spec in dataclasses.fields(method) if "workload" in spec.metadata), "")


def foreign(recipe: Recipe) -> list[str]:
    """References of other workloads whose models teach in a recipe, or teach its teachers."""
    found = set()
    for phase in recipe:
        for teacher in teachers_of(phase):
            found |= {teacher.workload} - {""} | set(foreign(Recipe.parse(teacher.recipe)))
    return sorted(found)


@functools.cache
def _hash_of(reference: str) -> str:
    return fingerprint(load_workload(reference))
