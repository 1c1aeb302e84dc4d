"""What the optimizers share: who is decayed, whose a checkpoint is, what the state weighs."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from types import ModuleType
from typing import Any, TypeVar

import torch
from torch import Tensor

from thrifty.errors import MissingExtra, ThriftyError
from thrifty.recipes.claim import Claim

Made = TypeVar("Made", bound=torch.optim.Optimizer)

STAMP = "made_by"


class WrongOptimizer(ThriftyError):
    """The state of another optimizer."""


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
            raise WrongOptimizer(f"this state is {found or 'not one that Thrifty saved'}, which {name} cannot go on "
                                 f"from: train with {found or 'the optimizer that made it'}, or begin anew")

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


def state_bytes(optimizer: torch.optim.Optimizer) -> float:
    """Bytes of state a parameter, steps and other single numbers left out."""
    held = sum(_bytes(value) for state in optimizer.state.values() for value in state.values())
    return held / sum(p.numel() for group in optimizer.param_groups for p in group["params"])


def _bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        inner = getattr(value, "__tensor_flatten__", None)
        parts: Iterable[Any] = [value] if inner is None else [getattr(value, name) for name in inner()[0]]
        return sum(part.nbytes for part in parts if part.numel() > 1)
    return sum(map(_bytes, value)) if isinstance(value, list | tuple) else 0


def smaller_state(optimizer: torch.optim.Optimizer) -> tuple[Claim, ...]:
    """The claim of the optimizers that hold less than AdamW's two float32 numbers a parameter."""
    return (Claim("bytes of optimizer state a parameter", 8.0, state_bytes(optimizer), minimum=1.0),)
