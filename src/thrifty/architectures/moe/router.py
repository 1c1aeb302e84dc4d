"""Which experts a token goes to, and with what weight."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from thrifty.architectures.moe import penalties
from thrifty.errors import ThriftyError
from thrifty.kernels import routing
from thrifty.kernels.exporting import exporting
from thrifty.kernels.routing import naive

Score = Literal["softmax", "sigmoid"]
Weighting = Literal["shares", "scores", "ones"]
"""Of the outputs of a token's experts: their shares of its scores, the scores, or 1."""


@final
@dataclass(frozen=True)
class Routing:
    """Args:
        chosen: [tokens, top_k] int64, experts.
        weights: [tokens, top_k], of their outputs.
        order: [tokens * top_k] int64, the choices sorted by expert; of one expert's the earlier first.
        ends: [experts] int64, where each expert's choices end in that order.
    """

    chosen: Tensor
    weights: Tensor
    order: Tensor
    ends: Tensor

    @property
    def back(self) -> Tensor:
        """[tokens * top_k] int64, where each choice stands in the order."""
        return torch.empty_like(self.order).scatter_(0, self.order, torch.arange(len(self.order), device=self.order.device))


@final
class Router(nn.Module):
    """Chooses ``top_k`` experts for each token.

        s = softmax(W x) or sigmoid(W x)        chosen = the top_k of s + b
        weights = scale s_chosen / sum(s_chosen) ("shares"), scale s_chosen ("scores"), or 1 ("ones")

    Weights of 1 carry the gradient that the scores would have (straight through), so that the router learns all the same.

    b balances the load and takes part in the choice alone: before each pass of a training, it moves by ``rate`` towards the
    experts that the pass before gave fewer tokens than the mean, so that no loss is added. In eval it stands still, and nothing
    is counted. Scores are float32, whatever x is.

    Beside or instead of b, the loss may say it: ``auxiliary`` times E sum_e f_e P_e plus ``z`` times the mean squared
    log-partition (`thrifty.architectures.moe.penalties`) are what a pass in training leaves in ``penalty``. `thrifty.fit` and
    ``train(...)`` add those of all routers to the mean loss; a loop of your own adds `penalty` of the model.

    Args:
        width: of a token.
        experts: that there are.
        top_k: that a token goes to.
        score: of an expert.
        weighting: of the outputs of a token's experts.
        scale: of the weights.
        rate: by which b moves; 0 for no balancing.
        auxiliary, z: weights of the two losses; 0 for none.

    Raises:
        ThriftyError: ``top_k`` is below 1 or above ``experts``.

    >>> routing = Router(8, experts=4, top_k=2)(torch.randn(5, 8))
    >>> tuple(routing.chosen.shape), int(routing.ends[-1])
    ((5, 2), 10)

    Source: "Mixtral of Experts", Jiang et al. 2024, arXiv:2401.04088; straight through: "Estimating or Propagating Gradients
    Through Stochastic Neurons", Bengio et al. 2013, arXiv:1308.3432; b: "Auxiliary-Loss-Free Load Balancing Strategy for
    Mixture-of-Experts", Wang et al. 2024, arXiv:2408.15664, algorithm 1.
    """

    bias: Tensor
    load: Tensor
    seen: Tensor

    def __init__(self, width: int, experts: int, top_k: int, *, score: Score = "softmax", weighting: Weighting = "shares",
                 scale: float = 1.0, rate: float = 1e-3, auxiliary: float = 0.0, z: float = 0.0) -> None:
        super().__init__()
        if not 1 <= top_k <= experts:
            raise ThriftyError(f"top_k={top_k} of {experts} experts: top_k must be 1 to {experts}")
        self.experts, self.top_k, self.score, self.weighting, self.scale, self.rate = (
            experts, top_k, score, weighting, scale, rate)
        self.auxiliary, self.z = auxiliary, z
        self.penalty: Tensor | None = None
        self.weight = nn.Parameter(torch.empty(experts, width))
        nn.init.normal_(self.weight, std=0.02)
        self.register_buffer("bias", torch.zeros(experts))
        self.register_buffer("load", torch.zeros(experts))
        self.register_buffer("seen", torch.zeros(experts, dtype=torch.float64))

    def forward(self, x: Tensor) -> Routing:
        """Choose.

        Args:
            x: [tokens, width].
        """
        with torch.autocast(x.device.type, enabled=False):
            logits = routing.logits(x, self.weight)
            if self.training:
                self._balance()
            how = self.bias, self.top_k, self.score, self.weighting, self.scale
            if routing.fits(x, self.experts) and not exporting():
                chosen, weights, order, counts, ends = routing.route(logits, *how)
            else:
                chosen, weights, order, counts = naive.route(logits, *how)
                ends = counts.cumsum(0)
            if self.training:
                self.load.copy_(counts)
                self.seen.add_(counts)
                if self.auxiliary or self.z:
                    self.penalty = self._paid(logits, counts)
            return Routing(chosen, weights, order, ends)

    def _paid(self, logits: Tensor, counts: Tensor) -> Tensor:
        paid = logits.new_zeros(())
        if self.auxiliary:
            paid = paid + self.auxiliary * penalties.auxiliary(logits, counts, self.score)
        return paid + self.z * penalties.z(logits, self.score) if self.z else paid

    def __getstate__(self) -> dict[str, Any]:
        """Without the last pass's penalty: what hangs on a graph cannot be copied."""
        return {**self.__dict__, "penalty": None}

    @torch.no_grad()
    def _balance(self) -> None:
        """Move b by what the pass before saw; nothing before the first."""
        if self.rate:
            self.bias.add_((self.load.mean() - self.load).sign(), alpha=self.rate)

    @property
    def shares(self) -> list[float]:
        """Each expert's share of all choices during training; empty where it was not trained."""
        total = float(self.seen.sum())
        return (self.seen / total).tolist() if total else []

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1]}, experts={self.experts}, top_k={self.top_k}, score={self.score}"


def penalty(model: nn.Module) -> Tensor | None:
    """The sum of what the model's routers ask for after a pass in training, once: each gives it up; None where none asks.

    >>> router = Router(8, experts=4, top_k=2, auxiliary=0.01).train()
    >>> routing = router(torch.randn(5, 8))
    >>> bool(penalty(router) >= 0.009), penalty(router)
    (True, None)
    """
    asked = [router for router in model.modules() if isinstance(router, Router) and router.penalty is not None]
    if not asked:
        return None
    total = sum(router.penalty for router in asked if router.penalty is not None)
    for router in asked:
        router.penalty = None
    return total  # type: ignore[return-value]
