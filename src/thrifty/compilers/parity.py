"""Whether an engine computes what the module computes, as far as its precision explains a difference."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from thrifty.compilers.capture import LoweringError

PARITY = {"fp32": 1e-3, "bf16": 0.05, "int8": 0.1}
"""Largest Frobenius error of an engine's outputs, relative to the module's, by the arithmetic's precision."""
TF32_PARITY = 5e-3
"""The same for fp32 on CUDA, where torch lets convolutions run in tf32."""


class ParityError(LoweringError):
    """An engine whose outputs are not the model's."""


def tolerance(precision: str, device: str = "cpu") -> float:
    """The largest error that a precision explains.

    >>> tolerance("int8+bf16"), tolerance("fp32", "cuda")
    (0.1, 0.005)
    """
    bound = max(PARITY[part] for part in precision.split("+"))
    return max(bound, TF32_PARITY) if device == "cuda" else bound


def relative_error(expected: Tensor, got: Tensor) -> float:
    """|expected - got| / |expected| in the Frobenius norm; not a number where either is not finite.

    >>> relative_error(torch.ones(4), torch.ones(4) * 1.5)
    0.5
    """
    expected, got = expected.double(), got.double()
    return float((expected - got).norm() / expected.norm().clamp_min(1e-12))


def check_parity(module: Callable[..., Sequence[Tensor]], engine: Callable[..., Any],
                 requests: Iterable[tuple[Tensor, ...]], precision: str, device: str = "cpu") -> None:
    """Compare an engine with the module that it was made from.

    Args:
        module: inputs -> outputs.
        engine: the same, one output bare.
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
            for expected, output in zip(module(*inputs), got if isinstance(got, tuple) else (got,), strict=True):
                error = relative_error(expected, output)
                if not error <= bound:
                    raise ParityError(
                        f"the engine's outputs differ from the model's by {error:.3g} (relative Frobenius error; "
                        f"{precision} explains {bound:g}): the lowering is wrong, so nothing is kept"
                    )
