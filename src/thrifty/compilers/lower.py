"""A module lowered to an artifact, reloaded, and compared: for a model of one's own, without a workload."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from thrifty.artifacts import artifact
from thrifty.artifacts.lowered import Lowered
from thrifty.compilers.parity import as_tuple, check_parity
from thrifty.measure.environment import runtime_versions
from thrifty.recipes.compiler import Compiler
from thrifty.recipes.context import Context
from thrifty.target import Target


def lower(model: nn.Module, compiler: Compiler, directory: Path | str, example: tuple[Tensor, ...], *,
          shapes: Mapping[int, Mapping[int, tuple[int, int]]] | None = None, target: Target = Target(),
          description: Mapping[str, Any] | None = None) -> Lowered:
    """Lower a module to an artifact that `thrifty.load` opens.

    Args:
        model: in eval mode.
        compiler: that takes it.
        directory: to be made.
        example: one request, tensors in the order of the model's forward.
        shapes: {input position: {dimension: (low, high)}} that vary when served.
        target: what it will run on.
        description: what else the manifest says; the compiler and the versions where None.

    Returns:
        what the compiler left.

    Raises:
        LoweringError: the compiler cannot take the model.
        ParityError: what it made computes something else.

    >>> import tempfile
    >>> from thrifty import Export, load
    >>> net, x = nn.Linear(3, 2).eval(), torch.ones(1, 3)
    >>> place = Path(tempfile.mkdtemp()) / "model"
    >>> _ = lower(net, Export(), place, (x,))
    >>> torch.allclose(load(place)(x), net(x))
    True
    """
    place = Path(directory)
    place.mkdir(parents=True, exist_ok=False)

    def outputs(*inputs: Tensor) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return tuple(x.cpu() for x in as_tuple(model(*inputs)))

    context = Context(example=example, calibration=lambda: iter([example]), shapes=shapes or {}, target=target,
                      batch=next((x.shape[0] for x in example if x.dim()), 1))
    lowered = compiler.lower(model, example, place, context)
    artifact.write(place, lowered, description or {"recipe": str(compiler), "versions": runtime_versions(),
                                                   "threads": target.threads, "device": target.device},
                   [x.numpy() for x in example], [x.numpy() for x in outputs(*example)])
    opened = artifact.load(place, threads=target.threads, device=target.device, trust_native_code=True)
    with contextlib.closing(opened) as engine:
        check_parity(outputs, engine, [example], lowered.precision, target.device)
    return lowered
