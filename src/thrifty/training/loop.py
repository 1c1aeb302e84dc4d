"""The training loop: one, driven by hooks, readable in one sitting."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from thrifty.errors import TrainingFailed
from thrifty.recipes.claim import Claim
from thrifty.recipes.phases import Train
from thrifty.recipes.ranks import Alone, Ranks
from thrifty.recipes.session import Teachers
from thrifty.recipes.transform import Plan
from thrifty.training.data import Loader
from thrifty.training.distributed.kept import RanksKeeper
from thrifty.training.flops import count_flops
from thrifty.training.packing import PackedLoader
from thrifty.training.readback import Readback
from thrifty.training.resume import FileKeeper
from thrifty.training.setup import Setup
from thrifty.workloads.quality import length
from thrifty.workloads.workload import Forward, Loss, call_model

KEEP_SECONDS = 30.0
"""Between two states that are kept of a training."""


@final
@dataclass(frozen=True)
class Step:
    """Where training stands: told to whoever watches, at most twice a second."""

    step: int
    total: int
    loss: float
    examples_per_second: float
    seconds_left: float
    tokens_per_second: float | None = None
    """Real tokens, no padding; None where examples are not packed."""


@final
@dataclass(frozen=True)
class Evaluation:
    """Quality (higher is better) after a step, and the training seconds and FLOPs spent by then."""

    step: int
    seconds: float
    flops: float
    quality: float


@final
@dataclass(frozen=True)
class TrainingResult:
    """The result of a training.

    Args:
        model: in eval mode, on the CPU.
        steps: optimizer steps taken.
        seconds: seconds of training alone; evaluations are in ``evaluation_seconds``.
        flops: FLOPs of all forward and backward passes, teachers' too.
        uncounted: operators that ran and have no FLOP formula.
        history: [(step, loss)] of every step.
        evaluations: in order.
        claims: [(method's name, claim)].
        plans: [(a transform's text, its plan)] of methods that changed the model's structure: they rebuild it.
    """

    model: nn.Module
    steps: int
    seconds: float
    evaluation_seconds: float
    flops: float
    uncounted: tuple[str, ...]
    history: tuple[tuple[int, float], ...]
    evaluations: tuple[Evaluation, ...]
    claims: tuple[tuple[str, Claim], ...]
    plans: tuple[tuple[str, Plan], ...] = ()


# -- the verb ---------------------------------------------------------------------------------------------------


def fit(model: nn.Module, methods: Any, data: Dataset[Any], loss: Loss, *, settings: Train | None = None,
        batch_size: int = 64, seed: int = 0, forward: Forward = call_model,
        collate: Callable[[list[Any]], Any] | None = None, device: str = "cpu",
        teachers: Teachers | None = None, evaluate: Callable[[nn.Module], float] | None = None,
        progress: Callable[[Step], None] | None = None, keep: Path | None = None,
        keep_seconds: float = KEEP_SECONDS, ranks: Ranks = Alone()) -> TrainingResult:
    """Train a model.

    Args:
        model: trained in place, unless a method replaces it.
        methods: training methods, in any order; AdamW where none provides an optimizer.
        data: map-style dataset of (input, target).
        loss: (outputs, batch) -> (sum, weight).
        settings: how long, and schedule, warm-up, clipping, evaluations; one epoch of ``Train()`` where None.
        batch_size: examples (packed rows, where they are packed), where ``settings`` names none.
        seed: seed of the order of the data and of dropout; the same seed gives the same weights, bit for bit on a CPU.
        forward: (model, batch) -> outputs.
        collate: joins dataset items.
        device: "cpu" or "cuda".
        teachers: recipe's text (and, where it is another's, the workload's reference) -> its model, for methods that distil.
        evaluate: model -> quality, higher is better; its seconds are counted apart.
        progress: told where training stands.
        keep: a file for the training's state (several ranks make a directory of it), written every so often; where it is there
            already, training resumes from it, step by step as if it had not been interrupted (bit for bit on a CPU).
        keep_seconds: between two states.
        ranks: that train together, each calling this with its own; all end with the same model.

    Returns:
        the model and what it took.

    Raises:
        TrainingFailed: the loss is not finite; ``seconds`` and ``flops`` of the exception say what was spent.
        ResumeError: ``keep`` is damaged, or the state of another training.
        ThriftyError: the data or the model cannot be packed, where ``settings`` asks for it.

    >>> from thrifty import AdamW, CrossEntropy
    >>> data = torch.utils.data.TensorDataset(torch.randn(256, 8), torch.randint(0, 3, (256,)))
    >>> done = fit(nn.Linear(8, 3), [AdamW(lr=0.01)], data, CrossEntropy())
    >>> done.steps, done.model.training
    (4, False)
    """
    settings = settings or Train(epochs=1)
    setup = Setup(settings.but(methods=tuple(methods)), data, loss, batch_size, seed, forward, collate, device, teachers, ranks)
    return train(setup, model, evaluate=evaluate, progress=progress, keep=keep, keep_seconds=keep_seconds)


def train(setup: Setup, model: nn.Module, *, evaluate: Callable[[nn.Module], float] | None = None,
          progress: Callable[[Step], None] | None = None, keep: Path | None = None,
          keep_seconds: float = KEEP_SECONDS) -> TrainingResult:
    """Train a model as a setup has it: `fit`, its arguments put together."""
    settings, device, ranks = setup.settings, setup.device, setup.ranks
    began = time.perf_counter()
    loader, steps = setup.loader, setup.steps
    planned = time.perf_counter() - began
    keeper = RanksKeeper(keep, ranks) if keep is not None and ranks.count > 1 else FileKeeper(keep)

    # Dropout and the like draw from torch's own generators: seeded here, and left as they were found.
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if device == "cuda" else []):
        torch.manual_seed(setup.seed)
        session = setup.session(model)
        if setup.parts.index:  # methods drew alike on all ranks; what is dropped from now on is each rank's own
            torch.manual_seed(setup.seed + setup.parts.index)
        identity = f"{session} on {length(setup.data)} examples, batches of {setup.size}, seed {setup.seed}, {device}"
        found = keeper.restore(session, identity)
        told = _Told(**found) if found else _Told(seconds=planned + session.prepared_seconds, flops=session.prepared_flops)
        clock, watch = _Clock(device, told.seconds, told.apart), _Watch(progress, steps, loader, session.step_number)
        due = {round(steps * (i + 1) / settings.evaluations) for i in range(settings.evaluations)} if evaluate else set()
        kept, losses = clock.seconds, _Losses(told.history, watch)
        try:
            for batch, number in zip(loader.batches(session.step_number), range(session.step_number + 1, steps + 1),
                                     strict=False):
                alike = (session.kind, tuple(tuple(x.shape) for x in batch[0]))
                if alike in told.counts:
                    value = session.step(batch)
                else:  # the first of steps that are alike is counted as it runs
                    value, count = count_flops(functools.partial(session.step, batch))
                    told.counts[alike] = count.flops
                    told.uncounted |= set(count.uncounted)
                told.flops += told.counts[alike] * ranks.count  # whose parts of a batch are nearly equal
                losses.add(number, value)
                if number in due and evaluate is not None:
                    with clock.paused():
                        losses.settle()
                        quality = ranks.gather(evaluate(session.evaluated()))[0]  # a sharded model needs all ranks
                        session.model.train()
                    told.evaluations.append((number, clock.seconds, told.flops, quality))
                if number < steps and keeper.due(clock.passed - kept >= keep_seconds):
                    losses.settle()
                    kept = told.seconds = clock.seconds
                    told.apart = clock.apart
                    keeper.keep(session, identity, dataclasses.asdict(told))
            losses.settle()
            session.require_finite()
            keeper.close()
        except TrainingFailed as error:
            error.seconds, error.flops = clock.seconds, told.flops
            raise
        claims, left = loader.claims() + session.claims(), session.finish()
        plans = tuple((str(transform), plan) for transform, plan in session.plans)
        return TrainingResult(left, steps, clock.seconds, clock.apart, told.flops, tuple(sorted(told.uncounted)),
                      tuple(told.history), tuple(Evaluation(*point) for point in told.evaluations), claims, plans)


@final
@dataclass
class _Told:
    """What the loop has counted so far; it is kept with the session's state."""

    seconds: float = 0.0
    apart: float = 0.0
    flops: float = 0.0
    counts: dict[Any, float] = dataclasses.field(default_factory=dict)
    """FLOPs of a step, by its kind and its inputs' shapes."""
    uncounted: set[str] = dataclasses.field(default_factory=set)
    history: list[tuple[int, float]] = dataclasses.field(default_factory=list)
    evaluations: list[tuple[int, float, float, float]] = dataclasses.field(default_factory=list)


class _Clock:
    """Seconds of training, and apart from them those of evaluations; an interrupted training's are counted on."""

    def __init__(self, device: str, seconds: float = 0.0, apart: float = 0.0) -> None:
        self.device, self.apart, self._began = device, apart, time.perf_counter() - seconds - apart

    @property
    def seconds(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return self.passed

    @property
    def passed(self) -> float:
        """The same by the host's clock alone: the device may have work left."""
        return time.perf_counter() - self._began - self.apart

    def paused(self) -> _Clock:
        return self

    def __enter__(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()
        self._paused = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self.apart += time.perf_counter() - self._paused


@final
class _Losses:
    """The losses of all steps; one of a GPU is read when the next step is under way."""

    def __init__(self, history: list[tuple[int, float]], watch: _Watch) -> None:
        self._history, self._watch = history, watch
        self._waiting: tuple[int, Readback] | None = None

    def add(self, step: int, value: Tensor) -> None:
        self.settle()
        self._waiting = (step, Readback(value))
        if not value.is_cuda:
            self.settle()

    def settle(self) -> None:
        """Read what was not read yet."""
        if self._waiting is not None:
            (step, value), self._waiting = self._waiting, None
            self._history.append((step, float(value.read())))
            self._watch(*self._history[-1])


class _Watch:
    """Tells progress, at most twice a second."""

    def __init__(self, tell: Callable[[Step], None] | None, total: int, loader: Loader | PackedLoader,
                 done: int = 0) -> None:
        self._tell, self._total, self._done = tell, total, done
        self._examples, self._tokens = loader.examples_per_batch, loader.tokens_per_batch
        self._began = self._last = time.perf_counter()

    def __call__(self, step: int, loss: float) -> None:
        now = time.perf_counter()
        if self._tell is None or (now - self._last < 0.5 and step < self._total):
            return
        self._last = now
        rate = (step - self._done) / max(now - self._began, 1e-9)
        tokens = None if self._tokens is None else rate * self._tokens
        self._tell(Step(step, self._total, loss, rate * self._examples, (self._total - step) / rate, tokens))
