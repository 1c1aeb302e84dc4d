"""What a session asks of the method that spreads a training over ranks."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from thrifty.recipes.card import Card
from thrifty.recipes.training_method import Stage, TrainingMethod
from thrifty.training.distributed.teams import Teams

if TYPE_CHECKING:
    from thrifty.recipes.ranks import Ranks
    from thrifty.recipes.session import Session


@dataclass(frozen=True)
class Parallel(TrainingMethod):
    """Spreads a training over the session's ranks. With one rank it changes nothing and costs nothing."""

    stage: ClassVar[Stage] = "sharding"
    averages: ClassVar[bool] = False
    """Whether its engine divides the sum of the ranks' gradients by their number."""

    def require_ranks(self, count: int) -> None:
        """Refuse a number of ranks that the method cannot be spread over.

        Raises:
            ThriftyError: it cannot; says what would do.
        """

    def parts(self, count: int) -> int:
        """Parts in which so many ranks take a batch; ranks in a row that compute one part together are a team."""
        return count

    def place(self, session: Session) -> None:
        """Bring the model to the session's device, before `prepare`."""
        session.model = session.model.to(session.device)

    def micro_batch(self, session: Session, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Around the passes of one micro-batch.

        Args:
            session: the training.
            last: whether it is the step's last: gradients must be added over ranks in it, and need not be before.
        """
        return contextlib.nullcontext()

    def gradients(self, session: Session) -> list[Tensor]:
        """The parameters' gradients after the last backward pass, each added over all ranks; None has none."""
        return [p.grad for p in trained(session) if p.grad is not None]


@final
@dataclass(frozen=True)
class Summed(Parallel):
    """Each rank holds everything; gradients are added in one sum after the backward pass. What a session does by itself."""

    name: ClassVar[str] = "summed"
    card: ClassVar[Card] = Card(
        family="distributed", benefit="training time", trade_off="communication waits for the whole backward pass",
        paper='"Large Scale Distributed Deep Networks", Dean et al. 2012', slot="parallelism",
    )

    def gradients(self, session: Session) -> list[Tensor]:
        if session.ranks.count > 1:
            fill_unreached(trained(session), session.ranks, session.device)
        return added(super().gradients(session), session.ranks)


def shared(ranks: Ranks, methods: Sequence[TrainingMethod]) -> Ranks:
    """Who takes a part of each batch: the ranks, or teams of them.

    Raises:
        ThriftyError: a method cannot be spread over so many.
    """
    for method in methods:
        if isinstance(method, Parallel) and ranks.count > 1:
            method.require_ranks(ranks.count)
            size = ranks.count // method.parts(ranks.count)
            return Teams(ranks, size) if size > 1 else ranks
    return ranks


def trained(session: Session) -> list[Tensor]:
    """The parameters that the optimizer has."""
    return [p for group in session.optimizer.param_groups for p in group["params"]]


def fill_unreached(parameters: Sequence[Tensor], ranks: Ranks, device: str) -> None:
    """What one rank's examples did not reach, another's may have: its gradient is 0 here."""
    reached = ranks.sum(torch.tensor([float(p.grad is not None) for p in parameters], device=device))
    for p, count in zip(parameters, reached.tolist(), strict=True):
        if count and p.grad is None:
            p.grad = torch.zeros_like(p)


def added(gradients: list[Tensor], ranks: Ranks) -> list[Tensor]:
    """Gradients, each replaced by its sum over ranks, in one call."""
    if ranks.count > 1 and gradients:
        whole = ranks.sum(torch.cat([gradient.reshape(-1) for gradient in gradients]))
        parts = whole.split([gradient.numel() for gradient in gradients])
        torch._foreach_copy_(gradients, [part.view_as(gradient) for part, gradient in zip(parts, gradients, strict=True)])
    return gradients


# -- of tensors of which each rank may hold a part ----------------------------------------------------------------


def local(x: Tensor) -> Tensor:
    """This rank's part of a sharded tensor; any other tensor itself."""
    return x.to_local() if isinstance(x, DTensor) else x  # type: ignore[no-any-return]


def whole(x: Tensor) -> Tensor:
    """A sharded tensor put together, on every rank; any other tensor itself."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def all_finite(gradients: Sequence[Tensor], ranks: Ranks) -> bool:
    """Whether every number of every rank's gradients is finite."""
    finite = all(bool(torch.stack(torch._foreach_norm(parts, float("inf"))).isfinite().all()) for parts in _by_device(gradients))
    return not ranks.any(not finite)


def scale(gradients: Sequence[Tensor], factor: Tensor | float) -> None:
    """Multiply gradients in place, each on the device where it is."""
    for parts in _by_device(gradients):
        torch._foreach_mul_(parts, factor.to(parts[0].device) if isinstance(factor, Tensor) else factor)


def norm(gradients: Sequence[Tensor]) -> Tensor:
    """The Euclidean norm of all numbers of all ranks' parts, the same on every rank.

    Args:
        gradients: one or more, whole or sharded, over one mesh or several, on one device or several.
    """
    alike: dict[Any, list[Tensor]] = {}
    for x in gradients:
        spread = (x.device_mesh, x.placements) if isinstance(x, DTensor) else None
        alike.setdefault((local(x).device, spread), []).append(x)
    norms = [whole(torch.nn.utils.get_total_norm(group)) for group in alike.values()]
    return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack([x.to(norms[0].device) for x in norms]))


def clip(gradients: Sequence[Tensor], most: float) -> None:
    """Scale gradients so that their norm, over all ranks' parts, is at most so much: the field's rule,
    g <- g min(1, most / (norm + 1e-6)).
    """
    if gradients:
        scale(gradients, (most / (norm(gradients) + 1e-6)).clamp(max=1.0))


def _by_device(gradients: Sequence[Tensor]) -> list[list[Tensor]]:
    """This rank's parts that hold anything, those of one device together."""
    found: dict[torch.device, list[Tensor]] = {}
    for part in map(local, gradients):
        if part.numel():
            found.setdefault(part.device, []).append(part)
    return list(found.values())
