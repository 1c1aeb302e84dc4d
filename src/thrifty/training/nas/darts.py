"""Differentiable architecture search: a model's choices are decided by gradients while it trains."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

import torch
from torch import Tensor, nn

from thrifty.errors import ThriftyError
from thrifty.numerics.flat import tensors_of
from thrifty.recipes.card import Card
from thrifty.recipes.claim import Claim
from thrifty.recipes.hyperparameters import HyperparameterError, choice, number
from thrifty.recipes.training_method import Stage, TrainingMethod
from thrifty.recipes.transform import Plan
from thrifty.training.batches import mapped
from thrifty.training.nas import mixtures
from thrifty.training.nas.bilevel import With, second_order
from thrifty.training.nas.choice import SKIP, Choice, decisions, places, skips
from thrifty.training.nas.choices import Choices, open_decisions

if TYPE_CHECKING:
    from thrifty.recipes.session import Session
    from thrifty.workloads.workload import Batch

START = 1e-3
"""Deviation of the logits at the start."""
TAKEN_OVER = 0.5
"""Share of skips in a genotype from which a search is warned of."""


class SkipsTookOver(UserWarning):
    """A search that decided mostly for skips: the way in which differentiable search goes wrong."""


@final
@dataclass(frozen=True)
class Darts(TrainingMethod):
    """Decide a model's choices by gradients: the weights of their options are trained on one half of the data, the mixture of the
    options on the other.

        min_a L_held(w*(a), a)   with   w*(a) = argmin_w L_train(w, a)

    Each step trains the weights on the examples of the first half in its batch and the mixture on the others; an example is on
    one side for the whole search. At the end each choice becomes its strongest option, and the next phase trains what is left.
    A model without `Choice` modules is given some first, as ``choices()`` makes them.

    Plain DARTS (``darts(softmax)``) drifts to skips, which need no training to be of use. Against it: Dirichlet mixtures, which
    are the default, beta regularization, a decaying skip beside each choice, partial channels (`Choice`) with normalized edges,
    training of batch norms alone.

    Args:
        mixture: weights of a choice's options in a step: ``softmax`` of its logits; ``dirichlet``, drawn from elu(a) + 1;
            ``gumbel``, softmax with noise that cools; ``path``, one option alone, drawn likewise: memory and time of one path.
        order: 1 takes w as it is for w*(a); 2 differentiates through one step of w, exactly, at twice the memory and more.
        rate: learning rate of Adam on the logits.
        decay: weight decay of the logits.
        beta: strength of mean log sum exp(a) in their loss at the last step, growing from 0.
        anchor: strength of KL(Dirichlet(elu(a) + 1) || Dirichlet(1)) in it.
        edges: whether choices that are summed into one node share a softmax over them.
        auxiliary: weight of a skip beside each choice at the first step, falling to 0 at the last.
        weights: ``all`` are trained, or those of batch norms alone (``norms``): an option is then judged by what it is, not by
            how fast it learns.
        latency: weight in their loss of the expected seconds over the most there can be; ``choices(engine=...)`` before
            the training measures them.
        warmup: share of the steps before the logits move.
        most_skips: share of the decisions that may become skips; beyond it those turn to their second best that lose least.

    >>> Darts("softmax", order=2)
    Darts(mixture='softmax', order=2, ...)
    """

    mixture: str = choice("dirichlet", "dirichlet", "softmax", "gumbel", "path")
    order: int = choice(1, 1, 2)
    rate: float = number(0.01, 0, open_low=True, log=True)
    decay: float = number(1e-3, 0)
    beta: float = number(0.0, 0)
    anchor: float = number(0.0, 0)
    edges: bool = False
    auxiliary: float = number(0.0, 0)
    weights: str = choice("all", "all", "norms")
    latency: float = number(0.0, 0)
    warmup: float = number(0.0, 0, 1, open_high=True)
    most_skips: float = number(1.0, 0, 1)

    name: ClassVar[str] = "darts"
    stage: ClassVar[Stage] = "structure"
    card: ClassVar[Card] = Card(
        family="gradient-nas",
        benefit="inference time",
        trade_off="the search: every option of every choice is trained, and the result is trained again",
        paper='"DARTS: Differentiable Architecture Search", Liu, Simonyan and Yang 2019, arXiv:1806.09055; "DrNAS", Chen et al. '
              '2021, arXiv:2006.10355; "PC-DARTS", Xu et al. 2019, arXiv:1907.05737; "beta-DARTS", Ye et al. 2022, '
              'arXiv:2203.01665; "DARTS-", Chu et al. 2021, arXiv:2009.01027; "Searching for a robust neural architecture in '
              'four GPU hours", Dong and Yang 2019, arXiv:1910.04465',
        needs=frozenset({"labels", "training"}),
        requires=frozenset({"module", "float-weights"}),
        refuses=frozenset({"adapters"}),
        holds=frozenset({"undecided"}),
    )

    def _check(self) -> None:
        """Refuse hyperparameters that do not go together."""
        if self.order == 2 and self.weights == "norms":
            raise HyperparameterError("darts(order=2, weights=norms): a second-order step goes through all weights; keep one of "
                                      "the two")
        if self.anchor and self.mixture != "dirichlet":
            raise HyperparameterError(f"darts({self.mixture}, anchor={self.anchor:g}): the anchor is for Dirichlet "
                                      "mixtures; omit it, or use beta")

    # -- before the first step ------------------------------------------------------------------------------------

    def prepare(self, session: Session) -> None:
        self._check()
        if not places(session.model):
            opening, plan = Choices(), Choices().opened(session.model, seed=torch.initial_seed() % 2**31)
            session.model = opening.build(session.model, plan)
            session.plans.append((opening, plan))
        found, choices = decisions(session.model), places(session.model)
        if self.latency and not all(choice.seconds for choice in choices.values()):
            raise ThriftyError("darts(latency=...) needs measured times, but this model's choices have none: put "
                               "choices(engine=...) before the training")
        nodes = sorted({choice.node for choice in choices.values() if choice.node})
        if self.edges and not nodes:
            raise ThriftyError("darts(edges=True) normalizes over the choices that are summed into one node, but none names its "
                               "node: Choice(..., node=...)")
        logits = {one.name: self._fresh(len(one.options), session.device) for one in found}
        edges = {node: self._fresh(sum(choice.node == node for choice in choices.values()), session.device)
                 for node in (nodes if self.edges else ())}
        optimizer = torch.optim.Adam([*logits.values(), *edges.values()], lr=self.rate, betas=(0.5, 0.999),
                                     weight_decay=self.decay)
        frozen = []
        if self.weights == "norms":
            inside = {id(p) for module in session.model.modules() if isinstance(module, NORMS) for p in module.parameters()}
            frozen = [p for p in session.model.parameters() if id(p) not in inside and p.requires_grad]
            for p in frozen:
                p.requires_grad_(False)
            if not inside:
                raise ThriftyError("darts(weights=norms) trains only batch norms, but this model has none: use weights=all")
        session.memory(self).update(decisions=found, logits=logits, edges=edges, optimizer=optimizer, frozen=frozen, held=None,
                                    choices=len(choices))

    def _fresh(self, count: int, device: str) -> Tensor:
        return (START * torch.randn(count)).to(device).requires_grad_()

    # -- a step ---------------------------------------------------------------------------------------------------

    def part(self, session: Session, batch: Batch) -> Batch:
        """The examples of the half that weights are trained on; the others are kept for the mixture."""
        first = sides(batch[0])
        held, own = first.logical_not().nonzero()[:, 0], first.nonzero()[:, 0]
        if not len(held) or not len(own):  # a batch of very few
            held = own = torch.arange(len(first), device=first.device)
        session.memory(self)["held"] = mapped(batch, lambda x: x[held])
        return mapped(batch, lambda x: x[own])  # type: ignore[no-any-return]

    def before(self, session: Session, batch: Batch) -> None:
        """A step of the mixture, and the mixture of the weights' step."""
        memory, progress = session.memory(self), session.step_number / session.steps
        if progress >= self.warmup:
            self._decide(session, batch, memory, progress)
        self._mix(session, memory, progress, attached=False)
        for place in places(session.model).values():
            place.auxiliary = self.auxiliary * (1 - progress)

    def _decide(self, session: Session, batch: Batch, memory: dict[str, Any], progress: float) -> None:
        mixed = self._mix(session, memory, progress, attached=True)
        variables = [*memory["logits"].values(), *memory["edges"].values()]
        extra = self._extra(session, memory, mixed, progress)
        if self.order == 2:
            gradients = self._second(session, batch, memory["held"], variables)
            if extra.requires_grad:
                more = torch.autograd.grad(extra, variables, allow_unused=True)
                gradients = [a if b is None else a + b for a, b in zip(gradients, more, strict=True)]
        else:
            found = torch.autograd.grad(session.mean_loss(memory["held"]) + extra, variables, allow_unused=True)
            gradients = [torch.zeros_like(a) if g is None else g for a, g in zip(variables, found, strict=True)]
        for variable, gradient in zip(variables, gradients, strict=True):
            variable.grad = session.ranks.sum(gradient) / session.ranks.count
        memory["optimizer"].step()

    def _second(self, session: Session, batch: Batch, held: Batch, variables: Sequence[Tensor]) -> list[Tensor]:
        model = session.model

        def mean(on: Batch) -> Callable[[Mapping[str, Tensor]], Tensor]:
            def loss(weights: Mapping[str, Tensor]) -> Tensor:
                total, weight = session.loss(session.call(With(model, weights), on), on)
                return total / weight

            return loss

        own = {name: p for name, p in model.named_parameters() if p.requires_grad}
        rate = float(session.optimizer.param_groups[0]["lr"])
        return second_order(mean(batch), mean(held), own, variables, rate)

    def _mix(self, session: Session, memory: dict[str, Any], progress: float, attached: bool) -> dict[str, Tensor]:
        """Draw every decision's weights and hand them to its choices."""
        choices, seen = places(session.model), dict.fromkeys(memory["edges"], 0)
        mixed: dict[str, Tensor] = {}
        for one in memory["decisions"]:
            weights = mixtures.drawn(self.mixture, memory["logits"][one.name], progress)
            mixed[one.name] = weights
            for name in one.places:
                choice = choices[name]
                scaled = weights
                if choice.node in memory["edges"]:
                    edges = memory["edges"][choice.node]
                    scaled = weights * edges.softmax(0)[seen[choice.node]] * len(edges)
                    seen[choice.node] += 1
                choice.mixture = scaled if attached else scaled.detach()
                choice.chosen = int(weights.argmax()) if self.mixture == "path" else None
        return mixed

    def _extra(self, session: Session, memory: dict[str, Any], mixed: Mapping[str, Tensor], progress: float) -> Tensor:
        """What is added to the loss of the mixture."""
        logits = list(memory["logits"].values())
        found = torch.zeros((), device=logits[0].device)
        if self.beta:
            found = found + self.beta * progress * torch.stack([mixtures.spread(a) for a in logits]).mean()
        if self.anchor:
            found = found + self.anchor * torch.stack([mixtures.anchored(a) for a in logits]).mean()
        if self.latency:
            found = found + self.latency * expected_latency(session.model, memory["decisions"], {
                name: mixtures.mean(self.mixture, a) for name, a in memory["logits"].items()})
        return found

    def evaluate(self, session: Session, model: nn.Module) -> nn.Module:
        """The model with every option in its mean weight."""
        memory, choices = session.memory(self), places(model)
        for one in memory["decisions"]:
            for name in one.places:
                choices[name].mixture = mixtures.mean(self.mixture, memory["logits"][one.name]).detach()
                choices[name].chosen = None
        return model

    # -- the end --------------------------------------------------------------------------------------------------

    def finish(self, session: Session, model: nn.Module) -> nn.Module:
        memory = session.memory(self)
        genotype = self.genotype(session)
        if session.steps > 1 and len(genotype) > 1 and skips(genotype) > TAKEN_OVER:  # a rehearsal's one step decides nothing
            warnings.warn(SkipsTookOver(f"darts chose skips in {100 * skips(genotype):.0f}% of its decisions "
                                        f"({', '.join(f'{k}: {v}' for k, v in genotype.items())}): skips help before anything is "
                                        "trained, and take over; try darts(dirichlet), beta=, auxiliary=, or most_skips="),
                          stacklevel=2)
        for p in memory["frozen"]:
            p.requires_grad_(True)
        stand = {one.name: list(one.places) for one in memory["decisions"]}
        opening, plan = Choices(), Plan({"decided": genotype, "places": stand})
        session.plans.append((opening, plan))
        return opening.build(model, plan)

    def genotype(self, session: Session) -> dict[str, str]:
        """{decision: its strongest option}, with no more skips than there may be."""
        memory = session.memory(self)
        weights = {one.name: mixtures.mean(self.mixture, memory["logits"][one.name]).detach() for one in memory["decisions"]}
        options = {one.name: one.options for one in memory["decisions"]}
        found = {name: options[name][int(weight.argmax())] for name, weight in weights.items()}
        most = math.floor(self.most_skips * len(found) + 1e-9)
        skipping = [name for name, option in found.items() if option == SKIP]

        def lost(name: str) -> float:
            first, second = weights[name].topk(2).values.tolist()
            return first - second

        for name in sorted(skipping, key=lost)[: max(0, len(skipping) - most)]:
            found[name] = options[name][int(weights[name].topk(2).indices[1])]
        return found

    def claims(self, session: Session) -> tuple[Claim, ...]:
        count = float(session.memory(self)["choices"])
        return (Claim("choices that are open", count, 0.0, minimum=count, probe=open_decisions),)

    # -- resumption -----------------------------------------------------------------------------------------------

    def state_dict(self, session: Session) -> dict[str, Any]:
        memory = session.memory(self)
        return {"logits": {name: a.detach().clone() for name, a in memory["logits"].items()},
                "edges": {name: a.detach().clone() for name, a in memory["edges"].items()},
                "optimizer": memory["optimizer"].state_dict()}

    def load_state_dict(self, session: Session, state: dict[str, Any]) -> None:
        memory = session.memory(self)
        with torch.no_grad():
            for kind in ("logits", "edges"):
                for name, a in memory[kind].items():
                    a.copy_(state[kind][name])
        memory["optimizer"].load_state_dict(state["optimizer"])


NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def expected_latency(model: nn.Module, found: Sequence[Any], weights: Mapping[str, Tensor]) -> Tensor:
    """sum over choices of E[seconds], over the most that there can be.

    Args:
        model: whose choices know their options' seconds.
        found: the decisions.
        weights: {decision: [options]}.
    """
    choices: dict[str, Choice] = places(model)
    expected, most = [], 0.0
    for one in found:
        for name in one.places:
            seconds = [choices[name].seconds[option] for option in one.options]
            expected.append((weights[one.name] * weights[one.name].new_tensor(seconds)).sum())
            most += max(seconds)
    return torch.stack(expected).sum() / most


def sides(inputs: tuple[Tensor, ...]) -> Tensor:
    """[examples] bool: on which side each example is, told by its own bits: the same whenever and with whatever it comes.

    >>> x = torch.randn(64, 3)
    >>> bool((sides((x,))[10:20] == sides((x[10:20],))).all()), 10 < int(sides((x,)).sum()) < 54
    (True, True)
    """
    found = torch.zeros(len(inputs[0]), dtype=torch.int64, device=inputs[0].device)
    for x in tensors_of(inputs):
        bits = x.detach().double().contiguous().view(torch.int64).reshape(len(x), -1)
        place = torch.arange(1, bits.shape[1] + 1, device=x.device) * 0x9E3779B1
        found = found * 31 + ((bits ^ (bits >> 29)) * place).sum(1)
    found = (found ^ (found >> 33)) * 0x2545F4914F6CDD1D
    found = found ^ (found >> 29)
    return ((found >> 17) & 1).bool()
