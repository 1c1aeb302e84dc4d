"""The training loop: one, driven by hooks, readable in one sitting."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from thrifty.errors import ThriftyError, TrainingFailed
from thrifty.method import LAYERS, Claim, TrainingMethod
from thrifty.quality import length
from thrifty.recipe import Train
from thrifty.registry import method_class
from thrifty.training.data import Loader
from thrifty.training.flops import FlopCount, count_flops
from thrifty.workload import Batch, Forward, Loss, call_model

WSD_DECAY = 0.2
"""Share of the steps after warm-up over which "wsd" falls to zero, linearly."""

ASIDE = 1_000_003
"""Batches drawn aside take their order from a seed so far from training's that epochs do not share it."""


@final
@dataclass(frozen=True)
class Step:
    """Where training stands: told to whoever watches, at most twice a second."""

    step: int
    total: int
    loss: float
    examples_per_second: float
    seconds_left: float


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
class Fitted:
    """What training left.

    Args:
        model: in eval mode, on the CPU.
        steps: optimizer steps taken.
        seconds: of training alone; evaluations are in ``evaluation_seconds``.
        flops: of all forward and backward passes, teachers' too.
        uncounted: operators that ran and have no FLOP formula.
        history: [(step, loss)] of every step.
        evaluations: in order.
        claims: [(method's name, claim)].
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


class Fit:
    """A training under way: what the hooks of a `TrainingMethod` see.

    A user's own loop drives the methods with it too::

        fit = Fit(model, [AdamW(lr=1e-3), Bf16()], CrossEntropy(), steps=100)
        for inputs, target in loader:
            loss = fit.step(((inputs,), target))
        model = fit.finish()

    Args:
        model: trained in place, unless a method replaces it.
        methods: in any order; they are applied in the order of `LAYERS`. AdamW where none provides an optimizer.
        loss: (outputs, batch) -> (sum, weight).
        steps: optimizer steps of the whole training, which the learning rate's schedule needs.
        settings: schedule, warm-up and clipping; those of ``Train()`` where None.
        forward: (model, batch) -> outputs.
        device: that the model is trained on.
        teachers: recipe's text -> its model, for methods that distil.
        aside: number of examples -> endless batches of so many, drawn apart from those that are trained on.
    """

    def __init__(self, model: nn.Module, methods: list[TrainingMethod], loss: Loss, *, steps: int,
                 settings: Train | None = None, forward: Forward = call_model, device: str = "cpu",
                 teachers: Callable[[str], nn.Module] | None = None,
                 aside: Callable[[int], Iterator[Batch]] | None = None) -> None:
        given = list(methods)
        if not any(method.card.slot == "optimizer" for method in given):
            default = method_class("adamw")()
            assert isinstance(default, TrainingMethod)
            given.append(default)
        self.methods = sorted(given, key=lambda method: LAYERS.index(method.layer))
        self.settings = settings or Train()
        self.model, self.loss, self.steps, self.device = model.to(device).train(), loss, steps, device
        self.decay = self.settings.schedule
        self._forward, self._teachers, self._aside = forward, teachers, aside
        self._memory: dict[str, dict[str, Any]] = {}
        self._drawn: dict[int, Iterator[Batch]] = {}
        self.step_number = 0
        self.weight = torch.ones(())
        for method in self.methods:
            method.prepare(self)
        self.optimizer = self._make_optimizer()
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._rate)
        self._run = self._chain()

    # -- what hooks use -----------------------------------------------------------------------------------------

    def memory(self, method: TrainingMethod) -> dict[str, Any]:
        """What a method remembers during this training."""
        return self._memory.setdefault(method.name, {})

    def teacher(self, recipe: str) -> nn.Module:
        """The model that a recipe leaves ("" for the workload's reference), frozen, in eval mode, on the device.

        Raises:
            ThriftyError: nobody provides teachers here.
        """
        if self._teachers is None:
            raise ThriftyError("a teacher is needed: fit(..., teachers=lambda recipe: my_teacher)")
        return self._teachers(recipe).to(self.device).eval().requires_grad_(False)

    def call(self, model: nn.Module, batch: Batch) -> Any:
        """The workload's forward on any model."""
        return self._forward(model, batch)

    def outputs(self, batch: Batch) -> Any:
        """The model's outputs, with every method around the forward pass."""
        return self._run(batch)

    def mean_loss(self, batch: Batch) -> Tensor:
        """The loss that is minimised, every method's part in it."""
        return self._loss(batch)

    def fresh(self, batch: Batch, share: float) -> Batch:
        """A batch of a share of this one's examples, on the device, that the coming step is not trained on.

        Where the session does not know the data (a loop of the user's own), the batch's first examples, which are
        fresh as long as no step was taken on them.
        """
        count = max(1, round(share * len(batch[0][0])))
        if self._aside is None:
            return _mapped(batch, lambda x: x[:count])  # type: ignore[no-any-return]
        if count not in self._drawn:
            self._drawn[count] = self._aside(count)
        return self._moved(next(self._drawn[count]))

    @property
    def kind(self) -> tuple[str, ...]:
        """Of the coming step: steps of one kind on equal batches take the same FLOPs."""
        return tuple(method.step_kind(self) for method in self.methods)

    # -- a step -------------------------------------------------------------------------------------------------

    def step(self, batch: Batch) -> Tensor:
        """One optimizer step on one batch; returns the mean loss, detached.

        Raises:
            TrainingFailed: the loss is not finite.
        """
        batch = self._moved(batch)
        for method in self.methods:
            method.before(self, batch)
        self.step_number += 1
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._loss(batch)
        if not math.isfinite(float(loss.detach())):
            raise TrainingFailed(self._why(batch, float(loss.detach())))
        self._backward(loss)
        self._update()
        self.schedule.step()
        return loss.detach()

    def finish(self) -> nn.Module:
        """The model as it leaves training, in eval mode, on the CPU."""
        model = self.model
        for method in self.methods:
            model = method.finish(self, model)
        return model.eval().to("cpu")

    def evaluated(self) -> nn.Module:
        """The model that would be evaluated now."""
        model = self.model
        for method in self.methods:
            model = method.evaluate(self, model)
        return model

    def claims(self) -> tuple[tuple[str, Claim], ...]:
        return tuple((method.name, claim) for method in self.methods for claim in method.claims(self))

    # -- inside -------------------------------------------------------------------------------------------------

    def _make_optimizer(self) -> torch.optim.Optimizer:
        groups: list[dict[str, Any]] = [{"params": [p for p in self.model.parameters() if p.requires_grad]}]
        if not groups[0]["params"]:
            raise ThriftyError("the model has no parameter that requires a gradient: there is nothing to train")
        for method in self.methods:
            groups = method.parameter_groups(self, groups)
        made = [optimizer for method in self.methods if (optimizer := method.optimizer(self, groups)) is not None]
        if len(made) != 1:
            raise ThriftyError(f"training needs one optimizer but its methods made {len(made)}")
        return made[0]

    def _rate(self, step: int) -> float:
        """Factor of the learning rate: linear warm-up, then the schedule down to zero."""
        warm = self.settings.warmup * self.steps
        if step < warm:
            return (step + 1) / (warm + 1)
        done = min(1.0, (step - warm) / (self.steps - warm))
        return {"cosine": 0.5 * (1 + math.cos(math.pi * done)), "linear": 1 - done, "constant": 1.0,
                "wsd": min(1.0, (1 - done) / WSD_DECAY)}[self.decay]

    def _moved(self, batch: Batch) -> Batch:
        inputs, target = batch
        return tuple(x.to(self.device) for x in inputs), _mapped(target, lambda x: x.to(self.device))

    def _chain(self) -> Callable[[Batch], Any]:
        """The forward pass with every method around it, the first one outermost."""
        def innermost(batch: Batch) -> Any:
            return self._forward(self.model, batch)

        run: Callable[[Batch], Any] = innermost
        for method in reversed(self.methods):
            run = _around(method, self, run)
        return run

    def _loss(self, batch: Batch) -> Tensor:
        outputs = self._run(batch)
        total, weight = self.loss(outputs, batch)
        for method in self.methods:
            total, weight = method.loss(self, outputs, batch, total, weight)
        self.weight = weight
        return total / weight

    def _backward(self, loss: Tensor) -> None:
        proceed: Callable[[Tensor], None] = torch.Tensor.backward
        for method in reversed(self.methods):
            proceed = _backward_around(method, self, proceed)
        proceed(loss)

    def _update(self) -> None:
        proceed: Callable[[], None] = self._clip_and_step
        for method in reversed(self.methods):
            proceed = _update_around(method, self, proceed)
        proceed()

    def _clip_and_step(self) -> None:
        if self.settings.clip is not None:
            nn.utils.clip_grad_norm_([p for group in self.optimizer.param_groups for p in group["params"]],
                                     self.settings.clip)
        self.optimizer.step()

    def _why(self, batch: Batch, loss: float) -> str:
        where = f"the loss is {loss} at step {self.step_number} of {self.steps}"
        if any(x.is_floating_point() and not torch.isfinite(x).all() for x in batch[0]):
            return f"{where}: the batch's inputs hold NaN or infinity; clean the training data"
        if float(self.weight) == 0:
            return f"{where}: the batch has no valid target, so there is no mean; clean the data or enlarge the batch"
        bad = [name for name, p in self.model.named_parameters() if not torch.isfinite(p).all()]
        weights = f", and weights of {bad[0]} are no longer finite" if bad else ""
        rate = self.optimizer.param_groups[0]["lr"]
        return f"{where}{weights}; lower the learning rate (it is {rate:.3g} now), warm up longer, or clip gradients"


def _around(method: TrainingMethod, fit: Fit, proceed: Callable[[Batch], Any]) -> Callable[[Batch], Any]:
    return lambda batch: method.forward(fit, batch, proceed)


def _backward_around(method: TrainingMethod, fit: Fit, proceed: Callable[[Tensor], None]) -> Callable[[Tensor], None]:
    return lambda loss: method.backward(fit, loss, proceed)


def _update_around(method: TrainingMethod, fit: Fit, proceed: Callable[[], None]) -> Callable[[], None]:
    return lambda: method.update(fit, proceed)


def _mapped(target: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(target, Tensor):
        return change(target)
    return type(target)(_mapped(part, change) for part in target) if isinstance(target, list | tuple) else target


# -- the verb ---------------------------------------------------------------------------------------------------


def fit(model: nn.Module, methods: Any, data: Dataset[Any], loss: Loss, *, settings: Train | None = None,
        batch_size: int = 64, seed: int = 0, forward: Forward = call_model,
        collate: Callable[[list[Any]], Any] | None = None, device: str = "cpu",
        teachers: Callable[[str], nn.Module] | None = None, evaluate: Callable[[nn.Module], float] | None = None,
        progress: Callable[[Step], None] | None = None) -> Fitted:
    """Train a model.

    Args:
        model: trained in place, unless a method replaces it.
        methods: training methods, in any order; AdamW where none provides an optimizer.
        data: map-style dataset of (input, target).
        loss: (outputs, batch) -> (sum, weight).
        settings: how long, and schedule, warm-up, clipping, evaluations; one epoch of ``Train()`` where None.
        batch_size: examples, where ``settings`` names none.
        seed: of the order of the data and of dropout; the same seed gives the same weights, bit for bit on a CPU.
        forward: (model, batch) -> outputs.
        collate: joins dataset items.
        device: "cpu" or "cuda".
        teachers: recipe's text -> its model, for methods that distil.
        evaluate: model -> quality, higher is better; its seconds are counted apart.
        progress: told where training stands.

    Returns:
        the model and what it took.

    Raises:
        TrainingFailed: the loss is not finite; ``seconds`` and ``flops`` of the exception say what was spent.

    >>> from thrifty import AdamW, CrossEntropy
    >>> data = torch.utils.data.TensorDataset(torch.randn(256, 8), torch.randint(0, 3, (256,)))
    >>> done = fit(nn.Linear(8, 3), [AdamW(lr=0.01)], data, CrossEntropy())
    >>> done.steps, done.model.training
    (4, False)
    """
    settings = settings or Train(epochs=1)
    size = min(settings.batch_size or batch_size, length(data))
    loader = Loader(data, size, seed, collate)
    steps = settings.steps or max(1, round((settings.epochs or 1) * loader.steps_per_epoch))
    # Dropout and the like draw from torch's own generators: seeded here, and left as they were found.
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if device == "cuda" else []):
        torch.manual_seed(seed)
        session = Fit(model, list(methods), loss, steps=steps, settings=settings, forward=forward, device=device,
                      teachers=teachers, aside=lambda examples: iter(Loader(data, examples, seed + ASIDE, collate)))
        clock, watch = _Clock(device), _Watch(progress, steps, size)
        history: list[tuple[int, float]] = []
        evaluations: list[Evaluation] = []
        due = {round(steps * (i + 1) / settings.evaluations) for i in range(settings.evaluations)} if evaluate else set()
        counts: dict[Any, FlopCount] = {}  # by shape and kind
        flops, uncounted = 0.0, set[str]()
        try:
            for batch, number in zip(loader, range(1, steps + 1), strict=False):
                alike = session.kind, tuple(tuple(x.shape) for x in batch[0])
                if alike in counts:
                    value = session.step(batch)
                else:  # the first of steps that are alike is counted as it runs
                    value, counts[alike] = count_flops(functools.partial(session.step, batch))
                    uncounted |= set(counts[alike].uncounted)
                flops += counts[alike].flops
                history.append((number, float(value)))
                watch(number, history[-1][1])
                if number in due and evaluate is not None:
                    with clock.paused():
                        quality = evaluate(session.evaluated())
                        session.model.train()
                    evaluations.append(Evaluation(number, clock.seconds, flops, quality))
        except TrainingFailed as error:
            error.seconds, error.flops = clock.seconds, flops
            raise
        claims = session.claims()
        return Fitted(session.finish(), steps, clock.seconds, clock.apart, flops, tuple(sorted(uncounted)),
                      tuple(history), tuple(evaluations), claims)


class _Clock:
    """Seconds of training, and apart from them those of evaluations."""

    def __init__(self, device: str) -> None:
        self.device, self.apart, self._began = device, 0.0, time.perf_counter()

    @property
    def seconds(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - self._began - self.apart

    def paused(self) -> _Clock:
        return self

    def __enter__(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()
        self._paused = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self.apart += time.perf_counter() - self._paused


class _Watch:
    """Tells progress, at most twice a second."""

    def __init__(self, tell: Callable[[Step], None] | None, total: int, batch_size: int) -> None:
        self._tell, self._total, self._size = tell, total, batch_size
        self._began = self._last = time.perf_counter()

    def __call__(self, step: int, loss: float) -> None:
        now = time.perf_counter()
        if self._tell is None or (now - self._last < 0.5 and step < self._total):
            return
        self._last = now
        rate = step / max(now - self._began, 1e-9)
        self._tell(Step(step, self._total, loss, rate * self._size, (self._total - step) / rate))
