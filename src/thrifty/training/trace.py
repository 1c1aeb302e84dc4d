"""One training step watched: what is allocated and given back, in order, by what it is for."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, final

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

GRAIN = 512
"""Bytes that torch's allocators round up to."""
_CAST = torch.ops.aten._to_copy.default


@final
@dataclass(frozen=True)
class Event:
    """Something that changes what is held.

    Args:
        kind: memory that is taken or given back ("bytes"), a group of parameters that is entered in the forward pass ("enter"), a
            parameter's gradient that is whole ("gradient").
        amount: bytes, negative where they are given back; of a gradient its numbers.
        group: of parameters; -1 where it is of none.
        key: of the storage, so that a gradient's bytes can be told from what passes.
    """

    kind: Literal["bytes", "enter", "gradient"]
    amount: int
    group: int = -1
    key: int = 0


@final
@dataclass
class Trace:
    """A step's events, and which storages are gradients, or parameters in another precision, as autocast makes them."""

    events: list[Event] = field(default_factory=list)
    gradients: set[int] = field(default_factory=set)
    casts: set[int] = field(default_factory=set)


@final
class Watch(TorchDispatchMode):
    """Notes storages that operators make, and when they go."""

    def __init__(self, parameters: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.trace = Trace()
        self._parameters = {x.untyped_storage().data_ptr() for x in parameters}
        self._known: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()
        self._count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {id(x.untyped_storage()) for x in tree_iter((args, kwargs)) if isinstance(x, Tensor)}
        out = func(*args, **(kwargs or {}))
        for x in tree_iter(out):
            if isinstance(x, Tensor) and id(storage := x.untyped_storage()) not in before and storage not in self._known:
                self._note(storage)
                if func is _CAST and args[0].untyped_storage().data_ptr() in self._parameters:
                    self.trace.casts.add(self._count)
        return out

    def _note(self, storage: torch.UntypedStorage) -> None:
        self._count += 1
        key, size = self._count, -(-storage.nbytes() // GRAIN) * GRAIN
        self._known[storage] = key
        self.trace.events.append(Event("bytes", size, key=key))
        weakref.finalize(storage, self.trace.events.append, Event("bytes", -size, key=key))

    def key(self, x: Tensor) -> int | None:
        """The key of the storage behind a tensor; None where it was there before."""
        return self._known.get(x.untyped_storage())


def traced(model: nn.Module, groups: list[list[nn.Parameter]], modules: list[nn.Module], step: Callable[[], Any]) -> Trace:
    """Watch a step.

    Args:
        model: that is trained.
        groups: its parameters, as they are gathered together; the first group is of what stands around the blocks.
        modules: where each group is entered, in the same order.
        step: forward and backward pass and the optimizer's step, on one process; gradients are there after it.
    """
    watch = Watch(model.parameters())
    handles = list(_hooks(watch.trace, groups, modules))
    try:
        with watch:
            step()
    finally:
        for handle in handles:
            handle.remove()
    found = (watch.key(p.grad) for p in model.parameters() if p.grad is not None)
    watch.trace.gradients |= {key for key in found if key is not None}
    return watch.trace


def _hooks(trace: Trace, groups: list[list[nn.Parameter]], modules: list[nn.Module]) -> Iterator[Any]:
    for index, (parameters, module) in enumerate(zip(groups, modules, strict=True)):
        enter = Event("enter", 0, index)
        yield module.register_forward_pre_hook(lambda *_, event=enter: trace.events.append(event))
        for p in parameters:
            if p.requires_grad:
                event = Event("gradient", p.numel(), index)
                yield p.register_post_accumulate_grad_hook(lambda _, event=event: trace.events.append(event))
