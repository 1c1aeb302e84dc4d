"""How labels pass a reshape: dimensions are merged, split, or both, block by block."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from thrifty.posttraining.pruning.labels import Dims, Labels, data


def reshaped(labels: Labels, dims: Dims, shape: Sequence[int]) -> Dims:
    """Labels of a tensor in a new shape.

    The shapes fall into blocks of equal products. Within a block at most one dimension carries channels. Merged, each
    index gets the label of the channel that it belongs to; split, a channel is a whole index of one of the parts: of the one
    that needs no new ties, else of the outermost of two and of the last but one of more (heads stand there, before their size).

    Args:
        labels: in which ties and freezes are noted.
        dims: of the tensor.
        shape: the new one.

    >>> found = Labels()
    >>> [d.tolist() for d in reshaped(found, [data(2), found.fresh(6)], (2, 3, 2))]
    [[0, 0], [1, 3, 5], [0, 0]]
    """
    out: list[np.ndarray | None] = [None] * len(shape)
    for before, after in _blocks([len(d) for d in dims], shape):
        wide = [e for e in after if shape[e] > 1]
        for e in after:
            out[e] = data(shape[e])
        merged = _merged(labels, [dims[d] for d in before])
        if not merged.any():
            continue
        if len(wide) == 1:
            out[wide[0]] = merged
        elif wide:
            position, carried = _split(labels, merged, [shape[e] for e in wide])
            out[wide[position]] = carried
    return [data(n) if d is None else d for d, n in zip(out, shape, strict=True)]


def _blocks(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Runs of dimensions whose sizes have the same product; dimensions of 1 that are left over go to the last."""
    found, i, j = [], 0, 0
    while i < len(before) and j < len(after):
        left, right, a, b = [i], [j], before[i], after[j]
        i, j = i + 1, j + 1
        while a != b:
            if a < b:
                left.append(i)
                a, i = a * before[i], i + 1
            else:
                right.append(j)
                b, j = b * after[j], j + 1
        found.append((left, right))
    if found:
        found[-1][0].extend(range(i, len(before)))
        found[-1][1].extend(range(j, len(after)))
    return found


def _merged(labels: Labels, dims: Dims) -> np.ndarray:
    """One label an index of the dimensions taken together."""
    sizes = [len(d) for d in dims]
    carriers = [d for d, own in enumerate(dims) if own.any()]
    if len(carriers) == 1 and sizes[carriers[0]] > 1:
        place = [1] * len(sizes)
        place[carriers[0]] = -1
        return np.broadcast_to(dims[carriers[0]].reshape(place), sizes).reshape(-1)
    if carriers:
        labels.freeze("it is merged with other channels", *(dims[d] for d in carriers))
    return data(math.prod(sizes))


def _split(labels: Labels, merged: np.ndarray, sizes: Sequence[int]) -> tuple[int, np.ndarray]:
    """(which part carries the channels, their labels)."""
    roots = labels.roots(merged).reshape(sizes)
    for position in range(len(sizes)):  # no new ties: a channel is an index of this part already
        rows = np.moveaxis(roots, position, 0).reshape(sizes[position], -1)
        if (rows == rows[:, :1]).all() and len(set(rows[:, 0].tolist())) > 1:
            return position, rows[:, 0]
    position = 0 if len(sizes) == 2 else len(sizes) - 2
    rows = np.moveaxis(merged.reshape(sizes), position, 0).reshape(sizes[position], -1)
    for column in rows.T[1:]:
        labels.join(rows[:, 0], column)
    labels.tag("heads", rows[:, 0])
    return position, rows[:, 0]
