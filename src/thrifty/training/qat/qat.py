"""Quantization-aware training: weights and activations are rounded while the model learns to bear it."""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

import torch
from torch import Tensor, nn

from thrifty.numerics.linears import ready
from thrifty.numerics.schemes import INTEGERS
from thrifty.posttraining.quantization.assign import FLOAT, GROUPS
from thrifty.posttraining.quantize import Quantize
from thrifty.recipes.card import Card
from thrifty.recipes.claim import Claim
from thrifty.recipes.context import Context
from thrifty.recipes.hyperparameters import choice, number, table
from thrifty.recipes.training_method import Stage, TrainingMethod
from thrifty.recipes.transform import Plan
from thrifty.training.qat.exchange import integers, rounding
from thrifty.training.qat.layers import WEIGHTED

if TYPE_CHECKING:
    from thrifty.recipes.session import Session
    from thrifty.workloads.workload import Batch

CALIBRATION_EXAMPLES, CALIBRATION_BATCH = 256, 32
"""As `quantize` gets in a run."""
STATISTICS_EXAMPLES = 1024
"""From which batch norms take the statistics that then stand still."""


@final
@dataclass(frozen=True)
class Qat(TrainingMethod):
    """The forward pass rounds what `quantize` with the same scheme would hold in low precision; gradients pass through the
    rounding as if it were not there. The model leaves training as `quantize` builds it, with the trained values.

    - Ranges and smoothing begin as `quantize` finds them on examples drawn from the training data.
    - Batch norms see the rounded convolution and are folded at the end. A weight that jumps between two integers moves
      what its norm sees, and an average over past steps is of no model. So in the last share of the steps integers stand
      still, and statistics, which are taken anew from them; steps, biases and the norms' own weights are trained on.
    - ``lsq``: the step of every static grid is learned with the weights. ``ste``: steps of weights follow the weights'
      extents, those of activations stay.

    Rounding is a change that small learning rates mend: a tenth of the first training's is a good start.

    Args:
        scheme: bits of weights and activations.
        estimator: how steps are found: learned step sizes, or the straight-through estimator alone.
        freeze: share of the steps, the last ones, in which integers and statistics of a model with batch norms stand still.
        group: weights a scale, as `quantize` has it.
        layers: schemes of some layers, as `quantize` has them.

    >>> Qat("w8a8")
    Qat(scheme='w8a8', estimator='lsq', freeze=0.2, group=128, layers={})
    """

    scheme: str = choice("w4a8", *INTEGERS)
    estimator: str = choice("lsq", "lsq", "ste")
    freeze: float = number(0.2, 0, 1)
    group: int = choice(128, *GROUPS)
    layers: Mapping[str, str] = table(*INTEGERS, FLOAT)

    name: ClassVar[str] = "qat"
    stage: ClassVar[Stage] = "numerics"
    card: ClassVar[Card] = Card(
        family="qat",
        benefit="inference time",
        trade_off="an additional training, with steps that round everything they read",
        paper='"Learned Step Size Quantization", Esser et al. 2019, arXiv:1902.08153; "Quantization and Training of Neural '
              'Networks for Efficient Integer-Arithmetic-Only Inference", Jacob et al. 2017, arXiv:1712.05877',
        needs=frozenset({"calibration", "labels"}),
        requires=frozenset({"module", "float-weights"}),
        provides=frozenset({"quantized"}),
        removes=frozenset({"float-weights"}),
        refuses=frozenset({"adapters", "rounded-steps"}),
        holds=frozenset({"rounded-steps"}),
    )

    @property
    def hardware_bound(self) -> bool:
        return self._quantize().hardware_bound

    def prepare(self, session: Session) -> None:
        transform = self._quantize()
        model = ready(session.model)
        plan, twin = session.charged(lambda: _planned(transform, model, _inputs(session, CALIBRATION_EXAMPLES)))
        claims = transform.claims(model, twin)
        session.model = rounding(model, twin, self.estimator == "lsq").train()
        session.memory(self).update(
            transform=transform, plan=plan, claims=claims,
            norms=[m for m in session.model.modules() if getattr(m, "running_mean", None) is not None],
        )

    def step_kind(self, session: Session) -> str:
        return "statistics" if self._settles(session) else ""

    def before(self, session: Session, batch: Batch) -> None:
        if self._settles(session):
            for layer in session.model.modules():
                if isinstance(layer, WEIGHTED):
                    layer.grid.settle(layer.weight)
            with _averaging(session.memory(self)["norms"]), torch.no_grad():
                for inputs in _inputs(session, STATISTICS_EXAMPLES):
                    session.call(session.model, (inputs, None))

    def forward(self, session: Session, batch: Batch, proceed: Callable[[Batch], Any]) -> Any:
        if session.step_number > self._free_steps(session):
            for norm in session.memory(self)["norms"]:  # every time: an evaluation ends in model.train()
                norm.eval()
        return proceed(batch)

    def _quantize(self) -> Quantize:
        """What finds ranges and smoothing and builds what is left: weights are those that are trained, evened out and
        corrected by training alone, so only algorithms that choose grids serve."""
        of_weights = any(INTEGERS[each].activations == "float" for each in (self.scheme, *self.layers.values())
                         if each in INTEGERS)
        return Quantize(self.scheme, algorithm="awq" if of_weights else "smoothquant", group=self.group, layers=self.layers,
                        equalize=False, correct=False)

    def _free_steps(self, session: Session) -> int:
        """Those before statistics stand still."""
        return round((1 - self.freeze) * session.steps)

    def _settles(self, session: Session) -> bool:
        """Whether the coming step is the first with statistics that stand still."""
        return bool(session.memory(self)["norms"]) and self.freeze > 0 and session.step_number == self._free_steps(session)

    def finish(self, session: Session, model: nn.Module) -> nn.Module:
        memory = session.memory(self)
        session.plans.append((memory["transform"], memory["plan"]))
        return integers(model)

    def claims(self, session: Session) -> tuple[Claim, ...]:
        ratios = [p.detach() for name, p in session.model.named_parameters() if name.endswith("ratio")]
        found: tuple[Claim, ...] = session.memory(self)["claims"]
        if ratios:
            moved = sum(bool((ratio != 1).any()) for ratio in ratios) / len(ratios)
            found += (Claim("share of learned grids that moved", 0.0, moved, minimum=0.5),)
        return found


def _planned(transform: Quantize, model: nn.Module, data: Iterator[tuple[Tensor, ...]]) -> tuple[Plan, nn.Module]:
    """What `quantize` decides on this model, and what it builds of a copy; convolutions beside float activations stay float."""
    batches = [tuple(x.cpu() for x in inputs) for inputs in data]
    context = Context(example=tuple(x[:1] for x in batches[0]), calibration=lambda: iter(batches))
    with torch.no_grad():
        found = transform.plan(copy.deepcopy(model).eval(), context)
        plan = Plan({**found.values, "rounded": {}}, found.tensors)  # of what has weights alone, linear layers are trained
        return plan, transform.build(copy.deepcopy(model).eval(), plan)


def _inputs(session: Session, examples: int) -> Iterator[tuple[Tensor, ...]]:
    """Batches of inputs drawn apart from those that are trained on."""
    return (inputs for inputs, _ in itertools.islice(session.aside(CALIBRATION_BATCH), examples // CALIBRATION_BATCH))


@contextlib.contextmanager
def _averaging(norms: Sequence[Any]) -> Iterator[None]:
    """Batch norms take the plain average over the batches that they see meanwhile."""
    before = [norm.momentum for norm in norms]
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
        yield
    finally:
        for norm, momentum in zip(norms, before, strict=True):
            norm.momentum = momentum
