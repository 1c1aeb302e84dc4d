"""Muon where matrices are sharded: each matrix goes whole to one rank, which makes its update orthogonal for all."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, final

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim._muon import _adjust_lr, _zeropower_via_newtonschulz

COEFFICIENTS, ROUNDS, LEAST = (3.4445, -4.7750, 2.0315), 5, 1e-7
"""Of the Newton-Schulz iteration, as torch's Muon has them."""
SENT = torch.bfloat16
"""Precision in which O is made and sent back."""


@final
class OwnedMuon(torch.optim.Optimizer):
    """torch's Muon over DTensors of which each rank holds rows.

        B <- mu B + (1 - mu) g;  O = NewtonSchulz5(g + mu (B - g));  W <- (1 - lr wd) W - lr 0.2 sqrt(max(rows, columns)) O

    Momentum stays where the rows are. The matrices are distributed among the ranks by their cost; one all-to-all brings the
    parts of each to its owner, another the parts of O back, in bfloat16, which O is made in.

    Args:
        params: groups of matrices, sharded by rows over the last dimension of one mesh.
        lr: learning rate.
        weight_decay: a step shrinks weights by lr * weight_decay.
        momentum: mu.

    Source: "Muon is Scalable for LLM Training", Liu et al. 2025, arXiv:2502.16982, section 2.3 (ownership as in torchtitan's).
    """

    def __init__(self, params: Any, lr: float, weight_decay: float, momentum: float) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step for all matrices that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if parameters := [p for p in group["params"] if p.grad is not None]:
                self._step(group, parameters)
        return loss

    def _step(self, group: dict[str, Any], parameters: list[Any]) -> None:
        momentum, lr = group["momentum"], float(group["lr"])
        updates = []
        for p in parameters:
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
            gradient, kept = p.grad.to_local(), self.state[p]["momentum_buffer"].to_local()
            kept.lerp_(gradient, 1 - momentum)
            updates.append(gradient.lerp(kept, momentum))
        mesh = parameters[0].device_mesh
        over = mesh.get_group(mesh.ndim - 1)
        done = orthogonal(updates, [(p.shape[0], p.shape[1]) for p in parameters], over)
        for p, update in zip(parameters, done, strict=True):
            weight = p.to_local()
            weight.mul_(1 - lr * group["weight_decay"])
            weight.add_(update, alpha=-_adjust_lr(lr, "match_rms_adamw", p.shape))


def orthogonal(parts: Sequence[Tensor], shapes: Sequence[tuple[int, int]], group: Any) -> list[Tensor]:
    """Make matrices orthogonal of which each rank holds rows.

    Args:
        parts: this rank's rows of each matrix; of some it may hold none.
        shapes: of the whole matrices.
        group: of the ranks, in the order of the rows.

    Returns:
        this rank's rows of each result, bfloat16.
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
    done = {i: _zeropower_via_newtonschulz(torch.cat(pieces[i]), COEFFICIENTS, ROUNDS, LEAST) for i in mine}

    back = [done[i].split(held[i]) for i in mine]
    returned = [rows[rank].reshape(-1) for rank in range(count) for rows in back]
    returned_flat = torch.cat(returned) if returned else sent.new_empty(0, dtype=SENT)
    received = sent.new_empty(sum(sizes_out), dtype=SENT)
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
