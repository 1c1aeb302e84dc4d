"""Mixture of experts out of a dense model: its feed-forward networks copied, or split, into experts."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from thrifty.architectures.moe import ExpertDown, ExpertUp, Meeting, Router
from thrifty.errors import NoEffect, ThriftyError
from thrifty.numerics.flat import tensors_of
from thrifty.numerics.graph import replace
from thrifty.numerics.plain import bake, told
from thrifty.recipes.card import Card
from thrifty.recipes.claim import Claim
from thrifty.recipes.context import Context
from thrifty.recipes.hyperparameters import HyperparameterError, choice, matches, number, pattern
from thrifty.recipes.transform import Plan, Transform
from thrifty.training.conversion.networks import Network, networks

CLOSE = 1e-4
"""Largest difference of an output from the dense model's, as a share of the largest output."""


@final
@dataclass(frozen=True)
class Moe(Transform):
    """Replace feed-forward networks with mixtures of experts that start out equal to them.

    - ``experts_from="copies"`` (sparse upcycling): every expert is a copy. A token's weights sum to 1, so that the outputs are
      the dense model's at the start; with ``drop``, a share of each copy's hidden units begins anew instead, which sets experts
      apart and costs that equality. A token passes through ``top_k`` networks as large as the dense one.
    - ``experts_from="parts"``: the hidden units are split among the experts, whose weights are 1: with all experts on, the
      outputs are the dense model's, and with fewer a token takes top_k / experts of the arithmetic.

    Routers are trained: a ``train`` must follow. Their load is balanced by a bias that no loss needs, by a loss, or by both
    (`Router`).

    Args:
        experts: in the place of each network.
        top_k: that a token goes to, at most ``experts``.
        experts_from: "copies" or "parts".
        drop: share of each copy's hidden units that begins anew.
        networks: which, by the name of the layer that leaves them.
        rate: rate of balancing; 0 for none.
        auxiliary: weight of the load-balancing loss of each router, E sum f P, in the training that follows; 0 for none.
        z: weight of the mean squared logsumexp of each router's logits in it; 0 for none.

    >>> net = nn.Sequential(nn.Linear(8, 64), nn.GELU(), nn.Linear(64, 8))
    >>> x = torch.randn(16, 8)
    >>> mixture = Moe(experts=4, top_k=2)(net, [x])
    >>> torch.allclose(mixture(x), net(x), atol=1e-5)
    True

    Source: "Sparse Upcycling", Komatsuzaki et al. 2022, arXiv:2212.05055; drop: "Drop-Upcycling", Nakamura et al. 2025,
    arXiv:2502.19261; parts: "LLaMA-MoE", Zhu et al. 2024, arXiv:2406.16554.
    """

    experts: int = number(8, 2)
    top_k: int = number(2, 1)
    experts_from: str = choice("copies", "copies", "parts")
    drop: float = number(0.0, 0, 1, open_high=True)
    networks: str = pattern(".*")
    rate: float = number(1e-3, 0)
    auxiliary: float = number(0.0, 0)
    z: float = number(0.0, 0)

    name: ClassVar[str] = "moe"
    card: ClassVar[Card] = Card(
        family="architectures",
        benefit="training time",
        trade_off="memory for experts that a token does not use; compiled engines compute all of them",
        paper='"Sparse Upcycling: Training Mixture-of-Experts from Dense Checkpoints", Komatsuzaki et al. 2022, '
              'arXiv:2212.05055; "Switch Transformers", Fedus et al. 2021, arXiv:2101.03961; "ST-MoE", Zoph et al. 2022, '
              'arXiv:2202.08906; "Auxiliary-Loss-Free Load Balancing Strategy for Mixture-of-Experts", Wang et al. 2024, '
              'arXiv:2408.15664',
        needs=frozenset({"training"}),
        requires=frozenset({"module", "float-weights"}),
        provides=frozenset({"mixture"}),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.top_k > self.experts:
            raise HyperparameterError(f"moe(experts={self.experts}, top_k={self.top_k}): a token goes to at most all "
                                      f"{self.experts} experts; lower top_k")
        if self.drop and self.experts_from == "parts":
            raise HyperparameterError(f"moe(drop={self.drop:g}, experts_from=parts): parts differ already, and dropping units "
                                      "of them would lose what they know; omit drop")

    def plan(self, model: nn.Module, context: Context) -> Plan:
        """Decide which networks become mixtures.

        Raises:
            NoEffect: there is none that can.
            ThriftyError: the model cannot be exported.
        """
        model = copy.deepcopy(model).eval()
        bake(model)
        left: dict[str, str] = {}
        with torch.no_grad():
            found = [network for network in networks(model, context.example) if matches(self.networks, network.down)]
            for network in list(found):
                if why := self._why_not(model, network, context.example):
                    left[network.down] = why
                    found.remove(network)
        if left:
            context.progress(f"left dense: {told(left)}")
        if not found:
            why = f" ({told(left)})" if left else ""
            raise NoEffect("moe found no feed-forward network to convert to a mixture: linear layers with only "
                           f"elementwise functions between them, whose last layer matches {self.networks!r}{why}")
        draw = torch.Generator().manual_seed(context.seed)
        routers = {network.down: 0.02 * torch.randn(self.experts, _linear(model, network.ups[0]).in_features, generator=draw)
                   for network in found}
        return Plan({"networks": [[list(network.ups), network.down] for network in found], "left": left, "seed": context.seed},
                    routers)

    def _why_not(self, model: nn.Module, network: Network, example: tuple[Tensor, ...]) -> str | None:
        """Why a network stays, or None: all of its experts on must give what it gives."""
        hidden = _linear(model, network.down).in_features
        if self.experts_from == "parts" and hidden % self.experts:
            return f"its {hidden} hidden units do not divide into {self.experts} experts"
        trial = copy.deepcopy(model)
        inputs = _linear(model, network.ups[0]).in_features
        self._mix(trial, network, torch.zeros(self.experts, inputs), self.experts, 0.0, 0)
        try:
            got = tensors_of(trial(*example))
        except (RuntimeError, ValueError, IndexError, TypeError, AttributeError, AssertionError) as error:
            return f"the model's code depends on its width: {str(error).splitlines()[0] if str(error) else error!r}"
        want = tensors_of(model(*example))
        near = all(torch.allclose(a.double(), b.double(), rtol=0, atol=CLOSE * max(float(b.abs().max()), 1e-30))
                   for a, b in zip(got, want, strict=True) if b.numel() and b.is_floating_point())
        return None if near else "with all experts on, the outputs are not the dense model's"

    def build(self, model: nn.Module, plan: Plan) -> nn.Module:
        bake(model)
        for i, (ups, down) in enumerate(plan.values["networks"]):
            self._mix(model, Network(tuple(ups), down), plan.tensors[down], self.top_k, self.drop, plan.values["seed"] + i)
        return model

    def _mix(self, model: nn.Module, network: Network, weight: Tensor, top_k: int, drop: float, seed: int) -> None:
        """Put experts in the place of one network's layers."""
        down, meeting = _linear(model, network.down), Meeting()
        inputs, like = weight.shape[1], down.weight
        router = Router(inputs, self.experts, top_k, weighting="shares" if self.experts_from == "copies" else "ones",
                        rate=self.rate, auxiliary=self.auxiliary, z=self.z).to(like.device)
        with torch.no_grad():
            router.weight.copy_(weight)
        fresh = _fresh(self.experts, down.in_features, drop, seed)
        for name in network.ups:
            up = _linear(model, name)
            weights, bias = self._cut(up.weight, 0), None if up.bias is None else self._cut(up.bias, 0)[:, None]
            _begin_anew(weights, fresh, 1, seed + 1)
            replace(model, name, ExpertUp(weights, bias, meeting, router if name == network.ups[0] else None))
        weights = self._cut(down.weight, 1)
        _begin_anew(weights, fresh, 2, seed + 2)
        replace(model, network.down, ExpertDown(weights, None if down.bias is None else down.bias.detach().clone(), meeting))
        for name in (*network.ups, network.down):
            model.get_submodule(name).train(model.training)

    def _cut(self, tensor: Tensor, dim: int) -> Tensor:
        """[experts, ...]: copies of it, or its parts along a dimension."""
        whole = tensor.detach()
        parts = whole.chunk(self.experts, dim) if self.experts_from == "parts" else [whole] * self.experts
        return torch.stack(list(parts))

    def list_layers(self, model: nn.Module, plan: Plan) -> list[dict[str, Any]]:
        """By mixture: experts, the share of choices of its busiest and idlest, and how many no token reached in training."""
        rows = []
        for ups, down in plan.values["networks"]:
            up = model.get_submodule(ups[0])
            shares = up.router.shares if isinstance(up, ExpertUp) and up.router is not None else []
            rows.append({"layer": down, "experts": self.experts, "top_k": self.top_k,
                         "busiest": max(shares, default=None), "idlest": min(shares, default=None),
                         "dead": sum(share == 0 for share in shares) if shares else None})
        return rows + [{"layer": name, "left": why} for name, why in plan.values["left"].items()]

    def claims(self, before: nn.Module, after: nn.Module) -> tuple[Claim, ...]:
        return (Claim("experts", _experts(before), _experts(after), minimum=2.0, probe=_experts),)


def _linear(model: nn.Module, name: str) -> nn.Linear:
    layer = model.get_submodule(name)
    if not isinstance(layer, nn.Linear):
        raise ThriftyError(f"the plan makes experts of {name}, a {type(layer).__name__}: it was made for another model")
    return layer


def _experts(model: nn.Module) -> float:
    return float(sum(len(module.weight) for module in model.modules() if isinstance(module, ExpertDown)))


def _fresh(experts: int, hidden: int, drop: float, seed: int) -> Tensor | None:
    """[experts, hidden] bool: the units that begin anew; of each expert the same number."""
    count = round(drop * hidden)
    if not count:
        return None
    draw = torch.Generator().manual_seed(seed)
    order = torch.rand(experts, hidden, generator=draw).argsort(1)
    return order < count


def _begin_anew(weights: Tensor, fresh: Tensor | None, dim: int, seed: int) -> None:
    """Draw the weights of units anew, from a normal distribution with each expert's mean and deviation."""
    if fresh is None:
        return
    draw = torch.Generator().manual_seed(seed)
    drawn = torch.randn(weights.shape, generator=draw).to(weights)
    mean, deviation = weights.mean((1, 2), keepdim=True), weights.std((1, 2), keepdim=True)
    units = (fresh[:, :, None] if dim == 1 else fresh[:, None, :]).to(weights.device)
    weights.copy_(torch.where(units, mean + deviation * drawn, weights))
