"""Which weights of a matrix leave: a share of all, of each row, or so many of every so many."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor


@final
@dataclass(frozen=True)
class Pattern:
    """Args:
        share: of the weights that leaves.
        period: neighbors among which the same number leaves; 1 where only the share counts.
        rows: whether each row loses the share by itself.
    """

    share: float
    period: int = 1
    rows: bool = False

    @staticmethod
    def of(structure: str, ratio: float, rows: bool = False) -> Pattern:
        """From "unstructured" and a ratio, or from "n:m", n of each m neighbors staying.

        >>> Pattern.of("2:4", 0.5)
        Pattern(share=0.5, period=4, rows=False)
        """
        if ":" not in structure:
            return Pattern(ratio, rows=rows)
        kept, period = map(int, structure.split(":"))
        return Pattern(1 - kept / period, period)


def lowest(scores: Tensor, pattern: Pattern) -> Tensor:
    """[out, in] bool: the weights of lowest score, as many as the pattern says; of equals the earlier.

    >>> lowest(torch.tensor([[4.0, 1.0, 2.0, 3.0]]), Pattern.of("2:4", 0.5)).int().tolist()
    [[0, 1, 1, 0]]
    """
    rows = (scores.reshape(-1, pattern.period) if pattern.period > 1 else scores if pattern.rows else scores.reshape(1, -1))
    count = round(pattern.share * rows.shape[1])
    lost = torch.zeros_like(rows, dtype=torch.bool)
    lost.scatter_(1, rows.argsort(dim=1, stable=True)[:, :count], True)
    return lost.reshape(scores.shape)
