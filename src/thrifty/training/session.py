"""A training under way: what the hooks of training methods see, and what a user's own loop drives."""

from __future__ import annotations

import hashlib
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar, final

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from thrifty.architectures.moe import penalty
from thrifty.compilers.inprocess import compiled, released
from thrifty.errors import ThriftyError, TrainingFailed
from thrifty.posttraining.pruning.zeros import Held, held_weights, still_held
from thrifty.recipes.claim import Claim
from thrifty.recipes.method import Method, require_device
from thrifty.recipes.phases import Train
from thrifty.recipes.ranks import Alone, Ranks
from thrifty.recipes.registry import DEFAULT_OPTIMIZER, method_class
from thrifty.recipes.session import Session, Teachers
from thrifty.recipes.training_method import STAGES, Stage, TrainingMethod
from thrifty.recipes.transform import Plan, Transform
from thrifty.training.batches import mapped, micro_batches, moved, own
from thrifty.training.checkpointing import recompute
from thrifty.training.distributed.parallel import Parallel, Summed, all_finite, clip, scale, shared, trained
from thrifty.training.flops import count_flops
from thrifty.training.readback import PendingStep, Readback
from thrifty.training.schedules import rate
from thrifty.workloads.workload import Batch, Forward, Loss, call_model

T = TypeVar("T")


@final
class TrainingSession(Session):
    """A training under way: what the hooks of a `TrainingMethod` see.

    A user's own loop drives the methods with it too::

        session = TrainingSession(model, [AdamW(lr=1e-3), Bf16()], CrossEntropy(), steps=100)
        for inputs, target in loader:
            loss = session.step(((inputs,), target))
        model = session.finish()

    Args:
        model: trained in place, unless a method replaces it.
        methods: in any order; they are applied in the order of `STAGES`. AdamW where none provides an optimizer.
        loss: (outputs, batch) -> (sum, weight).
        steps: optimizer steps of the whole training, which the learning rate's schedule needs.
        settings: schedule, warm-up, clipping, accumulation, checkpointing, compilation; those of ``Train()`` where None.
        forward: (model, batch) -> outputs.
        device: that the model is trained on.
        teachers: recipe's text (and, where it is another's, the workload's reference) -> its model, for methods that distil.
        aside: (number of examples, batches to pass over) -> endless batches of so many, drawn apart from those that are
            trained on.
        ranks: that train together; each takes its own part of every batch, and all end with the same weights.

    Raises:
        ThriftyError: a method does not run on the device, or the methods make no optimizer, or several.
    """

    def __init__(self, model: nn.Module, methods: Sequence[TrainingMethod], loss: Loss, *, steps: int,
                 settings: Train | None = None, forward: Forward = call_model, device: str = "cpu",
                 teachers: Teachers | None = None,
                 aside: Callable[[int, int], Iterator[Batch]] | None = None, ranks: Ranks = Alone()) -> None:
        if isinstance(model, DistributedDataParallel):
            raise ThriftyError("the model is wrapped in DistributedDataParallel, but a session sums the gradients of its ranks "
                               "itself: give the bare model, and ranks=")
        self.methods = _staged(methods)
        self.settings = settings or Train()
        self.batch_size, self.accumulate = self.settings.batch_size, self.settings.accumulate
        self.compiled, self.schedule = self.settings.compiled, self.settings.schedule
        self.model, self.loss, self.steps, self.device = model.train(), loss, steps, device
        self.ranks = shared(ranks, self.methods)
        self.forward, self._teachers, self._aside = forward, teachers, aside
        self._memory: dict[str, dict[str, Any]] = {}
        self._drawn: dict[int, Iterator[Batch]] = {}
        self._count_drawn: dict[int, int] = {}
        self.plans: list[tuple[Transform, Plan]] = []
        self.prepared_seconds = self.prepared_flops = 0.0
        self.step_number = 0
        self.loss_scale = 1.0
        self.products = torch.float32
        self.weight = torch.ones(())
        self._pending: PendingStep | None = None
        self._parallel = next((m for m in self.methods if isinstance(m, Parallel)), Summed()) if ranks.count > 1 else Summed()
        self._factor = self.ranks.count if self._parallel.averages else 1
        for method in self.methods:
            require_device(method, device)
        masked = held_weights(model)  # a method may put other modules around them
        for stage in STAGES:
            self._enter(stage)
            for method in self.methods:
                if method.stage == stage:
                    method.prepare(self)
        self.optimizer = self._make_optimizer()
        self._rates = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: rate(self.schedule, step, self.steps, self.settings.warmup))
        self._run = self._chain()
        self._zeros = Held(still_held(self.model, masked))  # where the model's device and numbers are by now

    def _enter(self, stage: Stage) -> None:
        """What the settings of the training do in a stage, before its methods prepare."""
        match stage:
            case "checkpointing":
                recompute(self.model, self.settings.checkpointing)
            case "compile" if self.settings.compiled:
                compiled(self.model)
            case "sharding":
                self._parallel.place(self)

    # -- what hooks use -----------------------------------------------------------------------------------------

    def memory(self, method: Method) -> dict[str, Any]:
        return self._memory.setdefault(method.name, {})

    def teacher(self, recipe: str, workload: str = "") -> nn.Module:
        if self._teachers is None:
            raise ThriftyError("a teacher is needed: fit(..., teachers=lambda recipe: my_teacher)")
        found = self._teachers(recipe, workload) if workload else self._teachers(recipe)
        return found.to(self.device).eval().requires_grad_(False)

    def call(self, model: nn.Module, batch: Batch) -> Any:
        return self.forward(model, batch)

    def outputs(self, batch: Batch) -> Any:
        return self._run(batch)

    def mean_loss(self, batch: Batch) -> Tensor:
        total, self.weight = self._losses(batch)
        return total / self.weight

    def fresh(self, batch: Batch, share: float) -> Batch:
        whole = int(self.ranks.sum(torch.tensor(len(batch[0][0]), device=self.device)))
        count = max(self.ranks.count, round(share * whole))
        if self._aside is None:
            return mapped(batch, lambda x: x[: count // self.ranks.count])  # type: ignore[no-any-return]
        if count not in self._drawn:
            self._drawn[count] = self._aside(count, self._count_drawn.setdefault(count, 0))
        self._count_drawn[count] += 1
        return moved(own(next(self._drawn[count]), self.ranks), self.device)

    def aside(self, examples: int) -> Iterator[Batch]:
        if self._aside is None:
            raise ThriftyError("examples are needed besides those of the steps: TrainingSession(..., aside=lambda examples, "
                               "passed: batches), endless batches of that many examples, skipping the first ``passed``")
        where = next((p.device for p in self.model.parameters()), torch.device("cpu"))
        return (moved(batch, where) for batch in self._aside(examples, 0))

    def charged(self, work: Callable[[], T]) -> T:
        began = time.perf_counter()
        found, count = count_flops(work)
        self.prepared_seconds += time.perf_counter() - began
        self.prepared_flops += count.flops
        return found

    @property
    def kind(self) -> tuple[str, ...]:
        """The kind of the coming step: steps of one kind on equal batches take the same FLOPs."""
        return tuple(method.step_kind(self) for method in self.methods)

    def backward(self, loss: Tensor) -> bool:
        (loss * (self.loss_scale * self._factor)).backward()  # type: ignore[no-untyped-call]
        gradients = self._parallel.gradients(self)
        if self.loss_scale == 1:
            return True
        scale(gradients, 1 / self.loss_scale)
        return all_finite(gradients, self.ranks)

    # -- a step -------------------------------------------------------------------------------------------------

    def step(self, batch: Batch) -> Tensor:
        """One optimizer step on one batch; returns the mean loss, detached.

        Raises:
            TrainingFailed: the loss is not finite. A GPU's is looked at in the next step, `require_finite` or `finish`, so that
                the device never waits for the host.
        """
        batch = moved(batch, self.device)
        for method in self.methods:
            batch = method.part(self, batch)
        for method in self.methods:
            method.before(self, batch)
        self.step_number += 1
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._gradients(batch)
        self._update()
        self._zeros.restore()
        with warnings.catch_warnings():  # torch warns where the very first step was skipped, as fp16 may have to
            if self.step_number == 1:
                warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
            self._rates.step()
        return loss

    def require_finite(self) -> None:
        """Look at the last step's loss, where that was put off.

        Raises:
            TrainingFailed: the loss is not finite.
        """
        step, self._pending = self._pending, None
        self._require_finite(step)

    def finish(self) -> nn.Module:
        """The model as it leaves training, in eval mode, on the CPU.

        Methods finish in the reverse of the order in which they were applied: weights are averaged before their
        structure changes. One that changes structure leaves in ``plans`` the transform that builds it and its plan.

        Raises:
            TrainingFailed: the last loss is not finite.
        """
        self.require_finite()
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
        self.require_finite()
        return {
            "model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
            "schedule": self._rates.state_dict(), "step": self.step_number, "drawn": dict(self._count_drawn),
            "methods": {method.name: method.state_dict(self) for method in self.methods},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave, in a session of the same model and methods.

        Raises:
            ThriftyError: it is another model's, or other methods' state.
        """
        if sorted(state["methods"]) != sorted(method.name for method in self.methods):
            raise ThriftyError(f"this state is from a training with {', '.join(state['methods'])}, but this one has "
                               f"{', '.join(method.name for method in self.methods)}: start over, or train with the same")
        try:
            self.model.load_state_dict(state["model"])
        except RuntimeError as error:
            raise ThriftyError(f"this state is from another model: {str(error).splitlines()[-1].strip()}") from error
        self.optimizer.load_state_dict(state["optimizer"])
        self._rates.load_state_dict(state["schedule"])
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
        if (paid := penalty(self.model)) is not None:
            total = total + weight * paid.to(total.device)
        return total, weight

    def _gradients(self, batch: Batch) -> Tensor:
        """Gradients of the mean loss over the batches of all ranks, one micro-batch's graph at a time.

        The weight of the whole is known after the last forward pass alone. Until then the first part's stands for it,
        which keeps gradients in the range that they would have; the factor between the two is applied at the end.

        Returns:
            the mean, detached, the same on every rank.
        """
        parts = micro_batches(batch, self.settings.accumulate)
        told = torch.zeros(3, dtype=torch.float64, device=self.device)  # losses, weights, parts that are not finite
        means = []
        for number, part in enumerate(parts, 1):
            with self._parallel.micro_batch(self, number == len(parts)):
                total, weight = self._losses(part)
                weight = torch.as_tensor(weight, device=self.device).detach()
                if number == 1:
                    supposed = self.ranks.sum(weight) * len(parts)
                    if len(parts) > 1:
                        supposed = torch.where(supposed > 0, supposed, torch.ones_like(supposed))
                share = total / supposed
                told += torch.stack([total.detach().double(), weight.double(), (~share.detach().isfinite()).double()])
                means.append(total.detach() / weight)
                self._backward(share * self._factor if self._factor > 1 else share)
        summed = self.ranks.sum(told)
        self.weight = summed[1]
        step = PendingStep(self.step_number, batch, means, Readback(torch.cat([summed, told])))
        if self.device == "cuda":  # a step's numbers are read when the next one is under way: the device never waits for the host
            step, self._pending = self._pending, step  # type: ignore[assignment]
        self._require_finite(step)
        gradients = self._parallel.gradients(self)
        if len(parts) > 1:
            scale(gradients, (supposed.double() / self.weight).float())
        return (summed[0] / summed[1]).to(means[0].dtype)

    def _require_finite(self, step: PendingStep | None) -> None:
        if step is None:
            return
        _, count, bad, _, _, own_bad = step.numbers.read().tolist()
        if bad or not count:  # on every rank where it is so on one of them
            mean = next((x for x in map(float, step.means) if not math.isfinite(x)), math.nan)
            reasons = self.ranks.gather(self._why(step, mean, count) if own_bad or not count else "")
            raise TrainingFailed(next(reason for reason in reasons if reason))

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
            clip([p.grad for p in trained(self) if p.grad is not None], self.settings.clip)
        self.optimizer.step()

    def _why(self, step: PendingStep, loss: float, weight: float) -> str:
        where = f"the loss is {loss} at step {step.step} of {self.steps}"
        if any(x.is_floating_point() and not torch.isfinite(x).all() for x in step.batch[0]):
            return f"{where}: the batch's inputs hold NaN or infinity; clean the training data"
        if weight == 0:
            return f"{where}: the batch has no valid target, so there is no mean; clean the data or enlarge the batch"
        updated = self.device == "cuda"  # with this very loss, before it was looked at
        bad = [name for name, p in self.model.named_parameters() if not updated and not torch.isfinite(p).all()]
        weights = f", and weights of {bad[0]} are no longer finite" if bad else ""
        rate = self.optimizer.param_groups[0]["lr"]
        return f"{where}{weights}; lower the learning rate (it is {rate:.3g} now), warm up longer, or clip gradients"


def _staged(methods: Sequence[TrainingMethod]) -> list[TrainingMethod]:
    """The methods in the order of `STAGES`, with an optimizer among them."""
    given = list(methods)
    if not any(method.card.slot == "optimizer" for method in given):
        default = method_class(DEFAULT_OPTIMIZER)()
        assert isinstance(default, TrainingMethod)
        given.append(default)
    return sorted(given, key=lambda method: STAGES.index(method.stage))


def _around(method: TrainingMethod, session: TrainingSession, proceed: Callable[[Batch], Any]) -> Callable[[Batch], Any]:
    return lambda batch: method.forward(session, batch, proceed)


def _backward_around(method: TrainingMethod, session: TrainingSession,
                     proceed: Callable[[Tensor], None]) -> Callable[[Tensor], None]:
    return lambda loss: method.backward(session, loss, proceed)


def _update_around(method: TrainingMethod, session: TrainingSession, proceed: Callable[[], None]) -> Callable[[], None]:
    return lambda: method.update(session, proceed)
