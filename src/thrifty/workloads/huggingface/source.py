"""The text by which any process finds a directory's workload again:

    hf:/absolute/directory?task=text-classification&data=/absolute/data.jsonl&tokens=64
"""

from __future__ import annotations

import dataclasses
import json
import re
import urllib.parse
from dataclasses import dataclass
from pathlib import Path
from typing import final

from thrifty.errors import WorkloadError
from thrifty.workloads.huggingface import hub
from thrifty.workloads.huggingface.directory import TOKENIZER
from thrifty.workloads.huggingface.tasks import TASKS

SCHEME = "hf:"
DATA = "data.jsonl"
OPTIONS = ("task", "data", "train", "reference", "tokens")


@final
@dataclass(frozen=True)
class Reference:
    """A workload's text, read.

    Args:
        directory: of the model, absolute.
        task: one of `TASKS`; "" for what the architecture is for.
        data: the JSON Lines file, absolute.
        tokens: length of every text; None for what the data need. Images have none.
        train: another such file, whose examples it is trained with; None for those of ``data``.
        recipe: how it is trained today; "" where nobody says.

    >>> Reference.parse("hf:/models/a b?task=causal-lm&data=/d.jsonl").directory.name
    'a b'
    """

    directory: Path
    task: str
    data: Path
    tokens: int | None = None
    train: Path | None = None
    recipe: str = ""

    def __str__(self) -> str:
        given = {"task": self.task, "data": str(self.data), "train": self.train, "reference": self.recipe, "tokens": self.tokens}
        query = urllib.parse.urlencode({k: v for k, v in given.items() if v}, quote_via=urllib.parse.quote, safe="/")
        return f"{SCHEME}{urllib.parse.quote(str(self.directory))}?{query}"

    @staticmethod
    def parse(text: str) -> Reference:
        """Read "hf:DIRECTORY?task=...&data=...&train=...&reference=...&tokens=...", or a directory's path alone, which is taken
        as it is. A name of the hub stands for its directory in the cache of this machine.

        Raises:
            WorkloadError: an option is unknown or no value of its kind, or the cache does not hold a name.
        """
        place, query = text, ""
        if text.startswith(SCHEME):
            place, _, query = text.removeprefix(SCHEME).partition("?")
            place = urllib.parse.unquote(place)
        given = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
        if unknown := given.keys() - set(OPTIONS):
            raise WorkloadError(f"{text!r} asks for {', '.join(sorted(unknown))}; known: {', '.join(OPTIONS)}")
        if given.get("task") and given["task"] not in TASKS:
            raise WorkloadError(f"there is no task {given['task']!r}; those of a Hugging Face directory: {', '.join(TASKS)}")
        tokens = given.get("tokens")
        if tokens is not None and not re.fullmatch(r"[1-9]\d{0,8}", tokens):
            raise WorkloadError(f"tokens must be a whole number, 1 or more, but is {tokens!r}")
        directory = Path(place).expanduser().resolve()
        if not directory.is_dir() and hub.is_name(place):
            directory = hub.snapshot(place)
        data, train = (_absolute(given[name]) if given.get(name) else None for name in ("data", "train"))
        return Reference(directory, given.get("task", ""), data or directory / DATA, int(tokens) if tokens else None, train,
                         given.get("reference", "").strip())


def _absolute(path: str | Path) -> Path:
    return Path(path).expanduser().resolve()


def require_same_tokens(teacher: str, student: str) -> None:
    """Refuse a directory whose tokenizer gives a text other numbers than another's: what one wrote the other would misread.

    Args:
        teacher, student: sources of workloads; what is no directory of texts is not looked at.

    Raises:
        WorkloadError: a token that both know has another number.
    """
    if not (teacher.startswith(SCHEME) and student.startswith(SCHEME)):
        return
    known = [Reference.parse(each).directory / TOKENIZER for each in (teacher, student)]
    if not all(path.is_file() for path in known):
        return
    theirs, ours = map(_vocabulary, known)
    for token, number in ours.items():
        if theirs.get(token) != number:
            where = f"has no {token!r}" if token not in theirs else f"numbers {token!r} {theirs[token]}"
            raise WorkloadError(f"the teacher's tokenizer {where}, but the student's numbers it {number}: a teacher must read "
                                "the student's own tokens; use one with the same tokenizer")


def _vocabulary(path: Path) -> dict[str, int]:
    """{token: number} of a tokenizer.json."""
    model = json.loads(path.read_text())["model"].get("vocab", {})
    return dict(model) if isinstance(model, dict) else {piece[0]: i for i, piece in enumerate(model)}


def is_reference(text: str) -> bool:
    """Whether a workload's reference is a Hugging Face directory's: its scheme, a directory that is there, or a name of the
    hub's."""
    return text.startswith(SCHEME) or hub.is_name(text) or (text.strip() != "" and Path(text).expanduser().is_dir())


def reference(workload: str, task: str | None = None, data: str | Path | None = None, train: str | Path | None = None,
              recipe: str | None = None) -> str:
    """The reference of a directory with what was said beside it, as `load_workload` takes it.

    Args:
        workload: a directory, or any other reference where nothing else is given.
        task: one of `TASKS`; None for what the architecture is for.
        data: a JSON Lines file; None for data.jsonl in the directory.
        train: a JSON Lines file of examples to train with; None for those of ``data``.
        recipe: how it is trained today; None for a fine-tuning where ``train`` is given, else for no training.

    Raises:
        WorkloadError: there is no such directory or task.
    """
    given = {"task": task, "data": data, "train": train, "reference": recipe}
    named = [name for name, value in given.items() if value is not None]
    if not named:
        return workload
    if not is_reference(workload):
        raise WorkloadError(f"only a Hugging Face directory accepts {' and '.join(named)}, but there is none at {workload!r}")
    known = Reference.parse(workload)
    return str(dataclasses.replace(
        known, task=known.task if task is None else task, data=known.data if data is None else _absolute(data),
        train=known.train if train is None else _absolute(train), recipe=known.recipe if recipe is None else recipe))
