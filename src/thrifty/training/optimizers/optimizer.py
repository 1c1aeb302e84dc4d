"""What every optimizer is: its card, who is decayed, whose a state is, what the state weighs."""

from __future__ import annotations

import abc
import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, final

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from thrifty.errors import MissingExtra, ThriftyError
from thrifty.recipes.card import Card
from thrifty.recipes.claim import Claim
from thrifty.recipes.training_method import Stage, TrainingMethod

if TYPE_CHECKING:
    from thrifty.recipes.session import Session

Made = TypeVar("Made", bound=torch.optim.Optimizer)

STAMP = "made_by"


class WrongOptimizer(ThriftyError):
    """The state of another optimizer."""


@dataclass(frozen=True)
class Optimizer(TrainingMethod):
    """Makes the optimizer of a training. Biases and the scales of norms are not decayed, and the optimizer's state says
    which method made it.
    """

    stage: ClassVar[Stage] = "optimizer"
    light: ClassVar[bool] = False
    """Whether it claims a smaller state than AdamW's two float32 numbers a parameter."""
    tuned: ClassVar[tuple[str, ...]] = ("lr",)
    """Hyperparameters that its paper says have to be tuned, the one that matters most first."""

    @property
    @abc.abstractmethod
    def weight_decay(self) -> float:
        """A hyperparameter of each: a step shrinks weights by lr * weight_decay."""

    @abc.abstractmethod
    def make(self, session: Session, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Make the optimizer.

        Args:
            session: the training.
            groups: of parameters, with their "weight_decay".
        """

    def parameter_groups(self, session: Session, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return decayed(groups, self.weight_decay)

    @final
    def optimizer(self, session: Session, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return stamped(self.make(session, groups), self.name)

    def claims(self, session: Session) -> tuple[Claim, ...]:
        if not self.light:
            return ()
        return (Claim("bytes of optimizer state a parameter", 8.0, state_bytes(session.optimizer), minimum=1.0),)


def optimizer_card(*, trade_off: str, paper: str, refuses: frozenset[str] = frozenset()) -> Card:
    """The card of an optimizer: all but what it costs, where it comes from and what it cannot train is the same for each."""
    return Card(
        family="optimizers",
        benefit="training time",
        trade_off=trade_off,
        paper=paper,
        needs=frozenset({"labels"}),
        requires=frozenset({"module", "float-weights"}),
        refuses=refuses,
        slot="optimizer",
    )


def decayed(groups: list[dict[str, Any]], weight_decay: float) -> list[dict[str, Any]]:
    """Split each group in two: matrices and the like, which are decayed, and biases and the scales of norms.

    >>> split = decayed([{"params": [torch.ones(2, 2), torch.ones(2)]}], 0.1)
    >>> [(len(group["params"]), group["weight_decay"]) for group in split]
    [(1, 0.1), (1, 0.0)]
    """
    split = [
        {**group, "params": [p for p in group["params"] if (p.ndim > 1) == shrinks],
         "weight_decay": group.get("weight_decay", weight_decay) if shrinks else 0.0}
        for group in groups
        for shrinks in (True, False)
    ]
    return [group for group in split if group["params"]]


def stamped(optimizer: Made, name: str) -> Made:
    """Write the method's name into the optimizer's state, and refuse the state of another one.

    torch compares the sizes of groups alone: AdamW's state would be taken by any optimizer, which fails steps later or
    not at all.

    Raises:
        WrongOptimizer: by ``load_state_dict``, on a state that names another method or none.
    """
    def write(_: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        return {**state, STAMP: name}

    def compare(_: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        found = state.get(STAMP)
        if found != name:
            raise WrongOptimizer(f"this state is {found or 'not one that Thrifty saved'}, which {name} cannot resume "
                                 f"from: train with {found or 'the optimizer that made it'}, or start over")

    optimizer.register_state_dict_post_hook(write)
    optimizer.register_load_state_dict_pre_hook(compare, prepend=True)
    return optimizer


def library(package: str, extra: str = "optimizers") -> ModuleType:
    """An optional package.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise MissingExtra(package.split(".")[0], extra) from error


def local(x: Any) -> Tensor:
    """This rank's part of a tensor that may be sharded."""
    return x.to_local() if isinstance(x, DTensor) else x  # type: ignore[no-any-return]


def loss_of(closure: Callable[[], Any] | None) -> Any:
    """What the closure of a step computes, with gradients; None where there is none."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def state_bytes(optimizer: torch.optim.Optimizer) -> float:
    """Bytes of state a parameter, steps and other single numbers left out."""
    held = sum(_bytes(value) for state in optimizer.state.values() for value in state.values())
    return held / sum(p.numel() for group in optimizer.param_groups for p in group["params"])


def _bytes(value: Any) -> float:
    if isinstance(value, DTensor):  # of all ranks: each of them holds a part
        part = value.to_local()
        return _bytes(part) * value.numel() / part.numel() if part.numel() else 0.0
    if isinstance(value, Tensor):
        inner = getattr(value, "__tensor_flatten__", None)
        parts: Iterable[Any] = [value] if inner is None else [getattr(value, name) for name in inner()[0]]
        return sum(part.nbytes for part in parts if part.numel() > 1)
    return sum(map(_bytes, value)) if isinstance(value, list | tuple) else 0


def fusable(groups: list[dict[str, Any]]) -> bool:
    """Whether torch's fused kernel takes all parameters: it takes no complex ones."""
    return not any(p.is_complex() for group in groups for p in group["params"])
