"""One job's phases, one after the other in this process: teachers first, a checkpoint after each, an engine at the end."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from thrifty.artifacts import artifact
from thrifty.compilers.divergence import first_divergence
from thrifty.compilers.parity import ParityError, check_parity, check_random
from thrifty.errors import EffectLost, ThriftyError
from thrifty.measure.environment import runtime_versions
from thrifty.measure.meter import Meter
from thrifty.recipes.compiler import Compiler
from thrifty.recipes.context import Context
from thrifty.recipes.phases import Train
from thrifty.recipes.recipe import Recipe
from thrifty.runs import cache, checkpoint
from thrifty.runs.checkpoint import MethodClaim
from thrifty.runs.context import Tell, calibration, make_context, outputs_of
from thrifty.runs.job import (
    Job,
    Outcome,
    Task,
    Taught,
    Teacher,
    checkpoint_key,
    engine_key,
    place,
    seed_of,
    teachers_of,
)
from thrifty.runs.making import home
from thrifty.runs.phase import Model, charge, keep, loaded, take_phase
from thrifty.runs.precision import require_precision_pays
from thrifty.runs.ranks import Gang, LocalGang
from thrifty.runs.rehearsal import rehearse
from thrifty.studies.events import PhaseBegan
from thrifty.studies.ledger import Charge, Ledger
from thrifty.studies.trial import Effect
from thrifty.target import cores
from thrifty.workloads.blame import part
from thrifty.workloads.checks import check_workload
from thrifty.workloads.fingerprint import fingerprint
from thrifty.workloads.loading import load_workload
from thrifty.workloads.models import apart


class Execution:
    """A job under way.

    Args:
        job: what to do.
        tell: hears of phases, steps and charges.
        gang: who takes trainings of several ranks; processes of this machine by default.
    """

    def __init__(self, job: Job, tell: Tell, gang: Gang = LocalGang()) -> None:
        self.job, self.tell, self.gang = job, tell, gang
        self.workload = apart(load_workload(job.workload))
        self.recipe = Recipe.parse(job.recipe)
        self.phases = self.recipe.transforms.phases
        self.keys = [checkpoint_key(job, Recipe(self.phases[:i])) for i in range(len(self.phases) + 1)]

    def outcome(self) -> Outcome:
        """Do it, or find it done."""
        done, model = self._start()
        for i in range(done, len(self.phases)):
            self.tell(PhaseBegan(str(self.phases[i])))
            task, teachers = self._task(i)
            if task.ranks > 1:
                model = self._spread(task, model)
                continue
            with part(str(self.phases[i])):
                model = take_phase(task, self.workload, model, teachers, self.tell)
            del teachers
        keep(self.keys[-1], model)
        state = model.state
        if not self.job.lower:
            return Outcome(self.keys[-1], None, state.charges, tuple(effect(entry) for entry in state.claims), state.curve)
        key, paid, effects = self._lower(model)
        return Outcome(self.keys[-1], key, state.charges + paid, effects, state.curve)

    def _spread(self, task: Task, before: Model) -> Model:
        """A training by several ranks, which find the model before it in the cache and leave the one after it there."""
        if task.checkpoint is not None:
            keep(task.checkpoint, before)
        self.gang.take(task, self.tell)
        return loaded(self.workload, self.job, task.key)

    def _start(self) -> tuple[int, Model]:
        """How many phases are done, and the model of the longest prefix that is kept; rehearsed where training is still to
        come."""
        done = next((i for i in range(len(self.phases), 0, -1) if cache.lookup("checkpoints", self.keys[i]) is not None), 0)
        if not done:
            check_workload(self.workload)
        if not done or any(isinstance(phase, Train) for phase in self.phases[done:]):
            with Meter(self.job.machine.device) as meter:
                rehearse(self.workload, self.recipe, self.job.target, self.job.machine, self.tell)
                if not self.job.force:
                    require_precision_pays(self.workload, Recipe(self.phases[done:]), self.job.target, self.job.machine,
                                           self.tell)
            charge(self.tell, "rehearsal", str(self.recipe), meter.read())
        return done, loaded(self.workload, self.job, self.keys[done] if done else None)

    # -- teachers -----------------------------------------------------------------------------------------------

    def _task(self, i: int) -> tuple[Task, dict[Teacher, nn.Module]]:
        """The i-th phase, its teachers made first; and their models."""
        keys, models, taught = [], {}, []
        for teacher in teachers_of(self.phases[i]):
            inner = self._teaching(teacher)
            done = inner.outcome()
            keys.append(Taught(teacher, done.checkpoint))
            models[teacher] = loaded(inner.workload, inner.job, done.checkpoint).module
            if done.checkpoint not in self.keys[: i + 1]:  # what this recipe had to train anyway costs nothing more
                taught += [dataclasses.replace(paid, kind="teacher") for paid in done.charges]
        task = Task(self.job, i, self.keys[i] if i else None, self.keys[i + 1], tuple(keys), tuple(taught))
        return task, models

    def _teaching(self, teacher: Teacher) -> Execution:
        workload, job = home(teacher, self.workload), self.job
        if teacher.workload:
            job = dataclasses.replace(job, workload=workload.source, workload_hash=fingerprint(workload))
        recipe = Recipe.parse(teacher.recipe or workload.reference)
        if not recipe.phases and workload.reference:
            raise ThriftyError("a teacher needs a recipe")
        if len(recipe) and recipe.transforms != recipe:
            raise ThriftyError(f"a teacher is a model, not an engine: remove the compiler from {recipe}")
        whose = f" of {teacher.workload}" if teacher.workload else ""
        self.tell(PhaseBegan(f"teacher: {recipe or 'the model as it comes'}{whose}"))
        return Execution(dataclasses.replace(job, recipe=str(recipe), lower=False), self.tell, self.gang)

    # -- the end ------------------------------------------------------------------------------------------------

    def _lower(self, model: Model) -> tuple[str, tuple[Charge, ...], tuple[Effect, ...]]:
        """The engine's key, what it cost, and what is left of every method's effect in it."""
        compiler = self.recipe.compiler
        key = engine_key(self.job, Recipe(self.phases), compiler)
        if cache.lookup("engines", key) is None:
            self.tell(PhaseBegan(str(compiler)))
            with part(str(compiler)), cache.building("engines", key) as directory:
                paid = self._compile(compiler, model, directory)
                (directory / "charges.json").write_text(json.dumps([one.to_json() for one in paid]))
        kept = place("engines", key)
        charges = Ledger.from_json(json.loads((kept / "charges.json").read_text())).charges
        facts = artifact.read(kept)["facts"]
        return key, charges, tuple(final_effect(entry, facts) for entry in model.state.claims)

    def _compile(self, compiler: Compiler, model: Model, directory: Path) -> list[Charge]:
        example, module = self.workload.example(1), model.module
        seed = seed_of(self.job.seed, len(self.phases), "lower")
        context = make_context(self.workload, self.job.target, seed, self.tell)
        with Meter(self.job.machine.device) as meter:
            lowered = compiler.lower(module, example, directory, context)
            artifact.write(directory, lowered, {
                "recipe": str(self.recipe), "workload": self.workload.name, "seed": self.job.seed,
                "threads": self.job.target.threads, "device": self.job.target.device,
                "versions": runtime_versions(), "layers": checkpoint.list_layers(model.state, module),
            }, [x.numpy() for x in example], [x.numpy() for x in outputs_of(module, example)])
            self._require_parity(compiler, module, directory, lowered.precision, context)
        metered = meter.read()
        lost = sum(seconds for _, seconds in lowered.spent)
        text = str(compiler)
        return [*(charge(self.tell, "search", what, metered, seconds=seconds) for what, seconds in lowered.spent),
                charge(self.tell, "compilation", text, metered, seconds=metered.seconds - lost)]

    def _require_parity(self, compiler: Compiler, model: nn.Module, directory: Path, precision: str, context: Context) -> None:
        """The engine, reloaded, on real inputs and on random ones; where it differs, the model is lowered again to say where."""
        device = self.job.target.device

        def module(*inputs: Tensor) -> tuple[Tensor, ...]:
            return outputs_of(model, inputs)

        requests = (tuple(x[:1] for x in inputs) for inputs in itertools.islice(calibration(self.workload, 0, 8), 8))
        try:
            with contextlib.closing(artifact.load(directory, threads=cores(), device=device, trust_native_code=True)) as engine:
                check_parity(module, engine, requests, precision, device)
                check_random(module, engine, context.example, context.shapes, precision, device)
        except ParityError as error:
            raise ParityError(f"{error}; {first_divergence(compiler, model, error.inputs, context)}") from error


def effect(entry: MethodClaim) -> Effect:
    return Effect(entry.method, entry.claim.what, entry.claim.before, entry.claim.after)


def final_effect(entry: MethodClaim, facts: Mapping[str, float]) -> Effect:
    """What a claim has become in the engine.

    Raises:
        EffectLost: the compiler undid it.
    """
    if entry.claim.fact not in facts:
        return effect(entry)
    value = facts[entry.claim.fact]
    if not entry.claim.holds(value):
        raise EffectLost(
            f"{entry.method} had changed {entry.claim.what} from {entry.claim.before:.6g} to "
            f"{entry.claim.after:.6g}, but in the engine it is {value:.6g}: the compiler undid it; try another"
        )
    return Effect(entry.method, entry.claim.what, entry.claim.before, value, "engine")
