"""The images of `digits` as pictures of another shape."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

from torch import Tensor
from torch.utils.data import Dataset

from thrifty.workloads.embedded.digits import Digits


@final
class Pictures(Dataset[tuple[Tensor, Tensor]]):
    """A split of `digits` as (what ``drawn`` makes of an image [1, 28, 28], label)."""

    def __init__(self, split: str, drawn: Callable[[Tensor], Tensor]) -> None:
        self.digits, self.drawn = Digits(split), drawn

    def __len__(self) -> int:
        return len(self.digits)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, label = self.digits[index]
        return self.drawn(image), label
