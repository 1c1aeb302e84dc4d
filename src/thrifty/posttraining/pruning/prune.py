"""Pruning: channels, heads, blocks or single weights leave a trained model."""

from __future__ import annotations

import copy
from collections import defaultdict
from dataclasses import dataclass
from typing import Any, ClassVar, final

from torch import nn

from thrifty.errors import ThriftyError
from thrifty.numerics.plain import bake, told
from thrifty.posttraining.elements import rows, weight_elements
from thrifty.posttraining.pruning import attributes, depth, experts, structures
from thrifty.posttraining.pruning.masks import masking
from thrifty.posttraining.pruning.structures import KINDS
from thrifty.posttraining.pruning.widths import Goal
from thrifty.posttraining.pruning.zeros import hold, zero_share
from thrifty.recipes.card import Card
from thrifty.recipes.claim import Claim
from thrifty.recipes.context import Context
from thrifty.recipes.hyperparameters import HyperparameterError, choice, matches, number, pattern
from thrifty.recipes.transform import Plan, Transform

PATTERNS = ("unstructured", "2:4", "1:4", "4:8", "6:8")
"""Structures of masks."""
CRITERIA = {**dict.fromkeys(KINDS, ("auto", "magnitude", "activation", "taylor")), "blocks": ("auto", "influence"),
            "experts": ("auto", "activation"), **dict.fromkeys(PATTERNS, ("auto", "magnitude", "wanda", "sparsegpt"))}
"""{structure: criteria that rank it}; "auto" is the first after it."""


@final
@dataclass(frozen=True)
class Prune(Transform):
    """Remove what matters least: channels and hidden units, attention heads, the residual stream, whole blocks, or weights.

    - ``channels``: outputs of convolutions and hidden units of linear layers; ``heads``: attention heads, of grouped queries
      a key-value head with all its queries; ``residual``: the width of the stream that norms run over; ``width``: all three.
      Channels that are tied (by a sum, a norm, a concatenation, a depthwise or grouped convolution, a flattening) leave
      together, over a dependency graph of the exported model; tensors become smaller, and so do the numbers that modules and
      configurations keep of them. Nothing is trusted unseen: on data, the smaller model must give what the original gives
      with the channels' readers zeroed, or the group at fault stays whole. The layers of which nothing leaves are told, with
      the reason.
    - ``experts``: of each mixture the experts that its router sends the least to, as many in each.
    - ``blocks``: whole blocks of a `ModuleList` or `Sequential`, ranked by influence, by how far the outputs move without
      them, and by the loss where there are labels.
    - ``unstructured``, ``"2:4"`` (2 of each 4 neighbors stay), ``"1:4"``, ``"4:8"``, ``"6:8"``: single weights become zero,
      and later trainings hold them there. Tensors keep their size, and no engine here is faster for it.

    Criteria: magnitude, sum over tied tensors W of ||W[c]|| / mean over c' of ||W[c']||; activation, ||x_c|| ||W[c]|| over the
    layers that read c; taylor, |sum of w dL/dw|; influence, 1 - mean cos(x, block(x)); wanda, |w_ij| ||x_j||; sparsegpt, w^2 over
    the inverse second moment's diagonal, the other weights making up for what leaves.

    Args:
        ratio: share to remove: of the model's parameters (or multiply-adds); of masked layers' weights, where ``"n:m"`` says
            it itself.
        importance: the norm by which magnitude ranks channels, "l2" or "l1".
        round_to: every pruned width is a multiple of it, and at least it; heads leave one by one.
        criterion: auto (magnitude; of blocks influence, of experts activation), magnitude, taylor, activation, influence,
            wanda or sparsegpt.
        structure: what leaves.
        of: what the ratio counts, "parameters" or "macs".
        scope: "layer": all lose the same share; "model": the least important of the whole model go first.
        keep: names of layers that stay as they are, a regular expression.

    >>> import torch
    >>> net = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 4))
    >>> Prune(ratio=0.5)(net, [torch.randn(16, 8)])[0]
    Linear(in_features=8, out_features=32, bias=True)
    """

    ratio: float = number(0.5, 0, 1, open_low=True, open_high=True, search=(0.25, 0.5, 0.75, 0.875))
    importance: str = choice("l2", "l2", "l1")
    round_to: int = number(8, 1)
    criterion: str = choice("auto", "auto", "magnitude", "taylor", "activation", "influence", "wanda", "sparsegpt")
    structure: str = choice("channels", *KINDS, "experts", "blocks", *PATTERNS)
    of: str = choice("parameters", "parameters", "macs")
    scope: str = choice("layer", "layer", "model")
    keep: str = pattern("")

    name: ClassVar[str] = "prune"
    version: ClassVar[int] = 2
    card: ClassVar[Card] = Card(
        family="pruning",
        benefit="inference time",
        trade_off="quality, partly recovered by retraining; zeros alone make nothing faster here",
        paper='"Pruning Filters for Efficient ConvNets", Li et al. 2016, arXiv:1608.08710; "DepGraph: Towards Any '
              'Structural Pruning", Fang et al. 2023, arXiv:2301.12900; "ShortGPT", Men et al. 2024, arXiv:2403.03853; "A Simple '
              'and Effective Pruning Approach for Large Language Models", Sun et al. 2023, arXiv:2306.11695; "SparseGPT", '
              'Frantar & Alistarh 2023, arXiv:2301.00774',
        requires=frozenset({"module", "float-weights"}),
        provides=frozenset({"pruned"}),
        refuses=frozenset({"mixture"}),  # units of its experts are in no layer that is known here
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.criterion not in CRITERIA[self.structure]:
            raise HyperparameterError(f"prune(criterion={self.criterion!r}): structure={self.structure} is ranked by "
                                      f"{', '.join(CRITERIA[self.structure])}")
        if ":" in self.structure:
            kept, period = map(int, self.structure.split(":"))
            if self.ratio not in (0.5, 1 - kept / period):
                raise HyperparameterError(f"prune(ratio={self.ratio!r}): structure={self.structure!r} always removes "
                                          f"{1 - kept / period:g}; omit ratio")
        if self.of == "macs" and self.structure not in KINDS:
            raise HyperparameterError(f"prune(of={self.of!r}): structure={self.structure} is counted in parameters; omit of")

    @property
    def provides(self) -> frozenset[str]:
        return frozenset({"masked"}) if self.structure in PATTERNS else self.card.provides

    @property
    def calibrated(self) -> bool:
        return not (self.structure in PATTERNS and self.by == "magnitude")

    @property
    def by(self) -> str:
        """The criterion, by its own name."""
        return CRITERIA[self.structure][1] if self.criterion == "auto" else self.criterion

    def plan(self, model: nn.Module, context: Context) -> Plan:
        """Decide what leaves.

        Raises:
            NoEffect: nothing can be removed, or the ratio is below half the smallest cut.
            ThriftyError: the ratio is above what can be removed, or the model cannot be exported.
            CalibrationError: the criterion lacks data, or saw NaN or infinity.
        """
        model = copy.deepcopy(model).eval()
        bake(model)
        keep = {name for name, _ in model.named_modules() if self.keep and matches(self.keep, name)}
        if self.structure in PATTERNS:
            found = masking(model, context, self.by, self.structure, self.ratio, keep)
            plan = Plan({"masked": list(found.weights), "left": found.left},
                        {f"{name}.weight": weight for name, weight in found.weights.items()})
        elif self.structure == "blocks":
            plan = Plan(depth.depth(model, context, self.ratio))
        elif self.structure == "experts":
            plan = Plan(experts.experts(model, context, self.ratio))
        else:
            goal = Goal(self.ratio, self.of, self.round_to, self.scope, alike=bool(attributes.configurations(model)))
            plan = Plan(structures.cutting(model, context, self.structure, self.by, self.importance, goal, keep).to_json())
        if plan.values["left"]:
            context.progress(f"left whole: {told(plan.values['left'])}")
        if self.structure not in PATTERNS:
            _report_config(self, model, plan, context)
        return plan

    def build(self, model: nn.Module, plan: Plan) -> nn.Module:
        bake(model)
        if "blocks" in plan.values:
            return depth.build(model, plan.values)
        if "slices" in plan.values:
            return structures.build(model, plan.values)
        modules: dict[str, Any] = dict(model.named_modules())
        for name in plan.values["masked"]:
            weight = plan.tensors[f"{name}.weight"]
            if name not in modules or getattr(modules[name], "weight", weight[:0]).shape != weight.shape:
                raise ThriftyError(f"the plan masks {name}, which this model does not have in that shape: it was made for "
                                   "another model")
            modules[name].weight = nn.Parameter(weight.to(modules[name].weight), modules[name].weight.requires_grad)
            hold(modules[name])
        return model

    def list_layers(self, model: nn.Module, plan: Plan) -> list[dict[str, Any]]:
        """How much is left of each layer along each dimension that shrank, or why nothing leaves of it."""
        values = plan.values
        made: dict[str, list[str]] = defaultdict(list)
        for tensor, dim, kept in values.get("slices", []):
            if not tensor.endswith(("bias", "running_mean", "running_var")):
                made[tensor.rpartition(".")[0]].append(f"{len(kept)} along {dim}")
        for container, kept in values.get("blocks", {}).items():
            made[container].append(f"blocks {', '.join(map(str, kept))}")
        for name in values.get("masked", []):
            made[name].append(f"{float((plan.tensors[f'{name}.weight'] == 0).double().mean()):.3f} zeros")
        return rows(model, [*((name, ", ".join(kept), "") for name, kept in made.items()),
                            *((name, "whole", why) for name, why in values.get("left", {}).items())])

    def claims(self, before: nn.Module, after: nn.Module) -> tuple[Claim, ...]:
        if self.structure in PATTERNS:
            had, has = zero_share(before), zero_share(after)
            return (Claim("share of zeros among weights", had, has, minimum=max(1e-6, 0.75 * (has - had)), probe=zero_share),)
        had, has = weight_elements(before), weight_elements(after)
        return (Claim("elements of weights", had, has, minimum=max(1.0, 0.5 * (had - has)), probe=weight_elements),)


def _report_config(method: Prune, model: nn.Module, plan: Plan, context: Context) -> None:
    """Say where a configuration cannot say what the model has become."""
    if attributes.configurations(model) and (odd := attributes.misfits(method.build(copy.deepcopy(model), plan))):
        context.progress(f"the configuration of {odd[0]} cannot express these sizes: it would build a different model, "
                         "so keep Thrifty's artifact or checkpoint")
