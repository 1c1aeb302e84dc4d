"""Bodies in and out: JSON, ``.npy``, ``.npz``, safetensors. Never pickled; what is wrong is said with its status."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from thrifty.artifacts.arrays import ArraysError, from_npy, from_npz, to_npy, to_npz
from thrifty.artifacts.artifact import InputError, check_inputs
from thrifty.errors import ThriftyError
from thrifty.serve import json_arrays

Spec = Mapping[str, Any]
Body = bytes | bytearray
JSON, NPY, NPZ, SAFETENSORS = ("application/json", "application/x-npy", "application/x-npz", "application/vnd.safetensors")
BINARY = "application/octet-stream"
MALFORMED, TOO_LARGE, UNSUPPORTED, UNFIT = 400, 413, 415, 422
LARGEST_HEADER = 100_000
"""Bytes of the names and shapes before a safetensors file's numbers."""
AT_ONCE = 2**14
"""Numbers of an answer that become text at once."""


class BodyError(ThriftyError):
    """A body that cannot be answered; ``status`` is HTTP's."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def media_of(content_type: str | None) -> str:
    """The kind of a body, by its header; JSON where there is none.

    Raises:
        BodyError: 415, it is another.

    >>> media_of("application/json; charset=utf-8")
    'application/json'
    """
    named = (content_type or JSON).partition(";")[0].strip().lower()
    if named not in _READERS and named != BINARY:
        raise BodyError(UNSUPPORTED, f"content-type is {named[:100]!r}; known: {', '.join([*_READERS, BINARY])}")
    return named


def sniffed(media: str, body: Body) -> str:
    """What a body of unnamed bytes is, by how it begins."""
    if media != BINARY:
        return media
    return NPY if body.startswith(b"\x93NUMPY") else NPZ if body.startswith(b"PK") else SAFETENSORS


def decode(media: str, body: Body, specs: Sequence[Spec], limit: int) -> list[np.ndarray]:
    """The inputs of a request, in the order of the artifact's.

    Args:
        media: of `media_of`, `sniffed`.
        body: as it came.
        specs: the manifest's ``inputs``.
        limit: bytes that it may unpack to.

    Raises:
        BodyError: 400 where it is damaged, 422 where it holds what the artifact does not take. Numbers that are not finite
            are refused in every format: JSON cannot write them, and an answer to them means nothing.
    """
    try:
        arrays = _READERS[media](body, specs, limit)
        check_inputs(specs, arrays)
    except (ArraysError, RecursionError) as error:
        raise BodyError(MALFORMED, str(error)) from error
    except InputError as error:
        raise BodyError(UNFIT, str(error)) from error
    for spec, array in zip(specs, arrays, strict=True):
        if array.dtype.kind in "fc" and not np.isfinite(array).all():
            raise BodyError(UNFIT, f"{spec['name']} holds numbers that are not finite")
        if array.size == 0:
            raise BodyError(UNFIT, f"{spec['name']} is empty: of shape {list(array.shape)}")
    return arrays


def encode(media: str, outputs: Mapping[str, np.ndarray]) -> tuple[str, bytes]:
    """A body of the kind that was asked with; several arrays cannot be one ``.npy`` and become a ``.npz``.

    In JSON, numbers that are not finite are null.
    """
    if media == NPY and len(outputs) != 1:
        media = NPZ
    return media, _WRITERS[media](outputs)


# -- JSON ---------------------------------------------------------------------------------------------------------


def _from_json(body: Body, specs: Sequence[Spec], limit: int) -> list[np.ndarray]:
    try:
        return json_arrays.read(body, specs, limit)
    except json_arrays.NoJson as error:
        raise BodyError(MALFORMED, str(error)) from error
    except json_arrays.Unfit as error:
        raise BodyError(UNFIT, str(error)) from error


def _to_json(outputs: Mapping[str, np.ndarray]) -> bytes:
    named = (json.dumps(name).encode() + b": " + _text(x) for name, x in outputs.items())
    return b'{"outputs": {' + b", ".join(named) + b"}}"


def _text(array: np.ndarray) -> bytes:
    """Large arrays part by part: as Python's numbers they take many times their own memory."""
    if array.size <= AT_ONCE or len(array) < 2:
        return json.dumps(_listed(array), allow_nan=False).encode()
    if array.ndim == 1:
        parts = [_text(array[i:i + AT_ONCE])[1:-1] for i in range(0, len(array), AT_ONCE)]
    else:
        parts = [_text(part) for part in array]
    return b"[" + b", ".join(parts) + b"]"


def _listed(array: np.ndarray) -> Any:
    if array.dtype.kind == "f" and not (finite := np.isfinite(array)).all():
        objects = array.astype(object)
        objects[~finite] = None
        return objects.tolist()
    return array.tolist()


# -- binary -------------------------------------------------------------------------------------------------------


def _ordered(named: Mapping[str, Any], specs: Sequence[Spec]) -> list[Any]:
    names = [spec["name"] for spec in specs]
    if set(named) != set(names):
        raise BodyError(UNFIT, f"the inputs are {', '.join(names)}, but here are {', '.join(map(str, named))[:200] or 'none'}")
    return [named[name] for name in names]


def _from_npy(body: Body, specs: Sequence[Spec], limit: int) -> list[np.ndarray]:
    return [from_npy(body)]


def _from_npz(body: Body, specs: Sequence[Spec], limit: int) -> list[np.ndarray]:
    return _ordered(from_npz(body, limit), specs)


def _from_safetensors(body: Body, specs: Sequence[Spec], limit: int) -> list[np.ndarray]:
    from safetensors.numpy import load

    header = int.from_bytes(body[:8], "little")
    if header > LARGEST_HEADER:  # before it is made a table of names
        raise BodyError(MALFORMED, f"the body is not a safetensors file of these inputs: its header would have {header} bytes")
    try:
        named = load(bytes(body))
    except Exception as error:  # its own kind, and KeyError for dtypes that NumPy lacks
        raise BodyError(MALFORMED, f"the body is not a safetensors file: {str(error)[:200]}") from error
    return _ordered(named, specs)


def _to_safetensors(outputs: Mapping[str, np.ndarray]) -> bytes:
    from safetensors.numpy import save

    return save({name: np.ascontiguousarray(x) for name, x in outputs.items()})


_READERS: Mapping[str, Callable[[Body, Sequence[Spec], int], list[np.ndarray]]] = {
    JSON: _from_json, NPY: _from_npy, NPZ: _from_npz, SAFETENSORS: _from_safetensors,
}
_WRITERS: Mapping[str, Callable[[Mapping[str, np.ndarray]], bytes]] = {
    JSON: _to_json, NPY: lambda outputs: to_npy(next(iter(outputs.values()))), NPZ: lambda outputs: to_npz(dict(outputs)),
    SAFETENSORS: _to_safetensors,
}
