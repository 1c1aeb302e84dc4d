"""Matrices that are sharded: each goes whole to one rank, which makes it orthogonal for all (ownership as in torchtitan)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from thrifty.training.optimizers.newton_schulz import orthogonalized, precision


def orthogonal(parts: Sequence[Tensor], shapes: Sequence[tuple[int, int]], group: Any) -> list[Tensor]:
    """Make matrices orthogonal of which each rank holds rows.

    Args:
        parts: this rank's rows of each matrix; of some it may hold none.
        shapes: of the whole matrices.
        group: of the ranks, in the order of the rows.

    Returns:
        this rank's rows of each result, in the precision of the iteration, in which they are also sent.
    """
    count, index = dist.get_world_size(group), dist.get_rank(group)
    owner = owners(shapes, count)
    held = [[rows_of(shape[0], rank, count) for rank in range(count)] for shape in shapes]
    mine = [i for i in range(len(shapes)) if owner[i] == index]
    by_owner = [[i for i in range(len(shapes)) if owner[i] == rank] for rank in range(count)]
    sizes_out = [sum(held[i][index] * shapes[i][1] for i in chosen) for chosen in by_owner]
    sizes_in = [sum(held[i][rank] * shapes[i][1] for i in mine) for rank in range(count)]

    sent = torch.cat([parts[i].reshape(-1) for chosen in by_owner for i in chosen])
    came = sent.new_empty(sum(sizes_in))
    dist.all_to_all_single(came, sent, sizes_in, sizes_out, group)
    pieces: dict[int, list[Tensor]] = {i: [] for i in mine}
    for rank, flat in enumerate(came.split(sizes_in)):
        for i, piece in zip(mine, flat.split([held[i][rank] * shapes[i][1] for i in mine]), strict=True):
            pieces[i].append(piece.view(-1, shapes[i][1]))
    done = dict(zip(mine, orthogonalized([torch.cat(pieces[i]) for i in mine]), strict=True))

    back = [done[i].split(held[i]) for i in mine]
    returned = [rows[rank].reshape(-1) for rank in range(count) for rows in back]
    kind = precision(sent.device)
    returned_flat = torch.cat(returned) if returned else sent.new_empty(0, dtype=kind)
    received = sent.new_empty(sum(sizes_out), dtype=kind)
    dist.all_to_all_single(received, returned_flat, sizes_out, sizes_in, group)
    found: dict[int, Tensor] = {}
    for chosen, flat in zip(by_owner, received.split(sizes_out), strict=True):
        sizes = [held[i][index] * shapes[i][1] for i in chosen]
        found.update({i: piece.view(-1, shapes[i][1]) for i, piece in zip(chosen, flat.split(sizes), strict=True)})
    return [found[i] for i in range(len(shapes))]


def rows_of(rows: int, rank: int, count: int) -> int:
    """Rows of a matrix that a rank holds: equal parts, the last ones smaller or empty.

    >>> [rows_of(5, rank, 4) for rank in range(4)]
    [2, 2, 1, 0]
    """
    each = -(-rows // count)
    return max(0, min(each, rows - rank * each))


def owners(shapes: Sequence[tuple[int, int]], count: int) -> list[int]:
    """The rank that each matrix goes to: the costliest first, each to the rank that has least to do; the same on all ranks.

    >>> owners([(4, 4), (2, 2), (4, 4)], 2)
    [0, 0, 1]
    """
    return list(_owners(tuple(shapes), count))


@functools.cache
def _owners(shapes: tuple[tuple[int, int], ...], count: int) -> tuple[int, ...]:
    busy, found = [0] * count, [0] * len(shapes)
    for i in sorted(range(len(shapes)), key=lambda i: (-_cost(shapes[i]), i)):
        found[i] = busy.index(min(busy))
        busy[found[i]] += _cost(shapes[i])
    return tuple(found)


def _cost(shape: tuple[int, int]) -> int:
    return shape[0] * shape[1] * min(shape)
