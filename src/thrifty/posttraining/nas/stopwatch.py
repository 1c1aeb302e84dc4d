"""What a module takes on the target: seconds in the engine, bytes, the largest layer; equal modules are timed once."""

from __future__ import annotations

import copy
import functools
import hashlib
from typing import Any, final

import torch
from torch import Tensor, nn

from thrifty.engines.instructions import instruction_set
from thrifty.errors import ThriftyError
from thrifty.measure.environment import processor, runtime_versions
from thrifty.numerics.flat import tensors_of
from thrifty.posttraining.nas.alternatives import OutOfTime, reason
from thrifty.posttraining.nas.table import BATCH, Row
from thrifty.posttraining.quantization.sensitivity import held
from thrifty.recipes.compiler import Compiler
from thrifty.recipes.context import Context, Reference, SearchBudgetSpent
from thrifty.recipes.registry import method_class


class Refused(ThriftyError):
    """A module that cannot be, or that the engine does not take, and why."""


def require(engine: str, method: str, context: Context) -> None:
    """Raise where something would be timed in an engine that is not installed.

    Raises:
        ThriftyError: names what is missing.
    """
    if engine == "eager" or context.time is None:
        return
    compiler = method_class(engine)
    assert issubclass(compiler, Compiler)
    if missing := compiler.missing():
        raise ThriftyError(f"{method}(engine={engine}): {missing}; or time in another engine")


@final
class Stopwatch:
    """Times modules in one engine, each in turns with the model as it is: a processor's speed drifts in the hours of a search,
    and figures of different hours are added.

    Args:
        context: that measures.
        engine: "eager", or a compiler's name.
        throughput: whether batches are timed too.
        model: as it is, in eval mode; copied.
    """

    def __init__(self, context: Context, engine: str, throughput: bool, model: nn.Module) -> None:
        self._context, self._engine, self._throughput = context, engine, throughput
        self._model = copy.deepcopy(model)
        self._known: dict[str, float] = {}
        self._where = repr((engine, context.target, processor(), instruction_set(), runtime_versions()))

    def row(self, name: str, model: nn.Module) -> Row:
        """A whole model: what it takes for a request, nothing of what it loses.

        Raises:
            Refused: the engine does not take it.
        """
        example = self._context.example
        return Row(name, self.seconds(model, example), float(held(model)), peak(model, example), batch=self.batch(model, example))

    def batch(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> float | None:
        """Seconds of `BATCH` requests in one call; None where throughput does not matter."""
        return self.seconds(module, tuple(_repeated(x) for x in inputs)) if self._throughput else None

    def seconds(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> float:
        """Seconds of a call; equal modules on equal inputs are timed once.

        Raises:
            Refused: the engine does not take it.
        """
        reference = self._reference
        same = signature(module, inputs) == signature(reference.module, reference.inputs)
        return reference.seconds if same else self._asked(module, inputs, reference)

    @functools.cached_property
    def _reference(self) -> Reference:
        """The model as it is, timed alone."""
        example = self._context.example
        return Reference(self._model, example, self._asked(self._model, example, None))

    def _asked(self, module: nn.Module, inputs: tuple[Tensor, ...], reference: Reference | None) -> float:
        beside = [] if reference is None else [signature(reference.module, reference.inputs)]
        key = hashlib.sha256("\n".join(("time", self._where, signature(module, inputs), *beside)).encode()).hexdigest()
        if key not in self._known:
            kept = self._context.recall(key, lambda: self._clocked(module, inputs, key, reference))
            if "refused" in kept:
                raise Refused(kept["refused"])
            self._known[key] = float(kept["seconds"])
        return self._known[key]

    def _clocked(self, module: nn.Module, inputs: tuple[Tensor, ...], key: str, reference: Reference | None) -> dict[str, Any]:
        try:
            return {"seconds": self._clock(module, inputs, key, reference)}
        except (SearchBudgetSpent, OutOfTime):
            raise
        except Exception as failed:  # whatever an exporter or a backend raises on this module
            return {"refused": f"{self._engine} cannot compile it: {reason(failed)}"}

    def _clock(self, module: nn.Module, inputs: tuple[Tensor, ...], key: str, reference: Reference | None) -> float:
        if self._context.time is None:  # nothing is timed here: what is held and multiplied stands for it
            return 1e-9 * held(module)
        return self._context.time(copy.deepcopy(module).eval(), inputs, engine=self._engine, key=key, reference=reference)


def _repeated(x: Tensor) -> Tensor:
    """`BATCH` requests of one; a tensor without a dimension of requests stays."""
    return x.expand(BATCH, *x.shape[1:]).contiguous() if x.ndim and len(x) == 1 else x


def signature(module: nn.Module, inputs: tuple[Tensor, ...]) -> str:
    """A hash of what decides how long a call takes: structure, shapes and types, no values."""
    tensors = [(name, tuple(x.shape), str(x.dtype)) for name, x in module.state_dict().items()]
    return hashlib.sha256(repr((str(module), tensors, [(tuple(x.shape), str(x.dtype)) for x in inputs])).encode()).hexdigest()


def peak(module: nn.Module, inputs: tuple[Tensor, ...]) -> float:
    """Bytes of what the largest layer reads and gives."""
    highest = [0]

    def heard(_: nn.Module, args: Any, output: Any) -> None:
        highest[0] = max(highest[0], sum(x.numel() * x.element_size() for x in (*tensors_of(args), *tensors_of(output))))

    handles = [layer.register_forward_hook(heard) for layer in module.modules() if not any(True for _ in layer.children())]
    try:
        with torch.no_grad():
            module.eval()(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return float(highest[0])
