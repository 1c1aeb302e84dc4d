"""Distributed data parallelism: every rank holds everything, gradients are added while the backward pass goes on."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from thrifty.recipes.card import Card
from thrifty.recipes.claim import Claim
from thrifty.recipes.hyperparameters import number
from thrifty.training.distributed.parallel import Parallel

if TYPE_CHECKING:
    from thrifty.recipes.session import Session
    from thrifty.workloads.workload import Batch


@final
class _Whole(nn.Module):
    """The forward pass of a batch as one module, which is what torch's engine wraps."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.proceed: Callable[[Batch], Any] = lambda batch: None

    def forward(self, batch: Batch) -> Any:
        return self.proceed(batch)


@final
@dataclass(frozen=True)
class Ddp(Parallel):
    """Every rank holds the whole model and takes its own part of each batch.

        g = sum over ranks of g_r,  g_r the gradient of rank r's part of the mean loss over all valid examples or tokens

    torch's DistributedDataParallel: gradients are added bucket by bucket while the backward pass goes on, once a step
    however many micro-batches there are. Parameters that a rank's examples do not reach count as 0 there. Running
    statistics of norms are each rank's own; the first rank's leave the training.

    Args:
        bucket: megabytes of gradients that are sent at once.

    >>> Ddp()
    Ddp(bucket=25.0)
    """

    bucket: float = number(25.0, 0, open_low=True)

    name: ClassVar[str] = "ddp"
    averages: ClassVar[bool] = True
    card: ClassVar[Card] = Card(
        family="distributed",
        benefit="training time",
        trade_off="every rank holds all parameters, gradients and state; each step sends twice the gradients",
        paper='"PyTorch Distributed: Experiences on Accelerating Data Parallel Training", Li et al. 2020, arXiv:2006.15704',
        requires=frozenset({"module", "float-weights"}),
        slot="parallelism",
    )

    def prepare(self, session: Session) -> None:
        if session.ranks.count == 1:
            return
        inner = _Whole(session.model)
        with warnings.catch_warnings():  # broadcast_buffers has another name since torch 2.13, which 2.11 does not know
            warnings.simplefilter("ignore", FutureWarning)
            engine = DistributedDataParallel(
                inner, broadcast_buffers=False, find_unused_parameters=True, gradient_as_bucket_view=True,
                bucket_cap_mb=self.bucket)  # type: ignore[arg-type]  # torch takes fractions too
        session.memory(self).update(inner=inner, engine=engine)

    def forward(self, session: Session, batch: Batch, proceed: Callable[[Batch], Any]) -> Any:
        memory = session.memory(self)
        if not memory or not session.model.training:
            return proceed(batch)
        memory["inner"].proceed = proceed
        return memory["engine"](batch)

    def micro_batch(self, session: Session, last: bool) -> contextlib.AbstractContextManager[Any]:
        memory = session.memory(self)
        return memory["engine"].no_sync() if memory and not last else contextlib.nullcontext()  # type: ignore[no-any-return]

    def claims(self, session: Session) -> tuple[Claim, ...]:
        if session.ranks.count == 1:
            return ()
        return (Claim("ranks that train together", 1.0, float(session.ranks.count), minimum=1.0),)
