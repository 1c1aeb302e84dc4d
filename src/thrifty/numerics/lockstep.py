"""Calibration in lockstep: all batches go through the model side by side, and wait at every layer for one another.

So a layer can be decided on what all of them bring to it, and replaced before any goes on: what later layers read comes
from the layers as they have become, in one forward pass, whatever the model's Python does between its layers.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn


class _Stopped(BaseException):
    """Unwinds a batch's thread when another failed."""


@final
class _Walker:
    """One batch on its way: a thread that runs only between `advance` and the next layer it stops at."""

    def __init__(self, model: nn.Module, batch: tuple[Tensor, ...]) -> None:
        self.at: str | None = None
        """The layer that it waits at; None once it is through."""
        self.inputs: Tensor | None = None
        self.error: BaseException | None = None
        self._stopped = False
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        context = contextvars.copy_context()
        self._thread = threading.Thread(target=lambda: context.run(self._run, model, batch), daemon=True)
        self._thread.start()

    def _run(self, model: nn.Module, batch: tuple[Tensor, ...]) -> None:
        self._go.acquire()
        try:
            if not self._stopped:
                with torch.no_grad():  # is each thread's own
                    model(*batch)
        except _Stopped:
            pass
        except BaseException as error:
            self.error = error
        self.at = self.inputs = None
        self._back.release()

    def wait(self, name: str, inputs: Tensor) -> None:
        """In the batch's thread: let the others come to this layer."""
        self.at, self.inputs = name, inputs
        self._back.release()
        self._go.acquire()
        if self._stopped:
            raise _Stopped

    def advance(self) -> None:
        """Run to the next layer, or to the end."""
        self._go.release()
        self._back.acquire()
        if self.error is not None:
            raise self.error

    def stop(self) -> None:
        if self._thread.is_alive():
            self._stopped = True
            self._go.release()
            self._thread.join()

    @property
    def is_current(self) -> bool:
        return threading.current_thread() is self._thread


def in_lockstep(model: nn.Module, layers: Mapping[str, nn.Module], batches: Iterable[tuple[Tensor, ...]],
                visit: Callable[[str, Sequence[Tensor]], Iterable[str]]) -> None:
    """Run every batch through the model and stop at its layers.

    Args:
        model: ready to run.
        layers: of the model, by name. Where batches part ways, the layer that comes first here is visited first; one that
            is reached again later is not visited again.
        batches: inputs of the model. All are held at once, with what they are in the middle of.
        visit: (name, what the layer is about to read, a tensor for each batch that came to it) -> names that need no visit
            any more; it may change the model from there on.
    """
    walkers = [_Walker(model, batch) for batch in batches]
    order, done = list(layers), set[str]()

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def stop(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            if name not in done:
                next(walker for walker in walkers if walker.is_current).wait(name, inputs[0])

        return stop

    handles = [layer.register_forward_pre_hook(hook(name)) for name, layer in layers.items()]
    try:
        for walker in walkers:
            walker.advance()
        while waiting := [walker for walker in walkers if walker.at is not None]:
            name = min((walker.at for walker in waiting if walker.at is not None), key=order.index)
            here = [walker for walker in waiting if walker.at == name]
            done |= {name, *visit(name, [walker.inputs for walker in here if walker.inputs is not None])}
            for walker in here:
                walker.advance()
    finally:
        for handle in handles:
            handle.remove()
        for walker in walkers:
            walker.stop()
