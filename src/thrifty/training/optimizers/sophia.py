"""Sophia: steps divided by a running estimate of the curvature, and clipped."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from thrifty.errors import ThriftyError
from thrifty.kernels.sophia_step import Constants, Step, step_for
from thrifty.recipes.card import Card
from thrifty.recipes.claim import Claim
from thrifty.recipes.hyperparameters import choice, number
from thrifty.training.optimizers.curvature import hutchinson, sampled_loss
from thrifty.training.optimizers.optimizer import Optimizer, WrongOptimizer, local, loss_of, optimizer_card

if TYPE_CHECKING:
    from thrifty.recipes.session import Session
    from thrifty.workloads.workload import Batch


START, FACTOR = 0.2, 1.25
"""gamma's default, from which "auto" begins, and what it multiplies with."""
LEAST, MOST = 0.3, 0.55
"""Shares of updates within the bound between which "auto" leaves gamma as it is."""

# -- the optimizer ----------------------------------------------------------------------------------------------


@final
class SophiaOptimizer(torch.optim.Optimizer):
    """The update of Sophia, for your own loop; `Sophia` drives it in Thrifty's.

        m <- b1 m + (1 - b1) g
        p <- (1 - lr wd) p - lr clip(m / max(gamma h / (1 - b2^k), eps), 1)

    and, every few steps, from `update_curvature`: h <- b2 h + (1 - b2) h_hat, k times so far. Dividing by 1 - b2^k
    corrects h for its start at 0; the published form does not, and m is not corrected in either. Both are float32
    whatever the weights are. k stands in the groups, so that `state_dict` carries it.

    Args:
        params: parameters or groups of them.
        lr: learning rate, above 0.
        betas: (b1, b2), each in [0, 1).
        gamma: scale of h, above 0.
        eps: least divisor, above 0.
        weight_decay: 0 or more.
        correct: h for its start at 0.
        stochastic_rounding: stochastic rounding of bfloat16 weights, so that updates below their last bit are not lost.

    Raises:
        ValueError: a value out of its range.

    >>> weight = torch.nn.Parameter(torch.ones(2))
    >>> optimizer = SophiaOptimizer([weight], lr=0.1)
    >>> (weight**2).sum().backward()
    >>> optimizer.update_curvature([torch.full((2,), 2.0)])
    >>> optimizer.step()
    >>> weight.tolist()  # 1 - 0.1 clip(0.1 * 2 / (0.2 * 0.05 * 2 / 0.05))
    [0.949999988079071, 0.949999988079071]

    Source: "Sophia: A Scalable Stochastic Second-order Optimizer for Language Model Pre-training", Liu et al. 2023,
        arXiv:2305.14342, algorithm 3.
    """

    def __init__(self, params: Any, lr: float = 6e-4, betas: tuple[float, float] = (0.9, 0.95), gamma: float = 0.2,
                 eps: float = 1e-12, weight_decay: float = 0.0, *, correct: bool = True,
                 stochastic_rounding: bool = False) -> None:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas must be in [0, 1) but are {betas}")
        for name, value in (("lr", lr), ("gamma", gamma), ("eps", eps)):
            if not value > 0:
                raise ValueError(f"{name} must be above 0 but is {value}")
        if not weight_decay >= 0:
            raise ValueError(f"weight_decay must be 0 or more but is {weight_decay}")
        super().__init__(params, {"lr": lr, "betas": betas, "gamma": gamma, "eps": eps, "weight_decay": weight_decay,
                                  "estimates": 0})
        self.register_load_state_dict_pre_hook(_refuse_others)
        self.correct, self.stochastic_rounding = correct, stochastic_rounding
        self._steps_taken, self._updates, self._within = 0, 0, torch.zeros((), dtype=torch.int64)
        self._chosen: dict[int, tuple[int, Step]] = {}

    @property
    def unclipped(self) -> float:
        """Share of all updates so far that were within the bound; 0.1 to 0.5 is as it should be."""
        return float(self._within) / max(1, self._updates)

    @property
    def counts(self) -> Tensor:
        """[updates within the bound, updates] so far, of this rank, int64."""
        return torch.stack([self._within, torch.tensor(self._updates, device=self._within.device)])

    @property
    def counters(self) -> dict[str, Any]:
        """What `state_dict` has no place for: the steps that random rounding is drawn by, and what `unclipped` counts."""
        return {"_steps_taken": self._steps_taken, "_updates": self._updates, "_within": self._within}

    @counters.setter
    def counters(self, counted: dict[str, Any]) -> None:
        vars(self).update(counted)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step for all parameters that have a gradient."""
        loss = loss_of(closure)
        self._steps_taken += 1
        for index, group in enumerate(self.param_groups):
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                self._step(index, group, parameters)
        return loss

    def _step(self, index: int, group: dict[str, Any], parameters: list[Tensor]) -> None:
        states = [self._state(p) for p in parameters]
        weights = [local(p) for p in parameters]
        if self._chosen.get(index, (0,))[0] != len(weights):
            self._chosen[index] = (len(weights), step_for(weights))
        constants = Constants(float(group["lr"]), group["betas"][0], self._gamma(group), group["eps"],
                              group["weight_decay"], self._steps_taken if self.stochastic_rounding else None)
        within = self._chosen[index][1](weights, [local(p.grad) for p in parameters],
                                        [local(s["m"]) for s in states], [local(s["h"]) for s in states], constants)
        self._within = self._within.to(within.device) + within
        self._updates += sum(p.numel() for p in weights)

    def _gamma(self, group: dict[str, Any]) -> float:
        """gamma / (1 - b2^k): with it, a step divides by gamma times the corrected h."""
        estimates, beta2 = group["estimates"], group["betas"][1]
        return float(group["gamma"] / (1 - beta2**estimates) if self.correct and estimates else group["gamma"])

    @torch.no_grad()
    def update_curvature(self, estimates: Sequence[Tensor] | None = None, *, count: float = 1.0) -> None:
        """h <- b2 h + (1 - b2) h_hat.

        Args:
            estimates: h_hat of every parameter, in order; where None, it is count * p.grad^2, the gradient being of the
                mean loss against sampled labels and unclipped (`curvature.sampled_loss`).
            count: the valid tokens under that mean, of all ranks together.
        """
        given = iter(estimates or ())
        for group in self.param_groups:
            h = [self._state(p)["h"] for p in group["params"]]
            rest = 1 - group["betas"][1]
            group["estimates"] += 1
            if estimates is not None:
                torch._foreach_lerp_(h, [next(given).float() for _ in h], rest)
                continue
            torch._foreach_mul_(h, 1 - rest)  # without a gradient a parameter had no part, and its curvature is 0
            parts = [(x, p.grad.float()) for x, p in zip(h, group["params"], strict=True) if p.grad is not None]
            if parts:
                curvature, gradients = map(list, zip(*parts, strict=True))
                torch._foreach_addcmul_(curvature, gradients, gradients, value=rest * count)

    def _state(self, p: Tensor) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self.state[p]
        if not state:
            state.update(m=torch.zeros_like(p, dtype=torch.float32), h=torch.zeros_like(p, dtype=torch.float32))
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back m and h; both stay float32, which torch would cast to the weights' precision. In a state that does
        not count its estimates, h is taken as it is."""
        super().load_state_dict(state_dict)
        for group in self.param_groups:
            group.setdefault("estimates", math.inf)
        saved = (p for group in state_dict["param_groups"] for p in group["params"])
        here = (p for group in self.param_groups for p in group["params"])
        for position, p in zip(saved, here, strict=True):
            if position in state_dict["state"]:
                kept = state_dict["state"][position]
                self.state[p] = {name: kept[name].detach().clone().to(p.device) for name in ("m", "h")}


def _refuse_others(_: torch.optim.Optimizer, state_dict: dict[str, Any]) -> None:
    kinds = {tuple(sorted(state)) for state in state_dict["state"].values()}
    if kinds - {("h", "m")}:
        raise WrongOptimizer(f"this is not Sophia's state: it holds {sorted(map(str, kinds))} but Sophia keeps m, h")


# -- the method -------------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class Sophia(Optimizer):
    """Sophia: the running mean of gradients, divided by a running estimate of the curvature, clipped to 1.

        m <- b1 m + (1 - b1) g;  every few steps h <- b2 h + (1 - b2) h_hat, k times so far
        p <- (1 - lr wd) p - lr clip(m / max(gamma h / (1 - b2^k), eps), 1)

    h_hat comes from a forward and a backward pass of its own on examples drawn apart from the step's. With "gnb" it is
    B g^2, g being the gradient of the mean cross entropy over B valid tokens against labels that the model draws; with
    "hutchinson" u * (H u), u ~ N(0, I), of the very loss that is minimized, through the mathematical kernel of
    attention, since the fast ones have no second derivative. The estimate's gradient is never clipped, each rank draws
    noise of its own, and h is float32. Biases and the scales of norms are not decayed.

    The paper divides by gamma h without the factor 1 - b2^k, so that in the first hundred estimates nearly all is
    clipped; its values are ``Sophia(gamma=0.05, beta1=0.96, beta2=0.99, correct=False)``. The defaults here are what
    was best on a language model of 13 million parameters.

    Args:
        estimator: "gnb" (Gauss-Newton-Bartlett) or "hutchinson".
        lr: learning rate after warm-up.
        gamma: scale of the curvature; the paper has 0.05 for "gnb" and 0.01 for "hutchinson". "auto" begins at 0.2 and sets it
            by the share of updates within the bound: at every estimate of the whole training it is multiplied by 1.25
            where less than 0.3 of the updates since the last one were, and divided where more than 0.55 were.
        weight_decay: a step shrinks weights by lr * weight_decay.
        beta1, beta2: decay of the running means of gradients and of the curvature.
        eps: least divisor.
        every: steps from one estimate to the next.
        estimator_batch: share of a batch that an estimate is made on.
        correct: divide h by 1 - beta2^k after k estimates, for its start at 0.

    >>> Sophia(lr=0.001)
    Sophia(estimator='gnb', lr=0.001, gamma=0.2, weight_decay=0.1, beta1=0.9, beta2=0.95, eps=1e-12, every=10, \
estimator_batch=0.5, correct=True)
    """

    estimator: str = choice("gnb", "gnb", "hutchinson")
    lr: float = number(6e-4, 0, open_low=True, log=True)
    gamma: float | str = number(START, 0, open_low=True, log=True, words=("auto",))
    weight_decay: float = number(0.1, 0)
    beta1: float = number(0.9, 0, 1, open_high=True, near_one=True)
    beta2: float = number(0.95, 0, 1, open_high=True, near_one=True)
    eps: float = number(1e-12, 0, open_low=True, log=True)
    every: int = number(10, 1)
    estimator_batch: float = number(0.5, 0, 1, open_low=True)
    correct: bool = True

    name: ClassVar[str] = "sophia"
    tuned: ClassVar[tuple[str, ...]] = ("lr", "gamma")
    version: ClassVar[int] = 2
    card: ClassVar[Card] = optimizer_card(
        trade_off="an extra forward and backward pass every few steps; two states for each parameter, as AdamW has; "
                  "tuned AdamW was as good in several replications",
        paper='"Sophia: A Scalable Stochastic Second-order Optimizer for Language Model Pre-training", Liu et al. 2023, '
              "arXiv:2305.14342, algorithms 1 to 3",
    )

    @property
    def refuses(self) -> frozenset[str]:
        """Compiled steps have no second derivative, and sharded parameters are not whole."""
        return self.card.refuses | ({"compiled-steps", "sharded"} if self.estimator == "hutchinson" else set())

    @property
    def needs(self) -> frozenset[str]:
        """Labels are drawn from logits by "gnb" alone."""
        return self.card.needs | ({"logits"} if self.estimator == "gnb" else set())

    def make(self, session: Session, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        noise = torch.Generator(session.device).manual_seed(_noise_seed(torch.initial_seed(), session.ranks.index))
        session.memory(self).update(noise=noise, estimates=0)
        gamma = START if isinstance(self.gamma, str) else self.gamma
        made = SophiaOptimizer(groups, lr=self.lr, betas=(self.beta1, self.beta2), gamma=gamma, eps=self.eps,
                               weight_decay=self.weight_decay, correct=self.correct)
        session.memory(self)["counted"] = made.counts
        return made

    def step_kind(self, session: Session) -> str:
        return "estimate" if session.step_number % self.every == 0 else ""

    def before(self, session: Session, batch: Batch) -> None:
        if not self.step_kind(session):
            return
        assert isinstance(session.optimizer, SophiaOptimizer)
        if self.gamma == "auto":
            self._set_gamma(session, session.optimizer)
        session.optimizer.zero_grad(set_to_none=True)
        estimate = {"gnb": bartlett, "hutchinson": hessian}[self.estimator]
        estimate(session, session.fresh(batch, self.estimator_batch), session.optimizer, session.memory(self)["noise"])
        session.optimizer.zero_grad(set_to_none=True)
        session.memory(self)["estimates"] += 1

    def _set_gamma(self, session: Session, optimizer: SophiaOptimizer) -> None:
        """By the share since the last estimate, of all ranks together; it stands in the optimizer's groups."""
        memory, counts = session.memory(self), optimizer.counts
        since = counts.to(session.device) - memory["counted"].to(session.device)
        within, updates = session.ranks.sum(since).tolist()
        memory["counted"] = counts
        for group in optimizer.param_groups:
            group["gamma"] = adjusted(group["gamma"], within, updates)

    def state_dict(self, session: Session) -> dict[str, Any]:
        assert isinstance(session.optimizer, SophiaOptimizer)
        return {"noise": session.memory(self)["noise"].get_state(), "rank": session.ranks.index,
                "estimates": session.memory(self)["estimates"],
                "counters": session.optimizer.counters, "counted": session.memory(self)["counted"]}

    def load_state_dict(self, session: Session, state: dict[str, Any]) -> None:
        if state.get("rank", 0) == session.ranks.index:
            session.memory(self)["noise"].set_state(state["noise"])
        else:  # of fewer ranks: noise that nobody has drawn
            seed = _noise_seed(torch.initial_seed() + session.step_number, session.ranks.index)
            session.memory(self)["noise"].manual_seed(seed)
        session.memory(self)["estimates"] = state["estimates"]
        assert isinstance(session.optimizer, SophiaOptimizer)
        session.optimizer.counters = state["counters"]
        session.memory(self)["counted"] = state["counted"]

    def claims(self, session: Session) -> tuple[Claim, ...]:
        assert isinstance(session.optimizer, SophiaOptimizer)
        made = Claim("estimates of the curvature", 0.0, float(session.memory(self)["estimates"]), minimum=1.0)
        share = session.optimizer.unclipped  # where all were clipped (a first step, say) there is nothing to claim
        within = (Claim("share of updates within the bound", 0.0, share, minimum=share),) if share else ()
        gamma = session.optimizer.param_groups[0]["gamma"]
        found = (Claim("gamma, by the share within the bound", START, gamma, minimum=gamma),) if self.gamma == "auto" else ()
        return (made, *within, *found)


def adjusted(gamma: float, within: int, updates: int) -> float:
    """gamma for the steps up to the next estimate: the larger, the more updates are within the bound.

    Args:
        gamma: of the steps since the last estimate.
        within: updates within the bound in these steps.
        updates: all of them; where there was none, gamma stays.

    >>> adjusted(0.2, 1, 10), adjusted(0.2, 4, 10), adjusted(0.2, 6, 10), adjusted(0.2, 0, 0)
    (0.25, 0.2, 0.16, 0.2)
    """
    if not updates:
        return gamma
    share = within / updates
    return gamma * FACTOR if share < LEAST else gamma / FACTOR if share > MOST else gamma


def bartlett(session: Session, batch: Batch, optimizer: SophiaOptimizer, noise: torch.Generator) -> None:
    """Update h by Gauss-Newton-Bartlett's estimate on a batch; leaves gradients behind."""
    logits, valid = session.loss.logits(session.outputs(batch), batch)
    total, count = sampled_loss(logits, valid, noise)
    whole = session.ranks.sum(count.float())
    if float(whole) == 0:
        return  # nothing valid to learn from: h stays
    if not session.backward(total * (1 / whole)):
        return  # an overflow: h stays
    optimizer.update_curvature(count=float(whole))


def hessian(session: Session, batch: Batch, optimizer: SophiaOptimizer, noise: torch.Generator) -> None:
    """Update h by Hutchinson's estimate on a batch, averaged over ranks by their valid tokens."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if any(isinstance(p, DTensor) for p in parameters):
        raise ThriftyError("Hutchinson's estimator needs whole parameters but these are sharded: use sophia(gnb)")
    with sdpa_kernel(SDPBackend.MATH):
        found = hutchinson(session.mean_loss(batch), parameters, noise)
    if session.ranks.count > 1:
        count = session.weight.float()
        share = count / session.ranks.sum(count)
        found = [session.ranks.sum(x * share) for x in found]
    optimizer.update_curvature(found)


def _noise_seed(seed: int, rank: int) -> int:
    """Far apart for each rank: ranks that drew alike would agree on their noise."""
    return (seed * 1_000_003 + 7_919 * rank + 17) % 2**63
