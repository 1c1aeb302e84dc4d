"""Which other files an ONNX file reads its weights from, found without the package onnx: a file is one protobuf message."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path

from thrifty.engines.engine import EngineError

Field = tuple[int, int, int, int]
"""Number of a field, its wire type, and where its value begins and ends."""
_INNER: Mapping[str, Mapping[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
"""{message: {number of a field: the message in it}}, of onnx.proto, for those that lead to where a tensor's data is."""
_KEY, _VALUE = 1, 2
_DEEPEST = 500
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5


def external_files(path: Path) -> set[str]:
    """The files, relative to the ONNX file's directory, that its tensors' data is in.

    Raises:
        EngineError: it is not an ONNX file.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return set(_locations(content, 0, len(content), "model", 0))
    except (ValueError, RecursionError) as error:
        raise EngineError(f"onnxruntime cannot open {path}: it is not an ONNX file, {error}; copy the artifact again") from error


def _locations(content: mmap.mmap, begin: int, end: int, message: str, depth: int) -> Iterator[str]:
    if depth > _DEEPEST:
        raise ValueError("its graphs are nested too deeply")
    inner, entry = _INNER.get(message, {}), {}
    for number, wire, at, stop in _fields(content, begin, end):
        if wire != _LENGTH:
            continue
        if message == "entry":
            entry[number] = content[at:stop]
        elif number in inner:
            yield from _locations(content, at, stop, inner[number], depth + 1)
    if entry.get(_KEY) == b"location":
        yield entry.get(_VALUE, b"").decode(errors="backslashreplace")


def _fields(content: mmap.mmap, at: int, end: int) -> Iterator[Field]:
    while at < end:
        tag, at = _varint(content, at, end)
        number, wire = tag >> 3, tag & 7
        size = 0
        if wire == _VARINT:
            _, at = _varint(content, at, end)
        elif wire == _LENGTH:
            size, at = _varint(content, at, end)
        elif wire in (_FIXED64, _FIXED32):
            size = 8 if wire == _FIXED64 else 4
        else:
            raise ValueError(f"a field has the wire type {wire}")
        if at + size > end:
            raise ValueError("it ends within a field")
        yield number, wire, at, at + size
        at += size


def _varint(content: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            raise ValueError("it ends within a number")
        byte = content[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("a number has over ten bytes")
