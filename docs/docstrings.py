"""How our docstrings become what mkdocstrings reads: examples are fenced, and `a, b: text` describes two arguments."""

from __future__ import annotations

import re
from typing import Any

import griffe


class House(griffe.Extension):
    """An extension of griffe, named in mkdocs.yml."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = split(fenced(obj.docstring.value))


def fenced(text: str) -> str:
    """Doctests between fences: Markdown takes ``>>>`` for quotations."""
    def fence(found: re.Match[str]) -> str:
        return f"{found[1]}```pycon\n{found[0].rstrip()}\n{found[1]}```\n"

    return re.sub(r"^( *)(>>> (?:.*\n?)(?:(?!\s*$).+\n?)*)", fence, text, flags=re.MULTILINE).rstrip()


def split(text: str) -> str:
    """A line for each argument.

    >>> split("    inputs, outputs: in the order of the call")
    '    inputs: in the order of the call\\n    outputs: as ``inputs``'
    """
    def lines(found: re.Match[str]) -> str:
        first, *others = found[2].split(", ")
        return "".join([f"{found[1]}{first}: {found[3]}", *(f"\n{found[1]}{name}: as ``{first}``" for name in others)])

    return re.sub(r"^( {4})(\w+(?:, \w+)+): (.*(?:\n {6,}.*)*)", lines, text, flags=re.MULTILINE)
