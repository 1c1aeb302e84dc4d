"""One phase: what a process takes up, and what it leaves. It is handed a checkpoint, and leaves another."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import nn

from thrifty.errors import EffectLost, TrainingFailed
from thrifty.measure.meter import Meter, Metered
from thrifty.recipes.phases import Train
from thrifty.recipes.ranks import Alone, Ranks
from thrifty.recipes.recipe import Recipe
from thrifty.recipes.transform import Transform
from thrifty.runs import cache, checkpoint
from thrifty.runs.checkpoint import Checkpoint, MethodClaim
from thrifty.runs.context import Measurements, Recall, Tell, make_context, score, training_setup
from thrifty.runs.job import Job, Task, Teacher, place, seed_of
from thrifty.runs.journal import Journal
from thrifty.runs.making import home, made
from thrifty.studies.events import Charged, Stepped
from thrifty.studies.ledger import Charge, Kind
from thrifty.training.loop import Step, train
from thrifty.workloads.loading import load_workload
from thrifty.workloads.models import apart
from thrifty.workloads.workload import Workload


@final
@dataclass(frozen=True)
class Model:
    """A model in this process and what is known of how it came about."""

    state: Checkpoint
    module: nn.Module


def fresh(workload: Workload, seed: int) -> nn.Module:
    """The workload's model as it comes; the same weights for the same seed."""
    torch.manual_seed(seed_of(seed, 0, "weights"))
    return made(workload)


def loaded(workload: Workload, job: Job, key: str | None) -> Model:
    """A model from the cache, or as it comes."""
    module = fresh(workload, job.seed)
    if key is None:
        return Model(Checkpoint(workload.source, ""), module)
    return Model(*checkpoint.load(place("checkpoints", key), module))


def keep(key: str, model: Model) -> None:
    """Write the checkpoint once; a run beside this one may have been faster."""
    if cache.lookup("checkpoints", key) is None:
        with cache.building("checkpoints", key) as directory:
            checkpoint.save(model.state, model.module, directory)


def take(task: Task, tell: Tell, ranks: Ranks = Alone()) -> None:
    """Take a phase in a process of its own, or a rank's part of one: models come from the cache, and go there."""
    workload = apart(load_workload(task.job.workload))
    before = loaded(workload, task.job, task.checkpoint)
    teachers = {taught.teacher: loaded(home(taught.teacher, workload), task.job, taught.checkpoint).module
                for taught in task.teachers}
    take_phase(task, workload, before, teachers, tell, ranks)


def take_phase(task: Task, workload: Workload, before: Model, teachers: Mapping[Teacher, nn.Module], tell: Tell,
               ranks: Ranks = Alone()) -> Model:
    """Take a phase in this process.

    Args:
        task: which.
        workload: of the job.
        before: the model that the phase changes.
        teachers: their models.
        tell: hears of steps and charges.
        ranks: that take it together, a training alone; the first of them keeps the model.

    Returns:
        the model after it, which is in the cache under the task's key too.

    Raises:
        NoEffect, EffectLost, TrainingFailed, ThriftyError: the phase failed.
    """
    torch.manual_seed(task.seed("global"))  # dropout and other draws that take no generator
    phase = task.phase
    after = (_train(phase, task, workload, before, teachers, tell, ranks) if isinstance(phase, Train)
             else _transform(phase, task, workload, before, tell))
    phases = Recipe.parse(task.job.recipe).transforms.phases[: task.index + 1]
    after = dataclasses.replace(after, state=dataclasses.replace(
        after.state, recipe=str(Recipe(phases)), claims=reprobe(after.state.claims, after.module)))
    if ranks.index == 0:
        keep(task.key, after)
    return after


def charge(tell: Tell, kind: Kind, what: str, metered: Metered, *, seconds: float | None = None,
           uncounted: tuple[str, ...] = ()) -> Charge:
    """Tell what was paid, as metered; ``seconds`` where only a part of them is this charge's."""
    share = 1.0 if seconds is None or not metered.seconds else seconds / metered.seconds
    made = Charge(kind, what, metered.seconds * share, metered.flops, metered.peak_memory_bytes,
                  None if metered.joules is None else metered.joules * share, uncounted,
                  metered.device_seconds * share, metered.device_memory_bytes)
    tell(Charged(made))
    return made


# -- trainings --------------------------------------------------------------------------------------------------


def _train(phase: Train, task: Task, workload: Workload, before: Model, teachers: Mapping[Teacher, nn.Module],
           tell: Tell, ranks: Ranks) -> Model:
    device, text = task.job.machine.device, str(phase)
    meter = Meter(device, ranks.count)
    try:
        with cache.keeping("trainings", task.state_key) as room, meter:
            setup = training_setup(workload, phase, task.seed("train"), device, lambda *named: teachers[Teacher(*named)],
                                   ranks)
            done = train(setup, before.module, evaluate=lambda model: score(workload, model),
                         keep=room / ("state" if ranks.count > 1 else "state.pt"), progress=_told(tell))
            meter.flops = done.flops
    except TrainingFailed as error:
        meter.flops = error.flops
        charge(tell, "failure", text, meter.read(), seconds=min(error.seconds, meter.read().seconds))
        raise
    metered = meter.read()
    # The loop counts seconds over interruptions, which are what it cost; what is spent now is this process's part of them.
    # Energy and device-seconds are those of this process, in proportion.
    now = min(done.seconds, metered.seconds)
    spent = charge(tell, "training", text, dataclasses.replace(metered, seconds=now), uncounted=done.uncounted)
    paid = dataclasses.replace(spent, seconds=done.seconds)
    if looking := min(done.evaluation_seconds, metered.seconds - now):
        charge(tell, "evaluation", text, Metered(looking, looking))
    sign = 1 if workload.quality.higher_is_better else -1
    state = before.state
    earlier = sum(entry.seconds for entry in (*state.charges, *task.taught))
    curve = tuple((earlier + point.seconds, sign * point.quality) for point in done.evaluations)
    claims = tuple(MethodClaim(name, claim.checked(name)) for name, claim in done.claims)
    return Model(dataclasses.replace(state, plans=state.plans + done.plans, claims=state.claims + claims,
                                     charges=(*state.charges, *task.taught, paid), curve=state.curve + curve), done.model)


def _told(tell: Tell) -> Callable[[Step], None]:
    return lambda step: tell(Stepped(step.step, step.total, "", step.loss, step.examples_per_second, step.seconds_left,
                                     step.tokens_per_second))


# -- transforms -------------------------------------------------------------------------------------------------


def _transform(phase: object, task: Task, workload: Workload, before: Model, tell: Tell) -> Model:
    assert isinstance(phase, Transform)
    device, text = task.job.machine.device, str(phase)
    recall = Recall(f"{task.checkpoint or task.job.workload_hash}/{task.job.seed}/{phase.name}{phase.version}")
    original = copy.deepcopy(before.module)
    with cache.keeping("searches", task.key) as room:
        measured = Measurements(workload, task.job.target, device, task.seed("fit"), Journal(room))
        context = make_context(workload, task.job.target, task.seed("plan"), tell, measurements=measured, recall=recall)
        with contextlib.closing(measured), torch.no_grad(), Meter(device) as meter:
            plan = dataclasses.replace(phase.plan(before.module, context), timings=measured.timings)
            after = phase.build(before.module, plan).eval()
    whole, searched = meter.read(), _added(measured.made)
    charges = [charge(tell, "calibration", text, _without(whole, searched))]
    if searched is not None:
        charges.append(charge(tell, "search", text, searched))
    # What was recalled cost that once: part of the trial as if it were alone, not of what ran now.
    before_now: dict[Kind, list[float]] = {"calibration": recall.seconds, "search": measured.recalled}
    charges += [Charge(kind, f"{text}: recalled", sum(seconds)) for kind, seconds in before_now.items() if seconds]
    claims = tuple(MethodClaim(phase.name, claim.checked(phase.name)) for claim in phase.claims(original, after))
    state = before.state
    return Model(dataclasses.replace(state, plans=(*state.plans, (text, plan)), claims=state.claims + claims,
                                     charges=state.charges + tuple(charges)), after)


def _added(parts: list[Metered]) -> Metered | None:
    """All parts together; None where there are none."""
    if not parts:
        return None
    flops = [part.flops for part in parts if part.flops is not None]
    joules = [part.joules for part in parts if part.joules is not None]
    return Metered(sum(part.seconds for part in parts), sum(part.device_seconds for part in parts), parts[-1].peak_memory_bytes,
                   parts[-1].device_memory_bytes, sum(joules) if joules else None, sum(flops) if flops else None)


def _without(whole: Metered, part: Metered | None) -> Metered:
    """What is left of the whole."""
    if part is None:
        return whole
    joules = None if whole.joules is None or part.joules is None else whole.joules - part.joules
    return dataclasses.replace(whole, seconds=whole.seconds - part.seconds, joules=joules,
                               device_seconds=whole.device_seconds - part.device_seconds)


def reprobe(claims: tuple[MethodClaim, ...], model: nn.Module) -> tuple[MethodClaim, ...]:
    """Probe every earlier claim on the model as it is now.

    Raises:
        EffectLost: a later phase undid what an earlier one had claimed.
    """
    kept = []
    for entry in claims:
        claim = entry.claim
        value = claim.after if claim.probe is None else claim.probe(model)
        if not claim.holds(value):
            raise EffectLost(f"{entry.method} had changed {claim.what} from {claim.before:.6g} to {claim.after:.6g}, "
                             f"and a later phase undid it: now it is {value:.6g}")
        kept.append(MethodClaim(entry.method, dataclasses.replace(claim, after=value)))
    return tuple(kept)
