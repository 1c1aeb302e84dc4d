"""Which class a line's label is, by the directory's config or, of a head that is yet to be trained, by the lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

from thrifty.workloads.huggingface.directory import Directory
from thrifty.workloads.huggingface.jsonl import Line, Lines
from thrifty.workloads.huggingface.tasks import TASKS

Label = int | str
NAMING = ("id2label", "label2id", "num_labels")
"""Fields of config.json, each of which says how many classes there are."""


@final
@dataclass(frozen=True)
class Labels:
    """The classes of a directory's model.

    Args:
        classes: how many.
        numbers: {word: class}; empty where labels are numbers alone.
        of_new_head: names of the classes of a head that the weights may lack, since it is trained; None where the
            weights must have it.
    """

    classes: int
    numbers: Mapping[str, int]
    of_new_head: tuple[str, ...] | None = None

    def of(self, lines: Sequence[Line]) -> list[int]:
        """The class of each line, all of which `labels_of` has seen."""
        return [int(self._number(line.values["label"])) for line in lines]  # type: ignore[arg-type]

    def _number(self, label: Label) -> int | None:
        return self.numbers.get(label) if isinstance(label, str) else label

    def check(self, lines: Lines) -> None:
        """Refuse a label that is none of the classes.

        Raises:
            WorkloadError: names the line.
        """
        for line in lines.lines:
            label = line.values["label"]
            number = self._number(label)
            if number is None or not 0 <= number < self.classes:
                known = f"0 to {self.classes - 1}" + (f", or one of {', '.join(list(self.numbers)[:8])}" if self.numbers else "")
                raise lines.wrong(line, f'"label" is {label!r}, which this model does not have; it has {known}')


def labels_of(directory: Directory, task: str, lines: Lines, trains: bool) -> Labels:
    """The classes that labels stand for.

    config.json says them. Where it says none, and its architecture is for another task so that the head is yet to be
    trained, the lines to train with do: their words in alphabetical order, or their numbers from 0.

    Args:
        directory: of the model.
        task: of `TASKS`, with labels.
        lines: its examples.
        trains: whether a recipe trains it.

    Raises:
        WorkloadError: a label is none of the classes; names the line.
    """
    new_head = trains and not directory.architecture.endswith(TASKS[task].endings)
    if new_head and not any(directory.config.get(name) for name in NAMING):
        found = _from(lines)
    else:
        numbers = {str(word): int(number) for word, number in (directory.config.get("label2id") or {}).items()}
        named = directory.config.get("id2label") or {}
        classes = len(named) or len(numbers) or int(directory.config.get("num_labels", 2))
        words = {number: word for word, number in numbers.items()} | {int(i): str(word) for i, word in named.items()}
        names = tuple(words.get(i, f"LABEL_{i}") for i in range(classes))
        found = Labels(classes, numbers, names if new_head else None)
    found.check(lines)
    return found


def _from(lines: Lines) -> Labels:
    """The classes of the lines to train with.

    Raises:
        WorkloadError: some are words and some numbers, or a number below the largest is no line's.
    """
    taught = lines.of("train")
    kind = type(taught[0].values["label"])
    for line in taught:
        if type(line.values["label"]) is not kind:
            raise lines.wrong(line, f'"label" is {line.values["label"]!r}, and that of line {taught[0].number} is '
                              f"{taught[0].values['label']!r}: give words or numbers, not both")
    said = sorted({line.values["label"] for line in taught})
    if kind is str:
        return Labels(len(said), {word: i for i, word in enumerate(said)}, tuple(said))
    for line in taught:
        if not 0 <= line.values["label"] < len(said):
            raise lines.wrong(line, f'"label" is {line.values["label"]}, and the lines to train with have {len(said)} different '
                              f"ones: number classes from 0 to {len(said) - 1}, or give words")
    return Labels(len(said), {}, tuple(f"LABEL_{i}" for i in range(len(said))))
