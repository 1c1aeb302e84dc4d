"""Muon for hidden matrices, AdamW for the rest."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from thrifty.errors import NoEffect, ThriftyError
from thrifty.recipes.card import Card
from thrifty.recipes.claim import Claim
from thrifty.recipes.hyperparameters import number
from thrifty.training.optimizers.newton_schulz import batches, orthogonalized
from thrifty.training.optimizers.optimizer import Optimizer, fusable, local, loss_of, optimizer_card
from thrifty.training.optimizers.owners import orthogonal

if TYPE_CHECKING:
    from thrifty.recipes.session import Session


@final
class Pair(torch.optim.Optimizer):
    """Two optimizers behind one: groups, schedules and state of both.

    Args:
        first, second: over disjoint parameters.
    """

    def __init__(self, first: torch.optim.Optimizer, second: torch.optim.Optimizer) -> None:
        self.parts = (first, second)
        super().__init__([*first.param_groups, *second.param_groups], {})
        self._share()

    def _share(self) -> None:
        """The groups are the parts' own, so that what a schedule writes into them is what the parts read."""
        self.param_groups = [group for part in self.parts for group in part.param_groups]
        for part in self.parts:
            self.state.update(part.state)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step of both."""
        loss = loss_of(closure)
        for part in self.parts:
            part.step()
            self.state.update(part.state)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back the state of both.

        Raises:
            ThriftyError: its groups are not these.
        """
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            hook(self, state_dict)
        groups, at = state_dict["param_groups"], 0
        if len(groups) != len(self.param_groups):
            raise ThriftyError(f"the state has {len(groups)} parameter groups, but the optimizer has {len(self.param_groups)}")
        for part in self.parts:
            mine = groups[at : at + len(part.param_groups)]
            numbers = {n for group in mine for n in group["params"]}
            part.load_state_dict({"state": {n: s for n, s in state_dict["state"].items() if n in numbers},
                                  "param_groups": mine})
            at += len(mine)
        self.state.clear()
        self._share()


@final
class Orthogonal(torch.optim.Optimizer):
    """Muon's part of the weights: momentum made orthogonal, all matrices of a group together.

    Args:
        params: groups of matrices, whole, or sharded by rows over the last dimension of one mesh.
        lr: learning rate.
        weight_decay: a step shrinks weights by lr * weight_decay.
        momentum: mu.

    Source: "Muon is Scalable for LLM Training", Liu et al. 2025, arXiv:2502.16982, algorithm 1.
    """

    def __init__(self, params: Any, lr: float, weight_decay: float, momentum: float) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step for all matrices that have a gradient."""
        loss = loss_of(closure)
        for group in self.param_groups:
            if parameters := [p for p in group["params"] if p.grad is not None]:
                self._step(group, parameters)
        return loss

    def _step(self, group: dict[str, Any], parameters: list[Any]) -> None:
        """Whole matrices a batch at a time, so that few updates are held at once; the ranks exchange theirs in one go."""
        if isinstance(parameters[0], DTensor):
            mesh, shapes = parameters[0].device_mesh, [(p.shape[0], p.shape[1]) for p in parameters]
            self._move(group, parameters, lambda parts: orthogonal(parts, shapes, mesh.get_group(mesh.ndim - 1)))
        else:
            for chosen in batches(parameters):
                self._move(group, [parameters[i] for i in chosen], orthogonalized)

    def _move(self, group: dict[str, Any], parameters: list[Any], made: Callable[[list[Tensor]], list[Tensor]]) -> None:
        momentum, lr = group["momentum"], float(group["lr"])
        for p in parameters:
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        gradients = [local(p.grad) for p in parameters]
        kept = [local(self.state[p]["momentum_buffer"]) for p in parameters]
        torch._foreach_lerp_(kept, gradients, 1 - momentum)
        updates = made(list(torch._foreach_lerp(gradients, kept, momentum)))
        weights = [local(p) for p in parameters]
        torch._foreach_mul_(weights, 1 - lr * group["weight_decay"])
        for p, weight, update in zip(parameters, weights, updates, strict=True):
            weight.add_(update, alpha=-lr * 0.2 * math.sqrt(max(p.shape)))


@final
@dataclass(frozen=True)
class Muon(Optimizer):
    """Each hidden matrix moves by its orthogonalized momentum; everything else uses AdamW.

        B <- mu B + (1 - mu) g;  O = NewtonSchulz5(g + mu (B - g))  (about U V^T of the singular value decomposition)
        W <- (1 - lr wd) W - lr 0.2 sqrt(max(rows, columns)) O

    With Nesterov's momentum and the scale that lets AdamW's learning rate and decay be reused. Hidden matrices are weights
    of two dimensions that are no embedding's and not the last linear layer's (nor tied to either). Those of one shape are
    iterated over together, in bfloat16 on GPUs and in float32 on CPUs. Where matrices are sharded, one rank makes each of
    them orthogonal. Biases and the scales of norms are not decayed.

    Args:
        lr: learning rate after warm-up, of both parts.
        weight_decay: a step shrinks weights by lr * weight_decay.
        momentum: mu.
        beta1, beta2: as for AdamW.

    >>> Muon(lr=0.002)
    Muon(lr=0.002, weight_decay=0.1, momentum=0.95, beta1=0.9, beta2=0.999)
    """

    lr: float = number(1e-3, 0, open_low=True, log=True)
    weight_decay: float = number(0.1, 0)
    momentum: float = number(0.95, 0, 1, open_high=True, near_one=True)
    beta1: float = number(0.9, 0, 1, open_high=True, near_one=True)
    beta2: float = number(0.999, 0, 1, open_high=True, near_one=True)

    name: ClassVar[str] = "muon"
    version: ClassVar[int] = 2
    tuned: ClassVar[tuple[str, ...]] = ("lr", "weight_decay")
    card: ClassVar[Card] = optimizer_card(
        trade_off="five rounds of three matrix multiplications for each hidden matrix in every step; convolutions, embeddings "
                  "and the head stay with AdamW",
        paper='"Muon: An optimizer for hidden layers in neural networks", Jordan et al. 2024; "Muon is Scalable for LLM '
              'Training", Liu et al. 2025, arXiv:2502.16982',
        refuses=frozenset({"split"}),  # a matrix goes to its owner from the rows of one mesh
    )

    def parameter_groups(self, session: Session, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        hidden = set(map(id, hidden_matrices(session.model)))
        split = [
            {**group, "params": [p for p in group["params"] if (id(p) in hidden) == orthogonal], "muon": orthogonal}
            for group in groups
            for orthogonal in (True, False)
        ]
        return super().parameter_groups(session, [group for group in split if group["params"]])

    def make(self, session: Session, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        first = [group for group in groups if group.get("muon")]
        rest = [group for group in groups if not group.get("muon")]
        if not first:
            raise NoEffect("muon found no hidden matrix to train (a two-dimensional weight that is neither an embedding "
                           "nor the last linear layer): use adamw")
        muon = Orthogonal(first, self.lr, self.weight_decay, self.momentum)
        if not rest:
            return muon
        adamw = torch.optim.AdamW(rest, lr=self.lr, betas=(self.beta1, self.beta2), weight_decay=self.weight_decay,
                                  fused=fusable(rest))
        return Pair(muon, adamw)

    def claims(self, session: Session) -> tuple[Claim, ...]:
        count = {orthogonal: sum(p.numel() for group in session.optimizer.param_groups
                                 if bool(group.get("muon")) == orthogonal for p in group["params"])
                 for orthogonal in (True, False)}
        share = count[True] / (count[True] + count[False])
        return (Claim("share of parameters with orthogonal updates", 0.0, share, minimum=share),)


def hidden_matrices(model: nn.Module) -> list[Tensor]:
    """Trained weights of two dimensions, without embeddings and the last linear layer, and without what is tied to them.

    >>> model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 9))
    >>> [tuple(p.shape) for p in hidden_matrices(model)]
    [(5, 4)]
    """
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    outer = [m.weight for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)]
    outer += [module.weight for module in linear[-1:]]
    return [p for p in model.parameters() if p.ndim == 2 and p.requires_grad and all(p is not o for o in outer)]
