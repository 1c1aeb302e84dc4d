"""The workload's models: one for each call, and whether they answer alike."""

from __future__ import annotations

import copy
import dataclasses
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from thrifty.engines.parity import relative_error
from thrifty.errors import WorkloadError
from thrifty.workloads.blame import part, place
from thrifty.workloads.workload import Workload

ALIKE = 1e-4
"""Relative difference up to which two answers of one model are one: threads may sum in another order."""

# -- one model a call -------------------------------------------------------------------------------------------


@final
class Apart:
    """() -> nn.Module, no two of which share a parameter: copies, where the workload gives one object at every call.

    Args:
        make: the workload's own.
    """

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        self._make = make
        self._shared: bool | None = None

    def __call__(self) -> nn.Module:
        if self._shared is None:
            with torch.random.fork_rng(devices=[]):
                other = made(self._make)
            model = made(self._make)
            self._shared = bool(memory(other) & memory(model)) or other is model
        else:
            model = made(self._make)
        if not self._shared:
            return model
        try:
            return copy.deepcopy(model)
        except Exception as error:
            raise WorkloadError(f"model() gives the same {type(model).__name__} in every call, and it cannot be copied "
                                f"({type(error).__name__}: {error}): make a new one in each call") from error


def apart(workload: Workload) -> Workload:
    """The workload with models that share nothing."""
    return workload if isinstance(workload.model, Apart) else dataclasses.replace(workload, model=Apart(workload.model))


def made(make: Callable[[], nn.Module]) -> nn.Module:
    """A model.

    Raises:
        WorkloadError: it cannot be made, or is none.
    """
    with part("model()"):
        model = make()
    if not isinstance(model, nn.Module):
        raise WorkloadError(f"model() must return a torch.nn.Module but returned {_kind(model)}")
    return model


def memory(model: nn.Module) -> set[int]:
    """Where the model's parameters and buffers lie."""
    return {x.untyped_storage().data_ptr() for x in (*model.parameters(), *model.buffers())
            if not isinstance(x, nn.UninitializedParameter | nn.UninitializedBuffer) and x.layout is torch.strided} - {0}


def _kind(value: Any) -> str:
    return "None" if value is None else f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


# -- answers ----------------------------------------------------------------------------------------------------


def answers(model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The tensors that the model gives, in eval mode.

    Raises:
        WorkloadError: it gives anything else.
    """
    with torch.no_grad():
        return tensors_of(model.eval()(*inputs))


def tensors_of(outputs: Any) -> tuple[Tensor, ...]:
    """The tensors of a model's outputs.

    Raises:
        WorkloadError: there is anything else among them.
    """
    found = pytree.tree_leaves(outputs)
    strange = [x for x in found if not isinstance(x, Tensor)]
    if strange and dataclasses.is_dataclass(strange[0]):
        names = ", ".join(f'"{spec.name}": ...' for spec in dataclasses.fields(strange[0]))
        raise WorkloadError(f"the model returns the dataclass {type(strange[0]).__name__}, but an engine returns only tensors: "
                            f"have forward return a dictionary, {{{names}}}, or a tuple of tensors")
    if strange or not found:
        raise WorkloadError(f"the model returns {_kind(strange[0] if strange else outputs)}, but an engine returns only tensors: "
                            "have forward return a tensor, a tuple or a dictionary of tensors")
    return tuple(found)


def differ(before: Sequence[Tensor], after: Sequence[Tensor]) -> bool:
    """Whether two answers are not the same."""
    if [x.shape for x in before] != [x.shape for x in after]:
        return True
    return any(relative_error(*(np.nan_to_num(_array(x)) for x in pair)) > ALIKE for pair in zip(before, after, strict=True))


def _array(x: Tensor) -> np.ndarray:
    x = x.detach().cpu()
    x = torch.view_as_real(x) if x.is_complex() else x
    found: np.ndarray = x.double().numpy()
    return found


def check_steady(model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Refuse a model that answers one request in two ways.

    Raises:
        WorkloadError: it is random; the likely cause is named.
    """
    before = {name: x.detach().clone() for name, x in model.named_buffers()}
    if not differ(answers(model, inputs), answers(model, inputs)):
        return
    with _Draws() as draws:  # apart, since listening takes seconds of imports
        answers(model, inputs)
    moved = [name for name, x in model.named_buffers() if name in before and differ([before[name]], [x])]
    left_on = [name for name, module in model.named_modules() if module.training]
    drawn = sorted(draws.found, key=lambda text: "attention" in text)  # which draws where it drops alone
    cause = (f"{drawn[0]} draws random numbers in eval mode too: a dropout left on? Give it training=self.training" if drawn
             else f"its forward changes the buffer {moved[0]!r}" if moved
             else f"{left_on[0] or 'the model'} is still in training mode after eval()" if left_on
             else "its forward draws random numbers or keeps state, in eval mode too")
    raise WorkloadError(f"the model is random: two calls differ; {cause}")


class _Draws(TorchDispatchMode):
    """Hears which operators draw random numbers, and on which line of the user's code."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.found.append(f"{func.overloadpacket.__name__}{place(traceback.extract_stack())}")
        return func(*args, **(kwargs or {}))


# -- what no state_dict holds -----------------------------------------------------------------------------------


def unsaved(model: nn.Module, other: nn.Module) -> list[str]:
    """Attributes that no state_dict holds and that are another value in each of two models, by name."""
    others = dict(_plain(other))
    return [name for name, value in _plain(model) if name in others and not _same(value, others[name])]


def _plain(model: nn.Module) -> Iterator[tuple[str, Any]]:
    for prefix, module in model.named_modules():
        hidden = {name: module._buffers[name] for name in module._non_persistent_buffers_set}
        own = {name: value for name, value in vars(module).items() if name not in vars(nn.Module()) and name != "training"}
        for name, value in {**hidden, **own}.items():
            for path, leaf in pytree.tree_flatten_with_path(value)[0]:
                if isinstance(leaf, Tensor | np.ndarray | int | float):
                    yield f"{prefix}.{name}".lstrip(".") + pytree.keystr(path), leaf


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and not differ([one], [other])
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return np.array_equal(one, other)
    return type(one) is type(other) and (one == other or one != one)
