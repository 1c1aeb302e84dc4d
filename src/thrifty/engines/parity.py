"""How far an engine's outputs may be from the model's; without torch, since an artifact is verified without it."""

from __future__ import annotations

import numpy as np

from thrifty.engines.engine import EngineError

PARITY = {"fp32": 1e-3, "bf16": 0.05, "int8": 0.1, "fp8": 0.1}
"""Largest Frobenius error of an engine's outputs, relative to the module's, by the arithmetic's precision."""
TF32_PARITY = 5e-3
"""The same for fp32 on CUDA, where torch lets convolutions run in tf32."""


def tolerance(precision: str, device: str = "cpu") -> float:
    """The largest error that a precision explains.

    Raises:
        EngineError: there is no such precision.

    >>> tolerance("int8+bf16"), tolerance("fp32", "cuda")
    (0.1, 0.005)
    """
    parts = precision.split("+")
    if not set(parts) <= PARITY.keys():
        raise EngineError(f"there is no precision {precision!r}; known: {', '.join(PARITY)}, or several joined by +")
    bound = max(PARITY[part] for part in parts)
    return max(bound, TF32_PARITY) if device == "cuda" else bound


def relative_error(expected: np.ndarray, found: np.ndarray) -> float:
    """Frobenius norm of the difference over the expected norm; not a number where either is not finite.

    >>> relative_error(np.ones(4), np.ones(4) * 1.5)
    0.5
    """
    return float(np.linalg.norm(found.astype(np.float64) - expected) / max(float(np.linalg.norm(expected)), 1e-12))
