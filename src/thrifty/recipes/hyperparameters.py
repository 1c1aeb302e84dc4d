"""Hyperparameters: fields of a frozen dataclass, with what is permitted and what a search may try."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, final

from thrifty.errors import ThriftyError


class HyperparameterError(ThriftyError):
    """A hyperparameter that is out of range, of the wrong type or unknown."""


@final
@dataclass(frozen=True)
class Range:
    """The permitted values of a number; ``log`` says how a search should draw from it, and ``near_one`` that what it should
    draw so is 1 - value: of running means, whose length is 1 / (1 - value).
    """

    low: float
    high: float
    open_low: bool = False
    open_high: bool = False
    log: bool = False
    near_one: bool = False

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self._opens_high else value <= self.high
        return above and below

    @property
    def _opens_high(self) -> bool:
        return self.open_high or self.high == math.inf

    def __str__(self) -> str:
        return f"{'(' if self.open_low else '['}{self.low:g}, {self.high:g}{')' if self._opens_high else ']'}"


def number(default: Any, low: float, high: float = math.inf, *, open_low: bool = False,
           open_high: bool = False, log: bool = False, near_one: bool = False, search: tuple[float, ...] = (),
           words: tuple[str, ...] = ()) -> Any:
    """A numeric hyperparameter (int or float, by its annotation) with its permitted range.

    ``search`` are the values of a transform that an exploration tries; where it is empty, the default stays. ``words``
    may stand in the place of a number; in a recipe's text they are bare: ``sophia(gamma=auto)``.
    """
    return field(default=default, metadata={"range": Range(low, high, open_low, open_high, log, near_one),
                                            "search": search, "words": words})


def permitted_number(meta: Mapping[str, Any]) -> str:
    """The range of a numeric hyperparameter, and the words that may stand in the place of a number.

    >>> permitted_number(number(0.2, 0, words=("auto",)).metadata)
    '[0, inf) or auto'
    """
    return " or ".join((str(meta["range"]), *meta.get("words", ())))


def choice(default: str | int, *options: str | int, search: tuple[str, ...] = ()) -> Any:
    """A hyperparameter that is one of a few words or whole numbers; in a recipe's text a word is written bare:
    ``quantize(w8a8)``.

    ``search`` are the words of a transform that an exploration tries; where it is empty, the default stays.
    """
    return field(default=default, metadata={"options": options, "search": search})


def pattern(default: str) -> Any:
    """A hyperparameter that is a regular expression over the names of a model's layers."""
    return field(default=default, metadata={"pattern": True})


def sizes() -> Any:
    """A hyperparameter that is a tuple of whole numbers of 1 or more, none by default."""
    return field(default=(), metadata={"sizes": True})


@final
class Table(dict[str, str]):
    """A mapping in the order in which it was written, which a frozen method can hold.

    >>> Table(a="x", b="y") == Table(b="y", a="x"), hash(Table(a="x")) == hash(Table(a="x"))
    (False, True)
    """

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(tuple(self.items()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, dict) and list(self.items()) == list(other.items())

    def __ne__(self, other: object) -> bool:
        return not self == other


def table(*options: str) -> Any:
    """A hyperparameter that assigns one of a few words to each pattern: ``layers={'head|blocks.0.*': fp32}``.

    Without words, it gives each of some layers of one model a layer of another: ``hidden={'blocks.0': 'blocks.1'}``.
    """
    return field(default=Table(), metadata={"table": options})


def matches(pattern: str, name: str) -> bool:
    """Whether the pattern is a layer's whole name, or its end after a dot.

    >>> matches("query|value", "blocks.0.query"), matches("query", "blocks.0.query_norm")
    (True, False)
    """
    return re.fullmatch(rf"(.*\.)?({pattern})", name) is not None


def recipe_text(default: str = "") -> Any:
    """A hyperparameter that is itself a recipe's text, such as a teacher's."""
    return field(default=default, metadata={"recipe": True})


def recipe_texts(*default: str) -> Any:
    """A hyperparameter that is a tuple of recipes' texts, such as the alternatives of a search."""
    return field(default=default, metadata={"recipes": True})


def read_text(default: str, read: Callable[[str], Any], permitted: str) -> Any:
    """A hyperparameter that is a text with a meaning of its own.

    Args:
        default: the text.
        read: text -> its meaning; raises a `ThriftyError` that says what is wrong with it.
        permitted: what it may be, in a few words.
    """
    return field(default=default, metadata={"read": read, "permitted": permitted})


def workload_text() -> Any:
    """A hyperparameter that is a workload's reference, such as "big.py:workload"; "" for the workload at hand."""
    return field(default="", metadata={"workload": True})


def validate(method: Any, name: str) -> None:
    """Check every field of a frozen dataclass against its metadata.

    Raises:
        HyperparameterError: with the offending value and what is permitted.
    """
    for spec in dataclasses.fields(method):
        value, meta = getattr(method, spec.name), spec.metadata
        says = f"{name}({spec.name}={value!r}): {spec.name}"
        if value is None and "None" in str(spec.type):
            continue
        if "range" in meta:
            permitted = permitted_number(meta)
            if isinstance(value, str) and value in meta.get("words", ()):
                continue
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise HyperparameterError(f"{says} must be a number in {permitted}")
            if str(spec.type).startswith("int") and not isinstance(value, int):
                raise HyperparameterError(f"{says} must be a whole number in {permitted}")
            if value not in meta["range"]:
                raise HyperparameterError(f"{says} must be in {permitted}")
        elif "options" in meta and not any(value == option and type(value) is type(option) for option in meta["options"]):
            raise HyperparameterError(f"{says} must be one of {', '.join(map(str, meta['options']))}")
        elif "table" in meta and not (isinstance(value, Table) and all(map(_is_pattern, value))
                                      and all(_permitted_word(word, meta["table"]) for word in value.values())):
            wanted = f"one of {', '.join(meta['table'])}" if meta["table"] else "the name of a layer"
            raise HyperparameterError(f"{says} must give each {'regular expression' if meta['table'] else 'layer'} {wanted}")
        elif "sizes" in meta and not (isinstance(value, tuple) and all(type(n) is int and n > 0 for n in value)):
            raise HyperparameterError(f"{says} must be sizes, whole numbers of 1 or more, such as (1, 4, 16)")
        elif "recipe" in meta and not isinstance(value, str):
            raise HyperparameterError(f"{says} must be a recipe's text")
        elif "workload" in meta and not isinstance(value, str):
            raise HyperparameterError(f"{says} must be a workload's file, module, name or directory")
        elif "read" in meta and not isinstance(value, str):
            raise HyperparameterError(f"{says} must be a string: {meta['permitted']}")
        elif "recipes" in meta and not (isinstance(value, tuple) and all(isinstance(text, str) for text in value)):
            raise HyperparameterError(f"{says} must be recipes' texts, such as ('quantize(w8a8)', 'prune(ratio=0.5)')")
        elif "read" in meta:
            try:
                meta["read"](value)
            except ThriftyError as error:
                raise HyperparameterError(f"{says}: {error}") from error
        elif "pattern" in meta and not _is_pattern(value):
            raise HyperparameterError(f"{says} must be a regular expression")
        elif str(spec.type) == "bool" and not isinstance(value, bool):
            raise HyperparameterError(f"{says} must be True or False")


def _permitted_word(word: Any, options: tuple[str, ...]) -> bool:
    return word in options if options else isinstance(word, str) and bool(word)


def _is_pattern(value: Any) -> bool:
    try:
        return bool(re.compile(value)) if isinstance(value, str) else False
    except re.error:
        return False
