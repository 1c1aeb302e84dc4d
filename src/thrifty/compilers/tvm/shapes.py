"""Dimensions, some of which are numbers and some of which vary."""

from __future__ import annotations

from typing import Any

from tvm import tirx


def fixed(n: Any) -> int | None:
    """The number that a dimension is, None where it varies."""
    return int(n) if isinstance(n, int | tirx.IntImm) else None


def same(a: Any, b: Any) -> bool:
    """Whether two dimensions are one number."""
    return fixed(a) is not None and fixed(a) == fixed(b)


def up(n: Any, to: int) -> Any:
    """The next multiple of ``to``."""
    number = fixed(n)
    return tirx.ceildiv(n, to) * to if number is None else -(-number // to) * to


def aligned(shape: list[Any], rank: int) -> list[Any]:
    """With 1 in front, as broadcasting has it."""
    return [1] * (rank - len(shape)) + shape


def broadcast(at: list[Any], shape: list[Any]) -> list[Any]:
    """Where an index of the result stands in an operand of that shape."""
    return [0 if same(n, 1) else i for i, n in zip(at[len(at) - len(shape):], shape, strict=True)]


def is_float(x: Any) -> bool:
    """Whether a Relax value is float32 of known rank."""
    return str(x.ty.dtype) == "float32" and x.ty.shape is not None
