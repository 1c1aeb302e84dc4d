"""A method that changes a model between trainings."""

from __future__ import annotations

import abc
import copy
import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, final

from torch import Tensor, nn

from thrifty.numerics.plain import refuse_old_norms
from thrifty.recipes.claim import Claim
from thrifty.recipes.context import Context, required_inputs
from thrifty.recipes.method import Method
from thrifty.recipes.text import arguments_text


@final
@dataclass(frozen=True)
class Plan:
    """What a transform decided: JSON values and tensors, from which `Transform.build` rebuilds the same model."""

    values: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    timings: tuple[float, ...] = ()
    """Seconds that the method measured while it decided, in order: given these again, it decides the same."""


@dataclass(frozen=True)
class Transform(Method):
    """A method that changes the model between trainings: planning may be expensive, building is cheap."""

    def __str__(self) -> str:
        """As it stands in a recipe's text. Its first hyperparameter is always there: ``quantize(w8a8)`` and
        ``prune(ratio=0.5)`` say more than ``quantize`` and ``prune``."""
        first = [spec.name for spec in dataclasses.fields(self)][:1]
        return f"{self.name}({', '.join(arguments_text(self, always=first))})"

    @property
    def timed(self) -> bool:
        """Whether it decides by ``context.time``: its plan then holds for one target and one processor."""
        return False

    @property
    def hardware_bound(self) -> bool:
        return self.timed

    @property
    def calibrated(self) -> bool:
        """Whether it looks at data; where it does not, it can be called without any."""
        return True

    @abc.abstractmethod
    def plan(self, model: nn.Module, context: Context) -> Plan:
        """Decide. The model is not changed."""

    @abc.abstractmethod
    def build(self, model: nn.Module, plan: Plan) -> nn.Module:
        """Apply a plan to the model, in place or not; needs no data and gives the same result every time.

        The structure must not depend on the values of the weights: a checkpoint is rebuilt on a fresh model
        whose weights are loaded last.
        """

    def list_layers(self, model: nn.Module, plan: Plan) -> list[dict[str, Any]]:
        """What it made of single layers, for ``thrifty show --layers``: rows of JSON values. Most list none.

        Args:
            model: as `build` left it.
            plan: by which it was built.
        """
        return []

    @abc.abstractmethod
    def claims(self, before: nn.Module, after: nn.Module) -> tuple[Claim, ...]:
        """What the method says it changed, measured on both models."""

    def __call__(self, model: nn.Module, data: Iterable[Any] = (), seed: int = 0) -> nn.Module:
        """Apply the method alone, on a copy.

        Raises:
            NoEffect: nothing changed.
        """
        refuse_old_norms(model)
        original = copy.deepcopy(model).eval()
        context = (Context.of(data, seed, required_inputs(model) or None) if self.calibrated
                   else Context((), lambda: iter(()), seed))
        after = self.build(copy.deepcopy(original), self.plan(copy.deepcopy(original), context))
        for claim in self.claims(original, after):
            claim.checked(self.name)
        return after
