"""What a block can be instead: made by the transforms that exist, applied to the block alone."""

from __future__ import annotations

import contextlib
import copy
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from thrifty.errors import NoEffect, ThriftyError
from thrifty.posttraining.nas.blocks import Block, Call, LeftOut, apart, in_place
from thrifty.recipes.context import Context
from thrifty.recipes.recipe import Recipe
from thrifty.recipes.transform import Plan, Transform

AS_IT_IS, LEFT_OUT = "as it is", "left out"
WEIGHTS = "weights"
"""The part of an alternative that a distillation left: tensors alone."""

Part = tuple[str, Mapping[str, Any], Mapping[str, Tensor]]
"""(a transform's text, or WEIGHTS; its plan's values; its plan's tensors, or the weights)."""


@final
@dataclass(frozen=True)
class Made:
    """An alternative: how it is made again from the block.

    Args:
        name: "as it is", "left out", or a recipe's text.
        parts: in order.
    """

    name: str
    parts: tuple[Part, ...] = ()

    def to_values(self) -> tuple[list[list[Any]], dict[str, Tensor]]:
        """JSON values, and tensors by name."""
        return ([[text, dict(values)] for text, values, _ in self.parts],
                {f"{i}/{name}": tensor for i, (_, _, tensors) in enumerate(self.parts) for name, tensor in tensors.items()})

    @staticmethod
    def of(name: str, values: Sequence[Sequence[Any]], tensors: Mapping[str, Tensor]) -> Made:
        """The reverse of `to_values`."""
        return Made(name, tuple((text, own, {key.removeprefix(f"{i}/"): tensor for key, tensor in tensors.items()
                                             if key.startswith(f"{i}/")}) for i, (text, own) in enumerate(values)))


def transforms(text: str) -> list[Transform]:
    """The phases of an alternative.

    Raises:
        ThriftyError: one of them is no transform, or the text names none.
    """
    phases = list(Recipe.parse(text))
    if not phases:
        raise ThriftyError("an alternative must be a recipe's text with at least one transform, but one is "
                           "empty; the unchanged block is always among them")
    if strange := [str(phase) for phase in phases if not isinstance(phase, Transform)]:
        raise ThriftyError(f"{strange[0]} is not a transform, and only transforms can change a block: after each, it is "
                           "distilled for a few steps")
    return [phase for phase in phases if isinstance(phase, Transform)]


def make(block: nn.Module, one: Block, text: str, seen: Sequence[Call], context: Context, steps: int, key: str = "") -> Made:
    """Decide an alternative of a block.

    Float weights that transforms changed are distilled once, before those transforms that leave none.

    Args:
        block: the module; not changed.
        one: what is known of it.
        text: a recipe of transforms, or "left out".
        seen: what the block reads and gives.
        context: of the search; where it distils nothing, the alternative stays as its transforms leave it.
        steps: of the distillation.
        key: of what is distilled.

    Raises:
        ThriftyError: a transform cannot be applied to this block; says why.
    """
    if text == LEFT_OUT:
        return Made(LEFT_OUT)
    module = apart(copy.deepcopy(block), one.form).eval()
    inner = Context(example=one.example, calibration=lambda: (call.args for call in seen), seed=context.seed,
                    target=context.target, rehearsal=context.rehearsal)
    parts: list[Part] = []
    pending = False

    def learn(module: nn.Module) -> nn.Module:
        if context.distil is None or not steps:
            return module
        done = context.distil(module, seen, steps=steps, key=f"{key}/{len(parts)}")
        if done.error < done.error_before:
            parts.append((WEIGHTS, {}, {name: x.detach().clone().contiguous() for name, x in done.student.state_dict().items()}))
        return done.student

    for phase in transforms(text):
        if "float-weights" in phase.removes and pending:
            module, pending = learn(module), False
        plan = phase.plan(copy.deepcopy(module), inner)
        parts.append((str(phase), json.loads(json.dumps(dict(plan.values))), dict(plan.tensors)))
        module = phase.build(module, plan).eval()
        pending = "float-weights" not in phase.removes
    if pending:
        learn(module)
    return Made(text, tuple(parts))


def build(block: nn.Module, one: Block, made: Made) -> nn.Module:
    """An alternative, to stand where the block stands.

    Args:
        block: the module, which may be changed.
        one: what is known of it.
        made: what was decided.
    """
    if made.name == AS_IT_IS:
        return block
    if made.name == LEFT_OUT:
        return LeftOut(one.wrapped)
    module = apart(block, one.form)
    for text, values, tensors in made.parts:
        if text == WEIGHTS:
            module.load_state_dict(dict(tensors))
        else:
            (phase,) = transforms(text)
            module = phase.build(module, Plan(values, tensors))
    return in_place(module, one.form).eval()


class OutOfTime(ThriftyError):
    """An alternative took longer than it may."""


# -- time ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def within(seconds: float) -> Iterator[None]:
    """Give up what takes longer, at the next call of a module or at its end.

    No signal and no thread interrupts it: an exception that arrives inside a native call can end the process. One native
    call that never returns is therefore not given up here, but by the time limit of the whole job.

    Raises:
        OutOfTime: it took longer.
    """
    end = time.monotonic() + seconds

    def look(*_: Any) -> None:
        if not torch.compiler.is_compiling() and time.monotonic() > end:
            raise OutOfTime(f"it took longer than {seconds:g} s")

    hook = register_module_forward_pre_hook(look)
    try:
        yield
    finally:
        hook.remove()
    look()


def reason(error: BaseException) -> str:
    """Why an alternative cannot be, in one line."""
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return first if isinstance(error, NoEffect | ThriftyError) else f"{type(error).__name__}: {first}"
