"""Whether an engine computes what the module computes, as far as its precision explains a difference."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from thrifty.compilers.capture import LoweringError
from thrifty.engines.parity import relative_error, tolerance


class ParityError(LoweringError):
    """An engine whose outputs are not the model's."""


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
                error = relative_error(expected.float().cpu().numpy(), output.float().numpy())
                if not error <= bound:
                    raise ParityError(
                        f"the engine's outputs differ from the model's by {error:.3g} (relative Frobenius error; "
                        f"{precision} explains {bound:g}): the lowering is wrong, so nothing is kept"
                    )
