"""What a search measured, kept as it comes: a killed search resumes, and loses one candidate at most."""

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
        key: of the question, where it names one: the entry then answers that question alone, whenever it is asked.
    """

    kind: str
    value: float | None
    seconds: float
    flops: float | None = None
    details: dict[str, float] = field(default_factory=dict)
    key: str = ""


class Journal:
    """The entries of one search, in order. A search is a function of what it measured: the same answers lead it the same way.

    A question with a key is answered by the entry of that key, wherever it stands; one without, by the next entry in order.

    Args:
        directory: that keeps them; None keeps nothing.
        entries: recorded elsewhere, to be replayed.

    >>> journal = Journal(entries=[Entry("time", 0.25, 1.0)])
    >>> journal.next("time"), journal.next("time")
    (Entry(kind='time', value=0.25, seconds=1.0, flops=None, details={}, key=''), None)
    """

    def __init__(self, directory: Path | None = None, entries: list[Entry] | None = None) -> None:
        self._directory, self._at, self._on_disk, self._given = directory, 0, 0, -1
        self.entries = list(entries or ()) if directory is None else _read(directory / FILE)

    def next(self, kind: str, key: str = "") -> Entry | None:
        """The next entry where it is of that kind; None where nothing is recorded from here on.

        Args:
            kind: of the entry.
            key: of the question; an entry of that key comes before the next one in order.
        """
        for i, entry in enumerate(self.entries):
            if key and (entry.kind, entry.key) == (kind, key):
                self._given = i
                return entry
        while self._at < len(self.entries) and self.entries[self._at].key:
            self._at += 1
        if self._at == len(self.entries):
            return None
        found = self.entries[self._at]
        if found.kind != kind:
            if not key:  # another search's, then: nothing behind it counts either
                del self.entries[self._at:]
                self._on_disk = 0
            return None
        self._given, self._at = self._at, self._at + 1
        return found

    def add(self, entry: Entry, weights: dict[str, Tensor] | None = None) -> None:
        """Keep one more; it is on the disk when this returns."""
        if self._directory is not None:
            if weights is not None:
                safetensors.torch.save_file(weights, self._weights(len(self.entries)))
            # What a killed process left is written anew once: its last line may be a part of one.
            pending = [*self.entries[self._on_disk:], entry]
            with (self._directory / FILE).open("a" if self._on_disk else "w") as file:
                file.writelines(json.dumps(vars(each)) + "\n" for each in pending)
                file.flush()
                os.fsync(file.fileno())
            self._on_disk = len(self.entries) + 1
        self.entries.append(entry)
        if not entry.key:  # what has a key is passed over when the next in order is looked for
            self._at = len(self.entries)

    def recorded(self, kind: str, compute: Callable[[], Entry]) -> tuple[Entry, bool]:
        """The next entry, or what is computed in its place; and whether it was there."""
        found = self.next(kind)
        if found is not None:
            return found, True
        made = compute()
        self.add(made)
        return made, False

    def weights(self) -> dict[str, Tensor]:
        """The weights of the entry that `next` gave last."""
        return safetensors.torch.load_file(self._weights(self._given))

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
