"""Where an engine begins to differ from its model: the first submodule whose output does."""

from __future__ import annotations

import contextlib
import copy
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from thrifty.artifacts import artifact
from thrifty.compilers.parity import as_tuple
from thrifty.engines.parity import relative_error, tolerance
from thrifty.recipes.compiler import Compiler
from thrifty.recipes.context import Context


@final
class Tapped(nn.Module):
    """A model that gives the outputs of submodules behind its own.

    Args:
        model: taken as it is.
        names: of submodules; of one that is called more than once, the first call's output is given.
    """

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        with _outputs(self.model, self.names) as taken:
            outputs = as_tuple(self.model(*inputs))
        return (*outputs, *(taken[name] for name in self.names))


@contextlib.contextmanager
def _outputs(model: nn.Module, names: tuple[str, ...]) -> Iterator[dict[str, Tensor]]:
    """Submodules' first outputs during a call, in the order in which they are finished; tensors alone."""
    taken: dict[str, Tensor] = {}

    def keep(name: str, output: Any) -> None:
        first = next(iter(as_tuple(output)), None)
        if isinstance(first, Tensor):
            taken.setdefault(name, first)

    handles = [model.get_submodule(name).register_forward_hook(lambda module, inputs, output, name=name: keep(name, output))
               for name in names]
    try:
        yield taken
    finally:
        for handle in handles:
            handle.remove()


def first_divergence(compiler: Compiler, model: nn.Module, inputs: tuple[Tensor, ...], context: Context) -> str:
    """Lower the model again, with the outputs of all of its submodules, and compare them in the order of the call.

    Args:
        compiler: that lowered it.
        model: that it lowered.
        inputs: on which the engine's outputs differ from the model's.
        context: as it was lowered with.

    Returns:
        a clause for an error: which submodule's output differs first, or that none does where all are asked for.
    """
    model = copy.deepcopy(model).eval()
    with torch.no_grad():
        with _outputs(model, tuple(name for name, _ in model.named_modules() if name)) as taken:
            model(*inputs)
        tapped = Tapped(model, tuple(taken))
        expected = tapped(*inputs)[-len(taken):] if taken else ()
        try:
            got, precision = _lowered(compiler, tapped, inputs, context)
        except Exception as error:  # whatever a backend raises: this only explains another error
            return f"it cannot be lowered with all intermediate outputs ({str(error).strip().splitlines()[0][:200]})"
    for name, right, output in zip(taken, expected, got[-len(taken):] if taken else (), strict=True):
        difference = relative_error(right.float().cpu().numpy(), output.float().cpu().numpy())
        if not difference <= tolerance(precision, context.target.device):
            kind = type(model.get_submodule(name)).__name__
            return f"the first output that differs is that of {name} ({kind}), by {difference:.3g}"
    return ("no submodule's output differs when all are requested: the difference arises between them, or in what the "
            "compiler fuses")


def _lowered(compiler: Compiler, model: nn.Module, inputs: tuple[Tensor, ...],
             context: Context) -> tuple[tuple[Tensor, ...], str]:
    """An engine's outputs for one request, and its precision."""
    with tempfile.TemporaryDirectory() as place:
        lowered = compiler.lower(model, context.example, Path(place), context)
        artifact.write(Path(place), lowered, {}, [], [])
        loaded = artifact.load(place, threads=context.target.threads, device=context.target.device, trust_native_code=True)
        with contextlib.closing(loaded) as engine:
            return as_tuple(engine(*inputs)), lowered.precision
