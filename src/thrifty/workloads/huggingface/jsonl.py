"""Examples in a JSON Lines file: one object a line; what is wrong is answered with file and line."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from thrifty.errors import WorkloadError
from thrifty.workloads.embedded.sources import bucket

SPLITS = ("train", "validation", "test")
DRAWN = ("train", "train", "train", "validation", "test")
DRAWN_BESIDE_TRAIN = ("validation", "test")


@final
@dataclass(frozen=True)
class Format:
    """What a line of a task's file must hold.

    Args:
        fields: {name: kinds of value}; texts must not be blank.
        optional: likewise, for fields that may be absent.
        group: of these the first that is present decides the split, so that equal ones are never on both sides.
        example: a right line, for the errors.
    """

    fields: Mapping[str, tuple[type, ...]]
    group: tuple[str, ...]
    example: str
    optional: Mapping[str, tuple[type, ...]]


@final
@dataclass(frozen=True)
class Line:
    """One example: its file, its line's number from 1, its fields, its split."""

    path: Path
    number: int
    values: Mapping[str, Any]
    split: str


@final
@dataclass(frozen=True)
class Lines:
    """The examples of a file, or of one to judge by and one to train with, in order."""

    path: Path
    format: Format
    lines: tuple[Line, ...]

    def of(self, split: str) -> tuple[Line, ...]:
        """The examples of a split."""
        return tuple(line for line in self.lines if line.split == split)

    def wrong(self, line: Line, what: str) -> WorkloadError:
        """The error for a line whose values do not fit the model."""
        return _wrong(line.path, line.number, what, self.format)


def read(path: Path, format: Format, train: Path | None = None) -> Lines:
    """Read and check every line.

    The split is the field "split" ("train", "validation" or "test") where the lines have one. Where none has, the
    hash of a line's content decides: three fifths train, one fifth validation, one fifth test, the same at every run
    and whatever the other lines are. With another file to train with, half validates and half tests.

    Args:
        path: of the file.
        format: of its lines.
        train: a file of examples to train with. Those whose content is in the first file too are left out: a model is
            not judged by what it was taught.

    Raises:
        WorkloadError: a file is missing or empty, a line is wrong (told with its number and a right line), or
            validation or test has no line, or nothing is left to train with.
    """
    found = _all(path, format)
    named = "split" in found[0].values
    shares = DRAWN if train is None else DRAWN_BESIDE_TRAIN
    lines = [dataclasses.replace(line, split=line.values["split"] if named else _drawn(line.values, format, shares))
             for line in found]
    for split in SPLITS[1:]:
        if not any(line.split == split for line in lines):
            way = "name it in the lines' \"split\" field" if named else 'give more lines, or a "split" field in each'
            raise WorkloadError(f"{path}: its {len(lines)} lines leave the {split} split empty; {way}")
    return Lines(path, format, tuple(lines if train is None else _taught(train, path, lines, format) + lines))


def _taught(train: Path, path: Path, judged: Sequence[Line], format: Format) -> list[Line]:
    """The lines to train with."""
    found = _all(train, format)
    for what, lines, wrong in (("validation and test", judged, ("train",)), ("train", found, SPLITS[1:])):
        if strange := next((line for line in lines if line.values.get("split") in wrong), None):
            raise _wrong(strange.path, strange.number, f'"split" is {_short(strange.values["split"])}, and with a file to train '
                         f"with, lines of this one are for {what}", format)
    contents = {_content(line.values, format) for line in judged}
    left = [dataclasses.replace(line, split="train") for line in found if _content(line.values, format) not in contents]
    if not left:
        raise WorkloadError(f"every line of {train} is in {path} too, which judges the model: give other training "
                            f"examples, or omit the file to train on three fifths of the lines of {path.name}")
    return left


def _all(path: Path, format: Format) -> list[Line]:
    """Every line, checked, with no split yet."""
    if not path.is_file():
        raise WorkloadError(f"there is no data file {path}; it holds one JSON object a line, such as {format.example}")
    found = [Line(path, number, _checked(path, number, raw, format), "") for number, raw in _numbered(path)]
    if not found:
        raise WorkloadError(f"{path} is empty; it holds one JSON object a line, such as {format.example}")
    named = "split" in found[0].values
    for line in found:
        if ("split" in line.values) != named:
            raise _wrong(path, line.number, f'{"no" if named else "a"} "split", while line {found[0].number} has '
                         f'{"one" if named else "none"}: give all lines a split or none', format)
    return found


def _numbered(path: Path) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            if raw.strip():
                yield number, raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw


def _checked(path: Path, number: int, raw: bytes, format: Format) -> dict[str, Any]:
    try:
        values = json.loads(raw)
    except ValueError as error:  # of JSON or of UTF-8
        raise _wrong(path, number, f"this is not JSON in UTF-8 ({error})", format) from error
    if not isinstance(values, dict):
        raise _wrong(path, number, f"a line is an object but this is a {type(values).__name__}", format)
    for name, kinds in {**format.fields, **format.optional}.items():
        if name not in values:
            if name in format.fields:
                raise _wrong(path, number, f'"{name}" is missing', format)
            continue
        value = values[name]
        if isinstance(value, bool) or not isinstance(value, kinds):
            words = " or ".join({str: "a text", int: "a whole number"}[kind] for kind in kinds)
            raise _wrong(path, number, f'"{name}" must be {words} but is {_short(value)}', format)
        if isinstance(value, str) and not value.strip():
            raise _wrong(path, number, f'"{name}" is blank', format)
        if isinstance(value, str) and any("\ud800" <= c <= "\udfff" for c in value):
            raise _wrong(path, number, f'"{name}" has half a surrogate pair, which is not a character', format)
    if "split" in values and values["split"] not in SPLITS:
        raise _wrong(path, number, f'"split" must be one of {", ".join(SPLITS)} but is {_short(values["split"])}', format)
    return values


def _content(values: Mapping[str, Any], format: Format) -> str:
    """What decides the split: lines that have it alike are never on both sides."""
    return str(next(values[name] for name in format.group if name in values))


def _drawn(values: Mapping[str, Any], format: Format, shares: Sequence[str] = DRAWN) -> str:
    return shares[bucket(_content(values, format), len(shares))]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _wrong(path: Path, number: int, what: str, format: Format) -> WorkloadError:
    return WorkloadError(f"{path}:{number}: {what}. A right line: {format.example}")


def values(lines: Sequence[Line], name: str) -> list[Any]:
    """One field of each line."""
    return [line.values[name] for line in lines]
