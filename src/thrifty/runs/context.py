"""What a run gives its methods: calibration batches, a clock, a judge, short trainings, a memory."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, final

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from thrifty.compilers.parity import as_tuple
from thrifty.errors import ThriftyError
from thrifty.measure.meter import Meter, Metered
from thrifty.recipes.context import Context, DistilledBlock, Reference, SearchBudgetSpent
from thrifty.recipes.method import Method
from thrifty.recipes.phases import Train
from thrifty.recipes.ranks import Alone, Ranks
from thrifty.recipes.session import Teachers
from thrifty.recipes.training_method import TrainingMethod
from thrifty.runs import cache
from thrifty.runs.clock import EAGER, Call, opened, ratio, seconds_a_call
from thrifty.runs.journal import Entry, Journal
from thrifty.studies.events import Event, Noted
from thrifty.target import Target
from thrifty.training.distillation.blockwise import Example, distil_block, record
from thrifty.training.flops import count_flops
from thrifty.training.loop import train
from thrifty.training.setup import Setup
from thrifty.workloads.quality import as_inputs, batches, length
from thrifty.workloads.workload import Batch, Workload

CALIBRATION_EXAMPLES = 256
CALIBRATION_BATCH = 32

Tell = Callable[[Event], None]


# -- data -------------------------------------------------------------------------------------------------------


def labelled(workload: Workload, seed: int, examples: int = CALIBRATION_EXAMPLES) -> Iterator[Batch]:
    """Batches drawn without replacement from the training set (validation where there is none)."""
    dataset = workload.training_set
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(length(dataset), generator=generator)[:examples].tolist()
    for inputs, target in batches(Subset(dataset, chosen), CALIBRATION_BATCH, workload.collate):
        yield as_inputs(inputs), target


def calibration(workload: Workload, seed: int, examples: int = CALIBRATION_EXAMPLES) -> Iterator[tuple[Tensor, ...]]:
    """The inputs of `labelled`."""
    return (inputs for inputs, _ in labelled(workload, seed, examples))


def mean_loss(workload: Workload, model: nn.Module, batch: Batch) -> Tensor:
    """The workload's loss of a model on one batch."""
    assert workload.loss is not None
    total, weight = workload.loss(workload.forward(model, batch), batch)
    return total / weight


def training_setup(workload: Workload, phase: Train, seed: int, device: str, teacher: Teachers,
                   ranks: Ranks = Alone()) -> Setup:
    """One ``train`` phase of a workload, put together.

    Raises:
        ThriftyError: the workload has no training set or no loss.
    """
    if workload.lessons is None:
        raise ThriftyError(f"{workload.name} has no training set or no loss, so {phase} cannot train it")
    return Setup(phase, *workload.lessons, workload.batch_size, seed, workload.forward, workload.collate, device,
                 teacher, ranks, workload.loader_workers)


# -- judging -----------------------------------------------------------------------------------------


def score(workload: Workload, model: nn.Module) -> float:
    """Quality on validation of a module in this process; higher is better whatever the measure."""
    return scored(workload, model)[0]


def scored(workload: Workload, model: nn.Module) -> tuple[float, float]:
    """`score`, and the FLOPs that it took: those of the first batch of each shape are counted, the others are like it."""
    was_training = model.training
    model.eval()
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    counted: dict[Any, float] = {}
    flops = [0.0]

    def predict(inputs: tuple[Tensor, ...]) -> Any:
        def call() -> Any:
            return model(*(x.to(device) for x in inputs))

        shapes = tuple(tuple(x.shape) for x in inputs)
        if shapes in counted:
            outputs = call()
        else:
            outputs, count = count_flops(call)
            counted[shapes] = count.flops
        flops[0] += counted[shapes]
        return _to_cpu(outputs)

    with torch.no_grad():
        value = workload.quality(predict, workload.validation).value
    model.train(was_training)
    return (value if workload.quality.higher_is_better else -value), flops[0]


def outputs_of(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The module's outputs as a tuple, on the CPU; computed as engines do, without torch's own fast path through transformer
    layers, which gives zeros where a mask covers a row."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad():
            outputs = _to_cpu(model(*inputs))
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
    return outputs if isinstance(outputs, tuple) else (outputs,)


def _to_cpu(outputs: Any) -> Any:
    found = tuple(x.cpu() for x in as_tuple(outputs))
    return found[0] if len(found) == 1 else found


# -- what a method measures while it decides --------------------------------------------------------------------


@final
class Measurements:
    """Timings, scores and short trainings on behalf of one method: each is metered, kept as it comes, and budgeted.

    Args:
        workload: whose model the method changes.
        target: what the model will run on.
        device: that trains.
        seed: of the trainings' data.
        journal: what was measured before, and where more is kept.
        budget: seconds that all of them may take.
    """

    def __init__(self, workload: Workload, target: Target, device: str, seed: int, journal: Journal,
                 budget: float = math.inf) -> None:
        self._workload, self._target, self._device, self._seed = workload, target, device, seed
        self._journal, self._budget = journal, budget
        self.made: list[Metered] = []
        """What was measured now."""
        self.recalled: list[float] = []
        """Seconds of what was measured before this process began."""
        self._open = contextlib.ExitStack()
        self._reference: tuple[Reference, str, Call] | None = None

    @property
    def timings(self) -> tuple[float, ...]:
        """Every timing, in order: with them a plan is made again."""
        return tuple(entry.value for entry in self._journal.entries if entry.kind == "time" and entry.value is not None)

    def remaining(self) -> float:
        """Seconds that are left of the budget."""
        return self._budget - sum(metered.seconds for metered in self.made) - sum(self.recalled)

    def time(self, module: nn.Module, inputs: tuple[Tensor, ...] | None = None, *, engine: str = EAGER, key: str = "",
             reference: Reference | None = None) -> float:
        """As `thrifty.recipes.context.Clock` says."""
        given = self._workload.example(1) if inputs is None else inputs
        return self._measured("time", lambda: (self._seconds(module, given, engine, reference), None), key)

    def _seconds(self, module: nn.Module, inputs: tuple[Tensor, ...], engine: str, reference: Reference | None) -> float:
        with opened(module, inputs, self._target, engine) as call:
            if reference is None:
                return seconds_a_call(call, self._target)
            return reference.seconds * ratio(call, self._opened(reference, engine), self._target)

    def _opened(self, reference: Reference, engine: str) -> Call:
        """A call of the reference, which stays open until another one is asked for, or until `close`."""
        if self._reference is None or self._reference[:2] != (reference, engine):
            self.close()
            call = self._open.enter_context(opened(reference.module, reference.inputs, self._target, engine))
            self._reference = (reference, engine, call)
        return self._reference[2]

    def close(self) -> None:
        """Close the engine of the reference, if one is open."""
        self._open.close()
        self._reference = None

    def score(self, model: nn.Module, *, key: str = "") -> float:
        """Quality on validation, higher is better."""
        return self._measured("score", lambda: scored(self._workload, model), key)

    def fit(self, model: nn.Module, methods: Sequence[Method], steps: int) -> nn.Module:
        """As `thrifty.recipes.context.Trainer` says."""
        if (kept := self._journal.next("fit")) is not None:
            self.recalled.append(kept.seconds)
            model.load_state_dict(self._journal.weights())
            return model
        self._require_time()
        if strange := [method.name for method in methods if not isinstance(method, TrainingMethod)]:
            raise ThriftyError(f"{', '.join(strange)} cannot modify a training: give training methods")
        training = [method for method in methods if isinstance(method, TrainingMethod)]
        phase = Train(*training, steps=steps, evaluations=0)
        setup = training_setup(self._workload, phase, self._seed, self._device, _no_teacher)
        with torch.enable_grad(), Meter(self._device) as meter:
            done = train(setup, model)
            meter.flops = done.flops
        metered = meter.read()
        self.made.append(metered)
        self._journal.add(Entry("fit", None, metered.seconds, done.flops), _weights(done.model))
        return done.model

    def distil(self, student: nn.Module, examples: Sequence[Example], *, steps: int = 100,
               seconds: float = math.inf, key: str = "") -> DistilledBlock:
        """As `thrifty.recipes.context.Distiller` says."""
        if (kept := self._journal.next("distil", key)) is not None:
            self.recalled.append(kept.seconds)
            student = copy.deepcopy(student).eval()
            student.load_state_dict(self._journal.weights())
            assert kept.value is not None and kept.flops is not None
            return DistilledBlock(student, kept.details["error_before"], kept.value, int(kept.details["steps"]), kept.seconds,
                                  kept.flops)
        self._require_time()
        with Meter(self._device) as meter:
            done = distil_block(student, examples, steps=steps, seconds=min(seconds, self.remaining()), seed=self._seed)
            meter.flops = done.flops
        metered = meter.read()
        self.made.append(metered)
        self._journal.add(Entry("distil", done.error, metered.seconds, done.flops,
                                {"error_before": done.error_before, "steps": done.steps}, key), _weights(done.student))
        return done

    def _measured(self, kind: str, measure: Callable[[], tuple[float, float | None]], key: str) -> float:
        if (kept := self._journal.next(kind, key)) is not None:
            self.recalled.append(kept.seconds)
            assert kept.value is not None
            return kept.value
        self._require_time()
        with Meter(self._device) as meter:
            value, meter.flops = measure()
        self.made.append(meter.read())
        self._journal.add(Entry(kind, value, meter.read().seconds, meter.flops, key=key))
        return value

    def _require_time(self) -> None:
        if self.remaining() <= 0:
            raise SearchBudgetSpent(f"the {self._budget:g} s that this search may spend on measuring are used up")


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: x.detach().clone().contiguous() for name, x in model.state_dict().items()}


def _no_teacher(text: str) -> nn.Module:
    raise ThriftyError("a short training on behalf of a method has no teachers")


@final
class Recall:
    """Values that a method computed once: kept in the cache, in a scope of its own.

    Args:
        scope: whatever the values depend on that the method does not name: the model before it, and the method.
    """

    def __init__(self, scope: str) -> None:
        self._scope = scope
        self.seconds: list[float] = []
        """What computing them took, of those that the cache had."""

    def __call__(self, key: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """JSON values and tensors by name, from the cache, or computed and kept there."""
        name = hashlib.sha256(f"{self._scope}/{key}".encode()).hexdigest()
        with cache.using("findings", name) as place:
            if place is not None:
                kept = json.loads((place / "values.json").read_text())
                self.seconds.append(kept["seconds"])
                return {**kept["values"], **safetensors.torch.load_file(place / "tensors.safetensors")}
        began = time.perf_counter()
        values = compute()
        tensors = {name: x.detach().cpu().contiguous().clone()  # one tensor may have several names
                   for name, x in values.items() if isinstance(x, Tensor)}
        document = {"seconds": time.perf_counter() - began,
                    "values": {name: value for name, value in values.items() if name not in tensors}}
        with cache.building("findings", name) as room:
            (room / "values.json").write_text(json.dumps(document))
            safetensors.torch.save_file(tensors, room / "tensors.safetensors")
        return values


# -- contexts ---------------------------------------------------------------------------------------------------


def make_context(workload: Workload, target: Target, seed: int, tell: Tell, *, measurements: Measurements | None = None,
                 recall: Callable[[str, Callable[[], dict[str, Any]]], dict[str, Any]] | None = None,
                 examples: int = CALIBRATION_EXAMPLES) -> Context:
    """What a method may use.

    Args:
        workload: whose model it changes.
        target: what the model will run on.
        seed: of the phase.
        tell: hears what the method says.
        measurements: what it measures; nothing where None.
        recall: what it computed before; nothing where None.
        examples: to calibrate on.
    """
    found = Context(
        example=workload.example(1), calibration=lambda: calibration(workload, seed, examples),
        seed=seed, target=target, shapes=workload.served_shapes, progress=lambda text: tell(Noted(text)),
        labelled=None if workload.train is None else lambda: labelled(workload, seed, examples),
        loss=None if workload.train is None or workload.loss is None else functools.partial(mean_loss, workload),
        batch=workload.scenario.largest_batch,
    )
    if measurements is not None:
        found = dataclasses.replace(found, time=measurements.time, score=measurements.score, remaining=measurements.remaining,
                                    record=record, distil=measurements.distil,
                                    fit=None if workload.train is None or workload.loss is None else measurements.fit)
    return found if recall is None else dataclasses.replace(found, recall=recall)


def rehearsal_context(workload: Workload, target: Target, seed: int, examples: int) -> Context:
    """A context in which nothing is timed, judged or trained: a module takes as long as its parameters are many."""
    def supposed(module: nn.Module, inputs: tuple[Tensor, ...] | None = None, *, engine: str = EAGER, key: str = "",
                 reference: Reference | None = None) -> float:
        return 1e-6 + 1e-9 * sum(p.numel() for p in module.parameters())

    def untrained(student: nn.Module, examples: Sequence[Example], *, steps: int = 100,
                  seconds: float = math.inf, key: str = "") -> DistilledBlock:
        return distil_block(student, examples, steps=0)

    return dataclasses.replace(
        make_context(workload, target, seed, lambda event: None, examples=examples), rehearsal=True, time=supposed,
        score=lambda model, *, key="": 0.0, fit=lambda model, methods, steps: model, record=record, distil=untrained)
