"""How a method or a phase reads in a recipe: the same values always read the same, so that equal recipes hash the same."""

from __future__ import annotations

import dataclasses
import keyword
from collections.abc import Iterable
from typing import Any

from thrifty.recipes.hyperparameters import Table


def value_text(value: Any) -> str:
    """A hyperparameter's value.

    >>> value_text(1.0), value_text((2,)), value_text(Table(head="w8a16"))
    ('1', '(2,)', "{'head': w8a16}")
    """
    if isinstance(value, float):  # also numpy's, which prints as np.float64(...)
        return repr(int(value)) if value.is_integer() else repr(float(value))
    if isinstance(value, tuple):
        return f"({', '.join(map(value_text, value))}{',' * (len(value) == 1)})"
    if isinstance(value, Table):
        return f"{{{', '.join(f'{key!r}: {_word(word)}' for key, word in value.items())}}}"
    return repr(value)


def _word(value: Any) -> str:
    """An option bare, where it can stand bare."""
    return value if isinstance(value, str) and value.isidentifier() and not keyword.iskeyword(value) else repr(value)


def arguments_text(method: Any, always: Iterable[str] = ()) -> list[str]:
    """Hyperparameters of a frozen dataclass that differ from their defaults, in order; a leading word is bare.

    Args:
        method: the dataclass.
        always: names of those that are shown whatever their values.
    """
    shown, parts = {*always}, []
    for position, spec in enumerate(dataclasses.fields(method)):
        value = getattr(method, spec.name)
        if value != spec.default or spec.name in shown:
            is_option = "options" in spec.metadata
            bare = is_option or (isinstance(value, str) and value in spec.metadata.get("words", ()))
            text = _word(value) if bare else value_text(value)
            parts.append(text if is_option and position == 0 else f"{spec.name}={text}")
    return parts
