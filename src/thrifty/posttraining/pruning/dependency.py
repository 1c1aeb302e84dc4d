"""Which slices of which tensors must go together when a channel is removed.

The model is exported to ATen operators. Every dimension of every weight gets one label an index; a rule per operator
(`rules`) says which labels are the same channel and which must stay. What no rule knows freezes whatever reaches it, so the
answer may leave out channels that could go but never allows one that cannot.

After "DepGraph: Towards Any Structural Pruning", Fang et al. 2023, arXiv:2301.12900, with labels of single indices in
place of layers: flattening, concatenation, heads and broadcasting need no special case.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, final

import numpy as np
import torch
from torch import Tensor, nn

from thrifty.errors import ThriftyError, told_once
from thrifty.posttraining.pruning.labels import DATA
from thrifty.posttraining.pruning.rules import RULES, pointwise
from thrifty.posttraining.pruning.tracing import Tracer

Kind = Literal["channels", "heads", "residual"]


@final
@dataclass(frozen=True)
class Place:
    """A dimension of a named parameter or buffer."""

    tensor: str
    dim: int


@final
@dataclass(frozen=True)
class Group:
    """Channels that play the same part, so that any number of them can be removed.

    Args:
        members: {place: [channels, times] indices}: what one channel occupies of each dimension.
        kind: "heads" where a reshape cuts them out of a wider dimension, "residual" where a norm runs over them.
    """

    members: dict[Place, np.ndarray]
    kind: Kind = "channels"

    @property
    def size(self) -> int:
        return len(next(iter(self.members.values())))


@final
@dataclass(frozen=True)
class Term:
    """A product of sizes, such as a tensor's elements or an operator's multiply-adds, as groups become narrower.

    Args:
        factor: of what does not change.
        dims: (size, {group: indices that one of its channels occupies}) of each dimension.
    """

    factor: float
    dims: tuple[tuple[int, Mapping[int, float]], ...]

    def at(self, removed: Mapping[int, int]) -> float:
        """The product when groups have lost so many channels."""
        found = self.factor
        for size, times in self.dims:
            found *= size - sum(count * removed.get(i, 0) for i, count in times.items())
        return found


@final
@dataclass(frozen=True)
class Dependencies:
    """Args:
        groups: in the order of the model's parameters.
        reads: places that are summed over: zeros there make a channel unread.
        scales: parameters that scale a channel, such as batch norm's.
        norms: parameters of norms that run over channels.
        kept: {place: why it stays} of the dimensions of weights that are in no group.
        parameters, macs: what the model's parameters and multiply-adds are made of.
    """

    groups: tuple[Group, ...]
    reads: frozenset[Place]
    scales: frozenset[str]
    norms: frozenset[str]
    kept: Mapping[Place, str]
    parameters: tuple[Term, ...]
    macs: tuple[Term, ...]


def dependencies(model: nn.Module, example: tuple[Tensor, ...]) -> Dependencies:
    """Find the groups of channels that can be removed from a model.

    Args:
        model: in eval mode.
        example: inputs that it takes.

    Raises:
        ThriftyError: the model cannot be exported.

    >>> net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2)).eval()
    >>> [(group.size, sorted((p.tensor, p.dim) for p in group.members))
    ...  for group in dependencies(net, (torch.zeros(1, 4),)).groups]
    [(16, [('0.bias', 0), ('0.weight', 0), ('2.weight', 1)])]
    """
    try:
        with told_once():
            program = torch.export.export(model, example, strict=False)
    except Exception as error:
        raise ThriftyError(f"pruning follows channels through the exported model, and torch.export cannot export "
                           f"this one: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}; "
                           "masks (structure=unstructured, \"2:4\") and whole blocks (structure=blocks) need no export"
                           ) from error
    tracer = Tracer(model, RULES, pointwise)
    tracer.run(program)
    return _Grouping(tracer).found()


class _Grouping:
    """Classes of labels by what they occupy: those that occupy the same places, equally often, are a group."""

    def __init__(self, tracer: Tracer) -> None:
        self.tracer, self.labels = tracer, tracer.labels
        self.reads = frozenset(Place(*read) for read in tracer.reads)
        self.heads, self.normed = self.labels.tagged("heads"), self.labels.tagged("normed")
        self.group_of: dict[int, int] = {}

    def found(self) -> Dependencies:
        groups, kept = self._groups()
        parameters = [(1.0, list(dims)) for name, dims in self.tracer.tensors.items() if name in self.tracer.parameters]
        return Dependencies(groups, self.reads, frozenset(self.tracer.scales), frozenset(self.tracer.norms), kept,
                            tuple(self._term(*x, groups) for x in parameters),
                            tuple(self._term(*x, groups) for x in self.tracer.products))

    def _groups(self) -> tuple[tuple[Group, ...], dict[Place, str]]:
        occupied: dict[int, dict[Place, list[int]]] = defaultdict(lambda: defaultdict(list))
        kept: dict[Place, str] = {}
        for name, dims in self.tracer.tensors.items():
            for dim, labels in enumerate(dims):
                for index, label in enumerate(labels.tolist()):
                    why = self.labels.why(label)
                    if why is None:
                        occupied[self.labels.find(label)][Place(name, dim)].append(index)
                    elif len(labels) > 1:
                        kept.setdefault(Place(name, dim), why)
        alike: dict[Any, list[int]] = defaultdict(list)
        for root, places in occupied.items():
            alike[tuple((place, len(indices)) for place, indices in places.items())].append(root)
        found: list[Group] = []
        for signature, roots in alike.items():
            members = [place for place, _ in signature]
            tagged = self.heads.intersection(roots), self.normed.intersection(roots)
            if not self.reads.intersection(members):  # what nothing reads is beyond a check by masking
                kept |= dict.fromkeys(members, "no layer reads it")
            elif all(tagged):
                kept |= dict.fromkeys(members, "a norm runs over its heads")
            else:
                kind: Kind = "heads" if tagged[0] else "residual" if tagged[1] else "channels"
                self.group_of |= dict.fromkeys(roots, len(found))
                found.append(Group({p: np.array([occupied[root][p] for root in roots]) for p in members}, kind))
        return tuple(found), kept

    def _term(self, factor: float, dims: list[np.ndarray], groups: tuple[Group, ...]) -> Term:
        made = []
        for labels in dims:
            counts: dict[int, float] = defaultdict(float)
            if labels.any():
                for label in labels.tolist():
                    i = self.group_of.get(self.labels.find(label)) if label != DATA else None
                    if i is not None:
                        counts[i] += 1 / groups[i].size
            made.append((len(labels), dict(counts)))
        return Term(factor, tuple(made))


