"""What there is: workloads, methods and their cards, the cache."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, TextIO

from rich.table import Column
from rich.text import Text

from thrifty.recipes.card import FAMILIES, PROPERTIES
from thrifty.recipes.compiler import Compiler
from thrifty.recipes.hyperparameters import permitted_number
from thrifty.recipes.method import Method
from thrifty.recipes.training_method import TrainingMethod
from thrifty.report.console import cell, lines, pairs, show, table
from thrifty.report.words import scaled
from thrifty.runs.cache import Cleaned, Usage
from thrifty.units import plainly


def print_workloads(entries: Mapping[str, Any], file: TextIO | None = None) -> None:
    """The embedded workloads: name, what it is, the extra that brings it."""
    rows = [(name, entry.description, f"thrifty[{entry.extra}]") for name, entry in entries.items()]
    show(table("Workloads", ["name", "what it is", "comes with"], rows), file=file)


# -- methods ------------------------------------------------------------------------------------------------------


def print_methods(classes: Iterable[type[Method]], file: TextIO | None = None) -> None:
    """Every method in the order of the families: its benefit and its trade-off."""
    families = list(FAMILIES)
    ranked = sorted(classes, key=lambda cls: families.index(cls.card.family))
    rows = [(cls.name, cls.card.family, cls.card.phase, cls.card.benefit, cls.card.trade_off) for cls in ranked]
    show(table("Methods", ["name", "family", "phase", "benefit", "trade-off"], rows), file=file)


def print_method(cls: type[Method], file: TextIO | None = None) -> None:
    """A method's card: what it is for, what it costs, its hyperparameters."""
    row = method_json(cls)
    card = pairs([
        ("", row["what"]),
        ("family", f"{row['family']} ({row['phase']})"),
        ("benefit", row["benefit"]),
        ("trade-off", row["trade_off"]),
        ("paper", row["paper"]),
        ("written as", row["written"]),
        ("needs", ", ".join(row["needs"]) or "nothing"),
        *((word, _properties(row[word])) for word in ("requires", "refuses", "provides", "removes") if row[word]),
        *([("fills", f"the {row['slot']} of a train phase")] if row["slot"] else []),
        *([("missing here", row["missing"])] if row.get("missing") else []),
    ], title=cls.name)
    given = [(h["name"], kind(h["type"]), _default(h["default"]), h["permitted"]) for h in row["hyperparameters"]]
    columns = ["hyperparameter", "kind", "default", "permitted"]
    show(card, table("", columns, given) if given else Text("It has no hyperparameters."), file=file)


def kind(type: str) -> str:
    """What a hyperparameter's type is called where no Python is spoken.

    >>> kind("float | str"), kind("Mapping[str, str]"), kind("int | None")
    ('number or text', 'texts by name', 'whole number or none')
    """
    words = {"float": "number", "int": "whole number", "bool": "True or False", "str": "text", "None": "none"}
    if type.startswith(("Mapping", "Table")):
        return "texts by name"
    if type.startswith("tuple"):
        return "texts" if "str" in type else "whole numbers"
    return " or ".join(words.get(each.strip(), each.strip()) for each in type.split("|"))


def _default(value: object) -> object:
    """A default as a recipe has it, several values one below the other."""
    match value:
        case bool():
            return str(value)
        case (_, *_):
            return lines(value)
    return plainly(value)


def method_json(cls: type[Method]) -> dict[str, Any]:
    """A method's card as JSON values."""
    card = cls.card
    row = {
        "name": cls.name, "family": card.family, "phase": card.phase, "benefit": card.benefit,
        "trade_off": card.trade_off, "paper": card.paper, "version": cls.version,
        "what": " ".join((inspect.getdoc(cls) or "").partition("\n\n")[0].split()),
        "written": _written(cls), "slot": card.slot, "needs": sorted(card.needs),
        "requires": sorted(card.requires), "refuses": sorted(card.refuses), "provides": sorted(card.provides),
        "removes": sorted(card.removes),
        "hyperparameters": [_hyperparameter(field) for field in dataclasses.fields(cls)],
    }
    if issubclass(cls, Compiler):
        row["missing"] = cls.missing()
    return row


def _written(cls: type[Method]) -> str:
    if issubclass(cls, Compiler):
        return f"... | compile({cls.name})"
    return f"train({cls.name}, ...)" if issubclass(cls, TrainingMethod) else f"{cls.name}(...)"


def _hyperparameter(field: dataclasses.Field[Any]) -> dict[str, Any]:
    meta = field.metadata
    if "range" in meta:
        permitted = permitted_number(meta)
    elif "options" in meta:
        permitted = ", ".join(map(str, meta["options"]))
    else:
        says = {"recipe": "a recipe's text", "recipes": "recipes' texts", "workload": "a workload's reference"}
        permitted = next((text for key, text in says.items() if key in meta), meta.get("permitted", ""))
    default = None if field.default is dataclasses.MISSING else field.default
    kind = field.type if isinstance(field.type, str) else getattr(field.type, "__name__", str(field.type))
    return {"name": field.name, "type": kind, "default": default, "permitted": permitted}


def _properties(names: list[str]) -> str:
    return "; ".join(f"{name} ({PROPERTIES[name]})" if name in PROPERTIES else name for name in names)


# -- the cache ----------------------------------------------------------------------------------------------------


def print_cache(usage: Usage, cleaned: Cleaned | None = None, file: TextIO | None = None) -> None:
    """The cache's place, size and quota, and what a cleaning did."""
    kinds = sorted({entry.kind for entry in usage.entries})
    rows = []
    for kind in kinds:
        entries = [entry for entry in usage.entries if entry.kind == kind]
        size, oldest = sum(entry.bytes for entry in entries), min(entry.used for entry in entries)
        rows.append((kind, len(entries), scaled(size, "B"), datetime.fromtimestamp(oldest).strftime("%Y-%m-%d %H:%M")))
    head = [("cache", usage.path), ("size", f"{scaled(usage.bytes, 'B')} of {scaled(usage.quota, 'B')}")]
    if usage.leftovers:
        head.append(("in progress", f"{scaled(usage.leftovers, 'B')}, or left over from a killed process"))
    if cleaned is not None:
        head.append(("cleaned", f"{len(cleaned.removed)} entries, {scaled(cleaned.freed, 'B')}"))
        if cleaned.in_use:
            head.append(("kept", f"{len(cleaned.in_use)} entries in use"))
    columns: list[str | Column] = ["kind", Column(header="entries", justify="right"),
                                   Column(header="size", justify="right"), "least recently used"]
    show(pairs(head), table("", columns, rows) if rows else cell("It is empty."), file=file)


def cache_json(usage: Usage, cleaned: Cleaned | None = None) -> dict[str, Any]:
    """The same as JSON values; "cleaned" is null where nothing was asked to be."""
    return {
        "path": str(usage.path), "bytes": usage.bytes, "quota_bytes": usage.quota, "leftover_bytes": usage.leftovers,
        "entries": [dataclasses.asdict(entry) for entry in usage.entries],
        "cleaned": None if cleaned is None else {
            "removed": len(cleaned.removed), "freed_bytes": cleaned.freed, "in_use": len(cleaned.in_use)},
    }
