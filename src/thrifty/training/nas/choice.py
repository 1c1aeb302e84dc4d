"""A place in a model that can be one of several modules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from thrifty.errors import ThriftyError
from thrifty.numerics.graph import replace

SKIP = "skip"
"""The name of an option that computes nothing: what a search drifts to when it goes wrong."""

Maker = Callable[[int], nn.Module]
"""Channels -> a module of so many."""


class Choice(nn.Module):
    """Several candidate modules, one of them to be chosen; until then, the weighted sum of their outputs.

        y = sum_o mixture[o] o(x)

    Choices of one group are decided alike (the cells of a net that repeats one). While nothing searches, every option has the
    same weight.

    With ``partial`` = k a k-th of the channels alone goes through the options, the others pass, and all are shuffled after:
    k times less memory, and a mixture that no longer favors what has no weights ("PC-DARTS", Xu et al. 2019,
    arXiv:1907.05737). Options are then given as functions of their number of channels, since the one that is chosen is made
    anew for all of them.

    Args:
        options: {name: module}, of equal output shapes; or {name: channels -> module} where there are ``channels``. The one that
            computes nothing is called "skip".
        group: choices of one group are decided alike; its own where empty.
        node: choices that are summed into one node share a softmax over its edges, where the search normalizes edges; none where
            empty.
        channels: that options made by functions get.
        partial: the share of the channels that goes through the options is one in so many.

    Raises:
        ThriftyError: there are fewer than two options, or what is partial cannot be divided.

    >>> place = Choice({"skip": nn.Identity(), "linear": nn.Linear(4, 4)})
    >>> place(torch.ones(1, 4)).shape, place.names
    (torch.Size([1, 4]), ('skip', 'linear'))
    """

    def __init__(self, options: Mapping[str, nn.Module | Maker], group: str = "", node: str = "", channels: int | None = None,
                 partial: int = 1) -> None:
        super().__init__()
        if len(options) < 2:
            raise ThriftyError(f"a choice needs two options or more but has {', '.join(options) or 'none'}: a search space of "
                               "one has nothing to search")
        self.makers = {name: option for name, option in options.items() if not isinstance(option, nn.Module)}
        if self.makers and channels is None:
            raise ThriftyError(f"{min(self.makers)} is a function of its channels: give channels=")
        if partial > 1 and (len(self.makers) < len(options) or channels is None or channels % partial):
            raise ThriftyError(f"partial={partial} sends channels / {partial} through the options: give every option as a "
                               f"function of its channels, and a channels= divisible by {partial}")
        self.group, self.node, self.channels, self.partial = group, node, channels, partial
        width = (channels or 0) // partial
        self.names = tuple(options)
        # Not a ModuleDict, which refuses names that modules have methods of.
        self.options = nn.ModuleList(option if isinstance(option, nn.Module) else option(width) for option in options.values())
        self.seconds: dict[str, float] = {}
        """What each option takes on the target, where it was measured."""
        self.mixture: Tensor | None = None
        """[options] weights, set by what searches; the same for all where None."""
        self.chosen: int | None = None
        """The only option that runs, in single-path search; its weight is ``mixture[chosen]``."""
        self.auxiliary = 0.0
        """Weight of a skip connection beside the mixture, which searches let decay."""

    def forward(self, x: Tensor, *rest: Any) -> Tensor:
        if self.partial > 1:
            width = x.shape[1] // self.partial
            mixed = self._mixed(x[:, :width], *rest)
            return _shuffled(torch.cat([mixed, x[:, width:]], 1), self.partial)
        return self._mixed(x, *rest)

    def _mixed(self, x: Tensor, *rest: Any) -> Tensor:
        options = list(self.options)
        if self.chosen is not None:
            found = options[self.chosen](x, *rest)
            found = found if self.mixture is None else found * self.mixture[self.chosen]
        else:
            outputs = [option(x, *rest) for option in options]
            if any(output.shape != outputs[0].shape for output in outputs):
                shapes = ", ".join(f"{name} {tuple(y.shape)}" for name, y in zip(self.names, outputs, strict=True))
                raise ThriftyError(f"the options of a choice give outputs of different shapes, which cannot be summed: {shapes}")
            weights = self.mixture if self.mixture is not None else outputs[0].new_full((len(outputs),), 1 / len(outputs))
            found = sum(weight * output for weight, output in zip(weights.unbind(), outputs, strict=True))
        if self.auxiliary and x.shape == found.shape:
            found = found + self.auxiliary * x
        return found  # type: ignore[no-any-return]

    def decided(self, name: str) -> nn.Module:
        """The module that stands here once that option is chosen: with its weights, or made anew for all channels."""
        if self.partial > 1:
            assert self.channels is not None
            return self.makers[name](self.channels)
        return self.options[self.names.index(name)]

    def extra_repr(self) -> str:
        return ", ".join(f"{key}={value!r}" for key, value in (("group", self.group), ("node", self.node)) if value)


def _shuffled(x: Tensor, groups: int) -> Tensor:
    """Channels of all groups in turn, so that others go through the options next time."""
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


# -- all of a model -----------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class Decision:
    """What is decided at once: the choices of one group.

    Args:
        name: the group, or the name of its only choice.
        places: names of the choices.
        options: their names, the same for all.
    """

    name: str
    places: tuple[str, ...]
    options: tuple[str, ...]


def places(model: nn.Module) -> dict[str, Choice]:
    """Every choice by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Choice)}


def decisions(model: nn.Module) -> list[Decision]:
    """What there is to decide, in the order of the model's modules.

    Raises:
        ThriftyError: choices of one group have different options.
    """
    grouped: dict[str, list[str]] = {}
    found = places(model)
    for name, choice in found.items():
        grouped.setdefault(choice.group or name, []).append(name)
    for group, names in grouped.items():
        kinds = {found[name].names for name in names}
        if len(kinds) > 1:
            raise ThriftyError(f"choices of the group {group!r} have different options: {' and '.join(map(str, sorted(kinds)))}")
    return [Decision(group, tuple(names), found[names[0]].names) for group, names in grouped.items()]


def decide(model: nn.Module, genotype: Mapping[str, str]) -> nn.Module:
    """The model with one module in the place of every choice, in place.

    Args:
        model: with choices.
        genotype: {decision: option}.

    Raises:
        ThriftyError: a decision is missing, or names an option that is not there.
    """
    for decision in decisions(model):
        option = genotype.get(decision.name)
        if option not in decision.options:
            raise ThriftyError(f"the choice {decision.name!r} has the options {', '.join(decision.options)}, but the genotype "
                               f"names {option!r}: it was found for another model")
        for name in decision.places:
            choice = model.get_submodule(name)
            assert isinstance(choice, Choice)
            replace(model, name, choice.decided(option))
    return model


def skips(genotype: Mapping[str, str]) -> float:
    """Share of the decisions that fell on skips."""
    return sum(option == SKIP for option in genotype.values()) / max(1, len(genotype))


