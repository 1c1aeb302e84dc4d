"""Messages between a measuring process and its workers: a JSON header and raw arrays, never pickle."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

_LENGTH = struct.Struct("!Q")
_MOST_HEADER = 1 << 28
_KINDS = "?biufc"  # booleans and numbers; objects and strings could only travel as pickle

Message = tuple[dict[str, Any], list[np.ndarray]]


def encode(header: Mapping[str, Any], arrays: Sequence[np.ndarray] = ()) -> Iterator[bytes | memoryview]:
    """Yield the message's bytes: 8 bytes of length, the JSON header, then each array's own bytes in C order.

    Raises:
        TypeError: an array is not of numbers.
    """
    solid = [np.asarray(array, order="C") for array in arrays]
    for array in solid:
        if array.dtype.kind not in _KINDS or array.dtype.byteorder == ">":
            raise TypeError(f"arrays must hold booleans or native numbers but one is {array.dtype}")
    described = [{"dtype": array.dtype.str, "shape": array.shape} for array in solid]
    text = json.dumps({**header, "arrays": described}).encode()
    yield _LENGTH.pack(len(text))
    yield text
    for array in solid:
        if array.size:
            yield array.reshape(-1).view(np.uint8).data


def decode(read: Callable[[int], bytearray]) -> Message:
    """Read one message.

    Args:
        read: n -> exactly n bytes; raises EOFError at the end.

    Returns:
        the header and its arrays, which are writable.
    """
    (size,) = _LENGTH.unpack(read(_LENGTH.size))
    if size > _MOST_HEADER:
        raise ValueError(f"a header of {size} bytes: the stream does not follow this protocol")
    header = json.loads(read(size))
    arrays = []
    for described in header.pop("arrays"):
        dtype, shape = np.dtype(described["dtype"]), described["shape"]
        if dtype.kind not in _KINDS:
            raise TypeError(f"arrays must hold numbers but one is {dtype}")
        arrays.append(np.frombuffer(read(math.prod(shape) * dtype.itemsize), dtype).reshape(shape))
    return header, arrays
