"""Labels of channels: which indices are one channel, which must stay and why."""

from __future__ import annotations

from typing import Final

import numpy as np

Dims = list[np.ndarray]
"""A tensor's labels: one int64 array a dimension, as long as the dimension; DATA where it is none of a weight's."""

DATA: Final = 0
KEPT_DATA = "inputs and what is computed only from them keep their size"


def data(length: int) -> np.ndarray:
    """Labels of a dimension that no weight decides."""
    return np.zeros(int(length), dtype=np.int64)


class Labels:
    """Union-find over labels. A class may be frozen, with the first reason that was given; label DATA always is."""

    def __init__(self) -> None:
        self._parent = [DATA]
        self._frozen: dict[int, str] = {DATA: KEPT_DATA}
        self._tagged: dict[str, list[np.ndarray]] = {}

    def fresh(self, n: int) -> np.ndarray:
        start = len(self._parent)
        self._parent.extend(range(start, start + n))
        return np.arange(start, start + n)

    def find(self, label: int) -> int:
        parent = self._parent
        while parent[label] != label:
            parent[label] = parent[parent[label]]
            label = parent[label]
        return label

    def roots(self, labels: np.ndarray) -> np.ndarray:
        return np.array([self.find(label) for label in labels.tolist()], dtype=np.int64)

    def join(self, a: np.ndarray, b: np.ndarray) -> None:
        """The two of each pair are one channel."""
        if a is b or not (a.any() or b.any()):
            return
        for x, y in zip(a.tolist(), b.tolist(), strict=True):
            low, high = sorted((self.find(x), self.find(y)))
            if low != high:
                self._parent[high] = low
                why = self._frozen.pop(high, None)
                if why is not None:
                    self._frozen.setdefault(low, why)

    def freeze(self, why: str, *many: np.ndarray) -> None:
        for labels in many:
            if labels.any():
                for label in labels.tolist():
                    self._frozen.setdefault(self.find(label), why)

    def why(self, label: int) -> str | None:
        """Why a channel stays; None where it may go."""
        return self._frozen.get(self.find(label))

    def tag(self, tag: str, labels: np.ndarray) -> None:
        if labels.any():
            self._tagged.setdefault(tag, []).append(labels)

    def tagged(self, tag: str) -> set[int]:
        """Roots of all that were given the tag."""
        return {self.find(label) for labels in self._tagged.get(tag, []) for label in labels.tolist()}
