"""A training under way: what the hooks of training methods see, and what a user's own loop drives."""

from __future__ import annotations

import hashlib
import math
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from thrifty.compilers.inprocess import compiled, released
from thrifty.errors import ThriftyError, TrainingFailed
from thrifty.method import LAYERS, Claim, Plan, TrainingMethod, Transform, require_device
from thrifty.recipe import Train
from thrifty.registry import method_class
from thrifty.training.checkpointing import recompute
from thrifty.training.flops import count_flops
from thrifty.workload import Batch, Forward, Loss, call_model

T = TypeVar("T")

WSD_DECAY = 0.2
"""Share of the steps after warm-up over which "wsd" falls to zero, linearly."""


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
        settings: schedule, warm-up, clipping, accumulation, checkpointing, compilation; those of ``Train()`` where None.
        forward: (model, batch) -> outputs.
        device: that the model is trained on.
        teachers: recipe's text -> its model, for methods that distil.
        aside: (number of examples, batches to pass over) -> endless batches of so many, drawn apart from those that are
            trained on.
    """

    def __init__(self, model: nn.Module, methods: list[TrainingMethod], loss: Loss, *, steps: int,
                 settings: Train | None = None, forward: Forward = call_model, device: str = "cpu",
                 teachers: Callable[[str], nn.Module] | None = None,
                 aside: Callable[[int, int], Iterator[Batch]] | None = None) -> None:
        given = list(methods)
        if not any(method.card.slot == "optimizer" for method in given):
            default = method_class("adamw")()
            assert isinstance(default, TrainingMethod)
            given.append(default)
        self.methods = sorted(given, key=lambda method: LAYERS.index(method.layer))
        self.settings = settings or Train()
        self.model, self.loss, self.steps, self.device = model.to(device).train(), loss, steps, device
        self.decay = self.settings.schedule
        self.forward, self._teachers, self._aside = forward, teachers, aside
        self._memory: dict[str, dict[str, Any]] = {}
        self._drawn: dict[int, Iterator[Batch]] = {}
        self._count_drawn: dict[int, int] = {}
        self.plans: list[tuple[Transform, Plan]] = []
        self.prepared_seconds = self.prepared_flops = 0.0
        self.step_number = 0
        self.loss_scale = 1.0
        self.weight = torch.ones(())
        for method in self.methods:
            require_device(method, device)
        for method in self.methods:
            method.prepare(self)
        recompute(self.model, self.settings.checkpointing)
        if self.settings.compiled:
            compiled(self.model)
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
        return self.forward(model, batch)

    def outputs(self, batch: Batch) -> Any:
        """The model's outputs, with every method around the forward pass."""
        return self._run(batch)

    def mean_loss(self, batch: Batch) -> Tensor:
        """The loss that is minimised, every method's part in it."""
        total, self.weight = self._losses(batch)
        return total / self.weight

    def fresh(self, batch: Batch, share: float) -> Batch:
        """A batch of a share of this one's examples, on the device, that the coming step is not trained on.

        Where the session does not know the data (a loop of the user's own), the batch's first examples, which are
        fresh as long as no step was taken on them.
        """
        count = max(1, round(share * len(batch[0][0])))
        if self._aside is None:
            return _mapped(batch, lambda x: x[:count])  # type: ignore[no-any-return]
        if count not in self._drawn:
            self._drawn[count] = self._aside(count, self._count_drawn.setdefault(count, 0))
        self._count_drawn[count] += 1
        return self._moved(next(self._drawn[count]))

    def aside(self, examples: int) -> Iterator[Batch]:
        """Endless batches of so many examples on the device, the same ones each time, to look at and not to train on.

        Raises:
            ThriftyError: the session does not know the data.
        """
        if self._aside is None:
            raise ThriftyError("examples are needed apart from the steps: Fit(..., aside=lambda examples, passed: batches), "
                               "endless batches of so many, the first ``passed`` of them left out")
        return map(self._moved, self._aside(examples, 0))

    def charged(self, work: Callable[[], T]) -> T:
        """Do what a method needs done before the first step; its seconds and FLOPs are the training's."""
        began = time.perf_counter()
        found, count = count_flops(work)
        self.prepared_seconds += time.perf_counter() - began
        self.prepared_flops += count.flops
        return found

    @property
    def kind(self) -> tuple[str, ...]:
        """Of the coming step: steps of one kind on equal batches take the same FLOPs."""
        return tuple(method.step_kind(self) for method in self.methods)

    def backward(self, loss: Tensor) -> bool:
        """Leave the gradients of a loss that is not the step's own (an estimate's, say), scaled on their way where the
        precision wants it; says whether all of them are finite."""
        (loss * self.loss_scale).backward()  # type: ignore[no-untyped-call]
        if self.loss_scale == 1:
            return True
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        torch._foreach_mul_(gradients, 1 / self.loss_scale)
        return bool(torch.stack(torch._foreach_norm(gradients, float("inf"))).isfinite().all())

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
        loss = self._gradients(batch)
        self._update()
        with warnings.catch_warnings():  # torch warns where the very first step was skipped, as fp16 may have to
            if self.step_number == 1:
                warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
            self.schedule.step()
        return loss

    def finish(self) -> nn.Module:
        """The model as it leaves training, in eval mode, on the CPU.

        Methods finish in the reverse of the order in which they were applied: weights are averaged before their
        structure changes. One that changes structure leaves in ``plans`` the transform that builds it and its plan.
        """
        model = self.model
        for method in reversed(self.methods):
            model = method.finish(self, model)
        return recompute(released(model), "none").eval().to("cpu")

    def evaluated(self) -> nn.Module:
        """The model that would be evaluated now."""
        model = self.model
        for method in self.methods:
            model = method.evaluate(self, model)
        return model

    def claims(self) -> tuple[tuple[str, Claim], ...]:
        return tuple((method.name, claim) for method in self.methods for claim in method.claims(self))

    def __str__(self) -> str:
        """What is trained and how, as far as it decides the next step."""
        shapes = repr([(name, tuple(x.shape), x.dtype) for name, x in self.model.state_dict().items()])
        return (f"{type(self.model).__name__} {hashlib.sha256(shapes.encode()).hexdigest()[:12]}, {self.steps} steps, "
                f"{self.settings}, {', '.join(map(repr, self.methods))}")

    # -- what exact resumption needs ----------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Model, optimizer, schedule, methods, counters: with the generators' states, all that the next step depends on."""
        return {
            "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(), "step": self.step_number, "drawn": dict(self._count_drawn),
            "methods": {method.name: method.state_dict(self) for method in self.methods},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave, in a session of the same model and methods.

        Raises:
            ThriftyError: it is another model's, or other methods' state.
        """
        if sorted(state["methods"]) != sorted(method.name for method in self.methods):
            raise ThriftyError(f"this state is of a training with {', '.join(state['methods'])}, and this one has "
                               f"{', '.join(method.name for method in self.methods)}: begin anew, or train with the same")
        try:
            self.model.load_state_dict(state["model"])
        except RuntimeError as error:
            raise ThriftyError(f"this state is of another model: {str(error).splitlines()[-1].strip()}") from error
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.step_number, self._count_drawn, self._drawn = state["step"], dict(state["drawn"]), {}
        for method in self.methods:
            method.load_state_dict(self, state["methods"][method.name])

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
        for group in made[0].param_groups:  # before the schedule notes them
            group["lr"] *= group.pop("lr_factor", 1.0)
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
            return self.forward(self.model, batch)

        run: Callable[[Batch], Any] = innermost
        for method in reversed(self.methods):
            run = _around(method, self, run)
        return run

    def _losses(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Sum and weight of a batch's losses, every method's part in them."""
        outputs = self._run(batch)
        total, weight = self.loss(outputs, batch)
        for method in self.methods:
            total, weight = method.loss(self, outputs, batch, total, weight)
        return total, weight

    def _gradients(self, batch: Batch) -> Tensor:
        """Gradients of the batch's mean loss, one micro-batch's graph at a time; returns the mean, detached.

        The weight of the whole is known after the last forward pass alone. Until then the first part's stands for it,
        which keeps gradients in the range that they would have; the factor between the two is applied at the end.
        """
        parts = micro_batches(batch, self.settings.accumulate)
        sums, weights = [], []
        for part in parts:
            total, weight = self._losses(part)
            sums.append(total.detach())
            weights.append(weight.detach())
            supposed = weights[0] * len(parts) if float(weights[0]) or len(parts) == 1 else torch.ones(())
            if not math.isfinite(float(sums[-1] / supposed)):
                self.weight = weights[-1]
                raise TrainingFailed(self._why(part, float(sums[-1] / weights[-1])))
            self._backward(total / supposed)
        self.weight = torch.stack([torch.as_tensor(weight) for weight in weights]).sum()
        if len(parts) > 1:
            factor = supposed / self.weight
            gradients = [p.grad for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
            torch._foreach_mul_(gradients, float(factor))
        return torch.stack(sums).sum() / self.weight

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


def micro_batches(batch: Batch, count: int) -> list[Batch]:
    """A batch in at most so many parts of nearly equal size.

    >>> [len(inputs[0]) for inputs, _ in micro_batches(((torch.zeros(7, 2),), torch.zeros(7)), 3)]
    [3, 2, 2]
    """
    count = min(count, len(batch[0][0]))
    if count == 1:
        return [batch]

    def part(i: int) -> Batch:
        return _mapped(batch, lambda x: x.tensor_split(count)[i])  # type: ignore[no-any-return]

    return [part(i) for i in range(count)]


def _mapped(target: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(target, Tensor):
        return change(target)
    return type(target)(_mapped(part, change) for part in target) if isinstance(target, list | tuple) else target
