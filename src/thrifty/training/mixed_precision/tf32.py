"""TensorFloat-32: products of float32 tensors with fewer bits of mantissa."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

import torch
from torch import Tensor

from thrifty.recipes.card import Card
from thrifty.recipes.training_method import Stage, TrainingMethod

if TYPE_CHECKING:
    from thrifty.recipes.session import Session
    from thrifty.workloads.workload import Batch


@final
@dataclass(frozen=True)
class Tf32(TrainingMethod):
    """Matrix multiplications and convolutions of float32 tensors in TensorFloat-32: 10 bits of mantissa, float32's range.

    For NVIDIA GPUs since Ampere. Nothing else changes; torch's own settings are put back after each pass.

    >>> Tf32()
    Tf32()
    """

    name: ClassVar[str] = "tf32"
    stage: ClassVar[Stage] = "numerics"
    card: ClassVar[Card] = Card(
        family="mixed-precision",
        benefit="training time",
        trade_off="10 bits of mantissa in matrix multiplications; less gained than with bf16",
        paper='"Accelerating AI Training with NVIDIA TF32 Tensor Cores", Stosic and Micikevicius 2021',
        requires=frozenset({"module", "float-weights"}),
        slot="precision",
        devices=frozenset({"cuda"}),
    )

    def forward(self, session: Session, batch: Batch, proceed: Callable[[Batch], Any]) -> Any:
        with _tf32():
            return proceed(batch)

    def backward(self, session: Session, loss: Tensor, proceed: Callable[[Tensor], None]) -> None:
        with _tf32():
            proceed(loss)


@contextlib.contextmanager
def _tf32() -> Iterator[None]:
    places: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [place.allow_tf32 for place in places]
    try:
        for place in places:
            place.allow_tf32 = True
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.allow_tf32 = value
