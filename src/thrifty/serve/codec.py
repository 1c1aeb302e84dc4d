"""Bodies in and out: JSON, ``.npy``, ``.npz``, safetensors. Never pickled; what is wrong is said with its status."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from thrifty.artifacts.arrays import ArraysError, from_npy, from_npz, to_npy, to_npz
from thrifty.artifacts.artifact import InputError, check_inputs
from thrifty.errors import ThriftyError

Spec = Mapping[str, Any]
JSON, NPY, NPZ, SAFETENSORS = ("application/json", "application/x-npy", "application/x-npz", "application/vnd.safetensors")
BINARY = "application/octet-stream"
MALFORMED, TOO_LARGE, UNSUPPORTED, UNFIT = 400, 413, 415, 422


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


def sniffed(media: str, body: bytes) -> str:
    """What a body of unnamed bytes is, by how it begins."""
    if media != BINARY:
        return media
    return NPY if body.startswith(b"\x93NUMPY") else NPZ if body.startswith(b"PK") else SAFETENSORS


def decode(media: str, body: bytes, specs: Sequence[Spec], limit: int) -> list[np.ndarray]:
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

_PERMITTED: Mapping[str, frozenset[type]] = {
    "b": frozenset({bool}), "i": frozenset({int}), "u": frozenset({int}), "f": frozenset({int, float}),
    "c": frozenset({int, float}),
}


def _from_json(body: bytes, specs: Sequence[Spec], limit: int) -> list[np.ndarray]:
    try:
        document = json.loads(body)
    except ValueError as error:
        raise BodyError(MALFORMED, f"the body is no JSON: {error}") from error
    match document:
        case {"inputs": dict(named)} if len(document) == 1:
            return [_array(spec, value) for spec, value in zip(specs, _ordered(named, specs), strict=True)]
        case {"inputs": list(values)} if len(document) == 1:
            if len(values) != len(specs):
                raise BodyError(UNFIT, f"inputs must be a list of {len(specs)} arrays but has {len(values)} elements")
            return [_array(spec, value) for spec, value in zip(specs, values, strict=True)]
    raise BodyError(MALFORMED, 'the body must be {"inputs": [ARRAY, ...]} or {"inputs": {"NAME": ARRAY, ...}}')


def _array(spec: Spec, value: Any) -> np.ndarray:
    dtype = np.dtype(spec["dtype"])
    # Before NumPy sees them: beside a long text it would make room for as long a one in place of every number.
    if strange := _types(value) - _PERMITTED[dtype.kind]:
        raise BodyError(UNFIT, f"{spec['name']} must hold {dtype} but holds {', '.join(sorted(x.__name__ for x in strange))}")
    try:
        with np.errstate(over="ignore"):  # what overflows is infinite, and refused as such
            return np.array(value, dtype)
    except (ValueError, OverflowError) as error:
        raise BodyError(UNFIT, f"{spec['name']} is no array of {dtype}: {error}") from error


def _types(value: Any) -> set[type]:
    """Of the numbers in nested lists."""
    if not isinstance(value, list):
        return {type(value)}
    found = set(map(type, value))
    if list in found:
        found = found.difference([list]).union(*(_types(part) for part in value if isinstance(part, list)))
    return found


def _to_json(outputs: Mapping[str, np.ndarray]) -> bytes:
    return json.dumps({"outputs": {name: _listed(x) for name, x in outputs.items()}}, allow_nan=False).encode()


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


def _from_npy(body: bytes, specs: Sequence[Spec], limit: int) -> list[np.ndarray]:
    return [from_npy(body)]


def _from_npz(body: bytes, specs: Sequence[Spec], limit: int) -> list[np.ndarray]:
    return _ordered(from_npz(body, limit), specs)


def _from_safetensors(body: bytes, specs: Sequence[Spec], limit: int) -> list[np.ndarray]:
    from safetensors.numpy import load

    try:
        named = load(body)
    except Exception as error:  # its own kind, and KeyError for dtypes that NumPy lacks
        raise BodyError(MALFORMED, f"the body is no safetensors file: {str(error)[:200]}") from error
    return _ordered(named, specs)


def _to_safetensors(outputs: Mapping[str, np.ndarray]) -> bytes:
    from safetensors.numpy import save

    return save({name: np.ascontiguousarray(x) for name, x in outputs.items()})


_READERS: Mapping[str, Callable[[bytes, Sequence[Spec], int], list[np.ndarray]]] = {
    JSON: _from_json, NPY: _from_npy, NPZ: _from_npz, SAFETENSORS: _from_safetensors,
}
_WRITERS: Mapping[str, Callable[[Mapping[str, np.ndarray]], bytes]] = {
    JSON: _to_json, NPY: lambda outputs: to_npy(next(iter(outputs.values()))), NPZ: lambda outputs: to_npz(dict(outputs)),
    SAFETENSORS: _to_safetensors,
}
