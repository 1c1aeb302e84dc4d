"""Whether an engine computes what the module computes, as far as its precision explains a difference."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from thrifty.compilers.capture import LoweringError, Shapes
from thrifty.engines.parity import relative_error, tolerance

ODD = (1, 3, 13)
"""Sizes that a dimension that varies is given, as far as its range allows."""
STEP = 2.0**-8
"""Relative size of a rounding, of bfloat16 and of a grid of eight bits."""
ROUNDINGS = 3.0
"""How much further than one rounding of its inputs moves a model's outputs an engine may stand from them: it rounds in
every layer, and elsewhere than the module does."""


class ParityError(LoweringError):
    """An engine whose outputs are not the model's, with the ``inputs`` that show it."""

    inputs: tuple[Tensor, ...] = ()


def random_requests(example: tuple[Tensor, ...], shapes: Shapes, seed: int = 0) -> Iterator[tuple[Tensor, ...]]:
    """Random inputs like the example's: of its dtype and range of values, of odd sizes where dimensions vary.

    >>> [x.shape[0] for x, in random_requests((torch.randn(1, 4),), {0: {0: (1, 8)}})]
    [1, 3, 7]
    """
    generator = torch.Generator().manual_seed(seed)
    for odd in ODD if shapes else ODD[:1]:
        yield tuple(_random(x, _sizes(x, shapes.get(i, {}), odd), generator) for i, x in enumerate(example))


def _sizes(x: Tensor, dims: Mapping[int, tuple[int, int]], odd: int) -> list[int]:
    """Inputs whose dimensions have one range get one size."""
    return [max(dims[d][0], min(odd, (dims[d][1] - 1) | 1)) if d in dims else size for d, size in enumerate(x.shape)]


def _random(x: Tensor, sizes: list[int], generator: torch.Generator) -> Tensor:
    if x.dtype == torch.bool:
        return torch.rand(sizes, generator=generator) < 0.5
    if not x.is_floating_point():  # classes, tokens, masks: only values between those that were seen are sure to be any
        low, high = (int(x.min()), int(x.max())) if x.numel() else (0, 0)
        return torch.randint(low, high + 1, sizes, generator=generator, dtype=x.dtype)
    values = x.double()
    mean, spread = (values.mean(), values.std(correction=0)) if x.numel() else (0.0, 1.0)
    return (torch.randn(sizes, generator=generator, dtype=torch.float64) * spread + mean).to(x.dtype)


def check_random(module: Callable[..., Sequence[Tensor]], engine: Callable[..., Any], example: tuple[Tensor, ...],
                 shapes: Shapes, precision: str, device: str = "cpu") -> None:
    """`check_parity` on `random_requests`, on those that the module itself has a finite answer to.

    Raises:
        ParityError: they differ by more than the precision explains.
    """
    with torch.no_grad():
        finite = (request for request in random_requests(example, shapes)
                  if all(bool(torch.isfinite(x).all()) for x in module(*request)))
        check_parity(module, engine, finite, precision, device)


def check_parity(module: Callable[..., Sequence[Tensor]], engine: Callable[..., Any],
                 requests: Iterable[tuple[Tensor, ...]], precision: str, device: str = "cpu") -> None:
    """Compare an engine with the module that it was made from.

    Two computations of a few bits that are both right may part further than their precision explains where the model
    itself magnifies what is rounded, as deep nets of untrained weights do. So an error beyond that is compared with
    what the module makes of its own inputs, rounded.

    Args:
        module: inputs -> outputs.
        engine: the same, one output bare, or a dictionary of them.
        requests: inputs to compare on.
        precision: as `Lowered` has it.
        device: that the engine runs on.

    Raises:
        ParityError: they differ by more than the precision explains.
    """
    bound = tolerance(precision, device)
    with torch.no_grad():
        for inputs in requests:
            got = engine(*inputs)
            for i, (expected, output) in enumerate(zip(module(*inputs), as_tuple(got), strict=True)):
                if tuple(expected.shape) != tuple(output.shape):
                    raise ParityError(f"the engine's output {i} is {list(output.shape)} and the model's {list(expected.shape)}: "
                                      "the lowering is wrong, so nothing is kept")
                error = relative_error(*counted(expected.float().cpu(), output.float()))
                if not error <= bound and not (precision != "fp32" and error <= ROUNDINGS * _moved(module, inputs, i)):
                    differ = ParityError(
                        f"the engine's outputs differ from the model's by {error:.3g} (relative Frobenius error; "
                        f"{precision} explains {bound:g}): the lowering is wrong, so nothing is kept"
                    )
                    differ.inputs = inputs
                    raise differ


def _moved(module: Callable[..., Sequence[Tensor]], inputs: tuple[Tensor, ...], output: int) -> float:
    """Relative change of one of the module's outputs where its inputs are off by a rounding each."""
    generator = torch.Generator().manual_seed(0)
    off = tuple(x + (x * STEP * torch.randn(x.shape, generator=generator)).to(x.dtype) if x.is_floating_point() else x
                for x in inputs)
    before, after = (module(*x)[output].float().cpu() for x in (inputs, off))
    return relative_error(*counted(before, after))


def counted(expected: Tensor, found: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Both with zeros where the model itself has no finite answer, as rows that are wholly masked have none; all as it is where
    it has none anywhere."""
    finite = torch.isfinite(expected)
    if not bool(finite.any()):
        return expected.numpy(), found.numpy()
    return expected.where(finite, 0.0).numpy(), found.where(finite, 0.0).numpy()


def as_tuple(outputs: Any) -> tuple[Any, ...]:
    """The tensors that a model or an engine gives, whether bare, in sequences or in dictionaries, in order.

    >>> as_tuple({"logits": 1, "states": (2, 3)})
    (1, 2, 3)
    """
    return tuple(pytree.tree_leaves(outputs))
