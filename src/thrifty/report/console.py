"""Where tables go: colors and the terminal's width on a terminal, plain lines that never change elsewhere."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterable, Sequence
from typing import TextIO

from rich import box
from rich.console import Console, RenderableType
from rich.table import Column, Table
from rich.text import Text

from thrifty.report.words import literal

PLAIN_WIDTH = 160
"""Of what is not a terminal, where COLUMNS does not say."""

_PLAIN = box.Box("    \n    \n -- \n    \n    \n -- \n    \n    \n", ascii=True)


def width_of(file: TextIO) -> int:
    """Characters a line."""
    columns = os.environ.get("COLUMNS", "")
    if file.isatty():
        return Console(file=file).width
    return max(40, int(columns)) if columns.isdigit() else PLAIN_WIDTH


def show(*parts: RenderableType, file: TextIO | None = None) -> None:
    """Print tables and texts, an empty line between them, on stdout where no file is given."""
    out = sys.stdout if file is None else file
    if out.isatty():
        console = Console(file=out, highlight=False)
        for i, part in enumerate(parts):
            console.print(*([""] if i else []), part, sep="\n")
        return
    encoding = getattr(out, "encoding", None) or "utf-8"
    text = "\n".join(plain(part, width_of(out)) for part in parts)
    out.write(text.encode(encoding, "backslashreplace").decode(encoding))
    out.flush()


def plain(part: RenderableType, width: int = PLAIN_WIDTH) -> str:
    """The lines as they are where no terminal is: no colors, nothing cut off."""
    into = io.StringIO()
    console = Console(file=into, width=width, force_terminal=False, force_jupyter=False, color_system=None,
                      no_color=True, highlight=False, legacy_windows=False, emoji=False)
    console.print(part)
    lines = [line.rstrip() for line in into.getvalue().splitlines()]
    return "\n".join(lines).strip("\n") + "\n"


def cell(value: object, style: str = "") -> Text:
    """A foreign text, shown as it is: neither markup nor escapes in it mean anything."""
    return Text(literal(value), style=style, overflow="fold")


def lines(values: Iterable[object]) -> Text:
    """Several texts, one below the other."""
    return Text("\n".join(literal(value) for value in values), overflow="fold")


def table(title: str, columns: Sequence[str | Column], rows: Iterable[Sequence[object]]) -> Table:
    """A table whose cells wrap, never lose anything. A ``Text`` cell is taken as it is, anything else made literal."""
    made = Table(title=Text(title, style="bold") if title else None, title_justify="left", box=_PLAIN,
                 show_edge=False, pad_edge=False)
    for column in columns:
        given = column if isinstance(column, Column) else Column(header=column)
        made.add_column(Text(str(given.header)), justify=given.justify, min_width=given.min_width, overflow="fold")
    for row in rows:
        made.add_row(*(value if isinstance(value, Text) else cell(value) for value in row))
    return made


def pairs(rows: Iterable[tuple[str, object]], title: str = "") -> Table:
    """Names and values, one pair a line."""
    made = Table.grid(padding=(0, 2))
    if title:
        made.title, made.title_justify = Text(title, style="bold"), "left"
    made.add_column(no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in rows:
        made.add_row(cell(name, "dim"), value if isinstance(value, Text) else cell(value))
    return made
