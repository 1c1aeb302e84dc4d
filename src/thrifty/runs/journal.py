"""What a search measured, kept as it comes: one that was killed goes on from there, and loses one candidate at most."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import safetensors.torch
from torch import Tensor

FILE = "journal.jsonl"


@final
@dataclass(frozen=True)
class Entry:
    """One thing that was measured.

    Args:
        kind: "time", "score", "fit" or "distil".
        value: the figure; None of a training, whose weights lie beside the journal.
        seconds: that it took when it was measured.
        flops: likewise; None where they were not counted.
        details: further figures by name.
    """

    kind: str
    value: float | None
    seconds: float
    flops: float | None = None
    details: dict[str, float] = field(default_factory=dict)


class Journal:
    """The entries of one search, in order. A search is a function of what it measured: the same answers lead it the same way.

    Args:
        directory: that keeps them; None keeps nothing.
        entries: recorded elsewhere, to be replayed.

    >>> journal = Journal(entries=[Entry("time", 0.25, 1.0)])
    >>> journal.next("time"), journal.next("time")
    (Entry(kind='time', value=0.25, seconds=1.0, flops=None, details={}), None)
    """

    def __init__(self, directory: Path | None = None, entries: list[Entry] | None = None) -> None:
        self._directory, self._at = directory, 0
        self.entries = list(entries or ()) if directory is None else _read(directory / FILE)

    def next(self, kind: str) -> Entry | None:
        """The next entry where it is of that kind; None where nothing is recorded from here on."""
        if self._at == len(self.entries):
            return None
        found = self.entries[self._at]
        if found.kind != kind:  # another search's, then: nothing behind it counts either
            del self.entries[self._at:]
            return None
        self._at += 1
        return found

    def add(self, entry: Entry, weights: dict[str, Tensor] | None = None) -> None:
        """Keep one more; it is on the disk when this returns."""
        if self._directory is not None:
            if weights is not None:
                safetensors.torch.save_file(weights, self._weights(self._at))
            with (self._directory / FILE).open("w" if self._at == 0 else "a") as file:
                file.write(json.dumps(vars(entry)) + "\n")
                file.flush()
                os.fsync(file.fileno())
        self.entries.append(entry)
        self._at += 1

    def recorded(self, kind: str, compute: Callable[[], Entry]) -> tuple[Entry, bool]:
        """The next entry, or what is computed in its place; and whether it was there."""
        found = self.next(kind)
        if found is not None:
            return found, True
        made = compute()
        self.add(made)
        return made, False

    def weights(self) -> dict[str, Tensor]:
        """Of the entry that `next` gave last."""
        return safetensors.torch.load_file(self._weights(self._at - 1))

    def _weights(self, index: int) -> Path:
        assert self._directory is not None
        return self._directory / f"{index}.safetensors"


def _read(path: Path) -> list[Entry]:
    """The whole lines of a journal; a line that was being written when its process was killed is left out."""
    found = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            values: dict[str, Any] = json.loads(line)
            found.append(Entry(**values))
        except (ValueError, TypeError):
            break
    return found
