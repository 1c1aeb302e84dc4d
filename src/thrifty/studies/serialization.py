"""Frozen dataclasses to JSON values and back, exactly."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from thrifty.errors import in_one_line

T = TypeVar("T")


def dumps(value: Any) -> str:
    """One line of ASCII JSON. Dataclasses become objects; what is not finite is written as Python writes it.

    Args:
        value: dataclasses, mappings with text keys, sequences, texts, numbers, None; numpy's count as theirs.

    Raises:
        TypeError: something else is in it; the message says where.

    >>> dumps({"b": (1, 2.5), "a": None})
    '{"b": [1, 2.5], "a": null}'
    """
    return json.dumps(plain(value))


def loads(cls: type[T], text: str) -> T:
    """The dataclass that `dumps` wrote.

    Raises:
        ValueError: it is not JSON, or not that dataclass.

    >>> from thrifty.studies.trial import Drop
    >>> loads(Drop, dumps(Drop(0.1, 0.0, 0.3)))
    Drop(value=0.1, low=0.0, high=0.3)
    """
    try:
        return typing.cast(T, typed(cls, json.loads(text)))
    except (RecursionError, TypeError) as error:  # nested too deeply; bytes or a number where a text should be
        raise ValueError(in_one_line(error)) from error


def plain(value: Any, at: str = "value") -> Any:
    """The value as dictionaries, lists, texts, numbers and None."""
    match value:
        case None | bool() | str():
            return value
        case int():
            return int(value)
        case float():
            return float(value)
        case Mapping():
            for key in value:
                if not isinstance(key, str):
                    raise TypeError(f"{at} has the key {key!r}; JSON allows only string keys")
            return {key: plain(part, f"{at}.{key}") for key, part in value.items()}
        case list() | tuple():
            return [plain(part, f"{at}[{i}]") for i, part in enumerate(value)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name), f"{at}.{f.name}") for f in dataclasses.fields(value)}
    if type(value).__module__ == "numpy":
        return plain(value.tolist(), at)
    raise TypeError(f"{at} is a {type(value).__name__}, which has no JSON form")


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def typed(kind: Any, value: Any, at: str = "value") -> Any:
    """The inverse of `plain`, led by annotations: dataclasses, tuples, optionals, mappings, literals, scalars."""
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _dataclass(kind, value, at)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        for one in (k for k in arguments if k is not type(None)):
            with contextlib.suppress(ValueError):  # of another of its kinds, then
                return typed(one, value, at)
        if value is not None and len(arguments) == 2 and type(None) in arguments:
            return typed(arguments[0], value, at)  # says what is wrong inside
    if origin is tuple and isinstance(value, list):
        return tuple(typed(arguments[0], part, f"{at}[{i}]") for i, part in enumerate(value))
    if isinstance(origin, type) and issubclass(origin, Mapping) and isinstance(value, dict):
        return {key: typed(arguments[1], part, f"{at}.{key}") for key, part in value.items()}
    if origin is typing.Literal and value in arguments:
        return value
    if isinstance(kind, type) and isinstance(value, (int, float) if kind is float else kind):
        return value
    raise ValueError(f"{at} should be {getattr(kind, '__name__', kind)} but is {value!r}")


def _dataclass(cls: type, value: Any, at: str) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{at} should be a {cls.__name__} but is {value!r}")
    hints = _hints(cls)
    unknown = value.keys() - {f.name for f in dataclasses.fields(cls)}
    if unknown:
        raise ValueError(f"{at} has {', '.join(sorted(unknown))}, which a {cls.__name__} does not know")
    try:
        return cls(**{key: typed(hints[key], part, f"{at}.{key}") for key, part in value.items()})
    except TypeError as error:
        raise ValueError(f"{at}: {error}") from error
