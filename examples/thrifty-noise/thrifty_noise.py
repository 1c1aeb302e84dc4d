"""Weights trained under noise as large as the rounding that comes after: a method for Thrifty, in a package of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from thrifty import Card, Claim, Session, TrainingMethod, number


@final
@dataclass(frozen=True)
class WeightNoise(TrainingMethod):
    """Each step sees its weights with noise in place of the rounding that `quantize` does after training.

        W' = W + s u,  u uniform in [-1/2, 1/2],  s = max |W| / (2^(bits - 1) - 1) for each row of W

    Rounding to a grid of step s is off by as much, and at other places whenever a weight moves. Gradients are taken at W'
    and applied to W, which leaves training without noise. Vectors (biases, norms) get none.

    Args:
        bits: the number of bits that the weights will be rounded to.

    >>> WeightNoise(bits=3)
    WeightNoise(bits=3)
    """

    bits: int = number(4, 2, 8)

    name: ClassVar[str] = "weight_noise"
    stage: ClassVar = "structure"  # the outermost: weights are themselves again before any other method touches them
    card: ClassVar[Card] = Card(
        family="qat",
        benefit="inference time",
        trade_off="a copy of the weights and a pass over them in each step; a loss that falls later",
        paper='"Differentiable Model Compression via Pseudo Quantization Noise", Défossez, Adi and Synnaeve 2021, '
              "arXiv:2104.09987, with the number of bits given",
        requires=frozenset({"module", "float-weights"}),
        refuses=frozenset({"adapters", "rounded-steps"}),
        holds=frozenset({"rounded-steps"}),
    )

    def before(self, session: Session, batch: Any) -> None:
        parameters = [p for p in session.model.parameters() if p.requires_grad]
        matrices = [p for p in parameters if p.ndim > 1]
        session.memory(self).update(
            kept=[(p, p.detach().clone()) for p in matrices],
            share=sum(p.numel() for p in matrices) / sum(p.numel() for p in parameters),
        )
        with torch.no_grad():
            for p in matrices:
                p.add_(noise(p, self.bits))

    def update(self, session: Session, proceed: Callable[[], None]) -> None:
        with torch.no_grad():
            for p, weights in session.memory(self).pop("kept"):
                p.copy_(weights)
        proceed()

    def state_dict(self, session: Session) -> dict[str, Any]:
        return {"share": session.memory(self)["share"]}

    def load_state_dict(self, session: Session, state: dict[str, Any]) -> None:
        session.memory(self).update(state)

    def claims(self, session: Session) -> tuple[Claim, ...]:
        return (Claim("share of parameters under noise", 0.0, session.memory(self).get("share", 0.0), minimum=0.1),)


def noise(weights: Tensor, bits: int) -> Tensor:
    """Noise as large as rounding: uniform over one step of a row's grid.

    Args:
        weights: [rows, ...]; a row is an output, of a layer or of an embedding.
        bits: of the grid, whose largest integer is 2^(bits - 1) - 1.

    Returns:
        [rows, ...], drawn from torch's generator.

    >>> bool((noise(torch.ones(2, 3), bits=2).abs() <= 0.5).all())
    True
    """
    step = weights.flatten(1).abs().amax(1) / (2 ** (bits - 1) - 1)
    return (torch.rand_like(weights) - 0.5) * step.view(-1, *[1] * (weights.ndim - 1))
