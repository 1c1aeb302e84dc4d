"""What layers inside two models give, compared by a map {student's layer: teacher's layer}."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from thrifty.errors import ThriftyError
from thrifty.training.distillation.losses import attention_map_distance, attention_relation_distance, feature_distance

HEAD = 32
"""Width of a head of relation, where it divides both models' widths."""

Features = dict[str, Tensor]
"""{layer's name: the first floating-point tensor that it gave}."""


@contextlib.contextmanager
def tapped(model: nn.Module, names: list[str], whose: str) -> Iterator[Features]:
    """What some layers give while the context lasts.

    Args:
        model: that they are of.
        names: of the layers.
        whose: "student" or "teacher", for the error.

    Raises:
        ThriftyError: the model has no such layer.
    """
    modules, found = dict(model.named_modules()), Features()
    if missing := [name for name in names if name not in modules]:
        some = ", ".join([name for name in modules if name][:8])
        raise ThriftyError(f"the {whose} has no layer {missing[0]!r}; it has {some}, ...")

    def see(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def after(module: nn.Module, inputs: Any, output: Any) -> None:
            tensors = [x for x in torch.utils._pytree.tree_leaves(output) if isinstance(x, Tensor) and x.is_floating_point()]
            if not tensors:
                raise ThriftyError(f"layer {name} of the {whose} gives no floating-point tensor, so it cannot be distilled")
            found[name] = tensors[0]

        return after

    handles = [modules[name].register_forward_hook(see(name)) for name in names]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def called(found: Features, names: list[str], whose: str) -> Features:
    """What was found, where every layer was called.

    Raises:
        ThriftyError: one was not.
    """
    if missing := [name for name in names if name not in found]:
        raise ThriftyError(f"layer {missing[0]} of the {whose} is not called in a forward pass: name one that is")
    return found


def rows_of(x: Tensor, valid: Tensor | None) -> Tensor:
    """[n, width] of [n, width], of [batch, tokens, width] at the valid places, of [batch, channels, height, width].

    >>> rows_of(torch.zeros(2, 3, 4), torch.tensor([[True, False, True], [True, True, False]])).shape
    torch.Size([4, 4])
    """
    if x.dim() == 4:
        return x.movedim(1, -1).flatten(0, -2)
    if x.dim() == 3 and valid is not None:
        return x[valid]
    return x.flatten(0, -2)


def width_of(x: Tensor) -> int:
    """The width of what `rows_of` gives."""
    return x.shape[1] if x.dim() == 4 else x.shape[-1]


def projections(pairs: Mapping[str, str], student: Features, teacher: Features) -> nn.ModuleDict:
    """For each pair of other widths a linear map of the student's feature to the teacher's width.

    Args:
        pairs: {student's layer: teacher's layer}.
        student, teacher: what the layers give on some example.

    Raises:
        ThriftyError: a pair's features differ in more than their width.
    """
    found = nn.ModuleDict()
    for mine, theirs in pairs.items():
        s, t = student[mine], teacher[theirs]
        require_alike(mine, s, theirs, t)
        if width_of(s) != width_of(t):
            found[key_of(mine)] = nn.Linear(width_of(s), width_of(t), bias=False)
    return found


def require_alike(mine: str, s: Tensor, theirs: str, t: Tensor) -> None:
    """Refuse features that differ in more than their width.

    Raises:
        ThriftyError: they do.
    """
    sizes = [(x.shape[:1] + x.shape[2:] if x.dim() == 4 else x.shape[:-1]) for x in (s, t)]
    if s.dim() != t.dim() or sizes[0] != sizes[1]:
        raise ThriftyError(f"the student's {mine} gives {tuple(s.shape)} and the teacher's {theirs} {tuple(t.shape)}: pair "
                           "layers with the same positions; only their widths may differ")


def key_of(name: str) -> str:
    """A layer's name as a key of a ModuleDict, which may hold no dots."""
    return name.replace(".", "/")


def hidden_distance(pairs: Mapping[str, str], student: Features, teacher: Features, project: nn.ModuleDict,
                    valid: Tensor | None) -> Tensor:
    """Mean over pairs of `feature_distance` at the valid places."""
    parts = []
    for mine, theirs in pairs.items():
        s, t = student[mine], teacher[theirs]
        require_alike(mine, s, theirs, t)
        rows = rows_of(s, _fitting(valid, s)).float()
        if key_of(mine) in project:
            rows = project[key_of(mine)](rows)
        parts.append(feature_distance(rows, rows_of(t, _fitting(valid, t)).float()))
    return torch.stack(parts).mean()


def attention_distance(pairs: Mapping[str, str], student: Features, teacher: Features, valid: Tensor | None) -> Tensor:
    """Mean over pairs: of where images are looked at, or of the relations of queries, of keys or of values."""
    parts = []
    for mine, theirs in pairs.items():
        s, t = student[mine].float(), teacher[theirs].float()
        require_alike(mine, s, theirs, t)
        if s.dim() == 4:
            parts.append(attention_map_distance(s, t))
        elif s.dim() == 3:
            places = _fitting(valid, s)
            places = torch.ones(s.shape[:2], dtype=torch.bool, device=s.device) if places is None else places
            parts.append(attention_relation_distance(s, t, places, heads_of(s.shape[-1], t.shape[-1])))
        else:
            raise ThriftyError(f"attention={{{mine!r}: ...}}: its output is {tuple(s.shape)}, but attention needs [batch, "
                               "tokens, width] or [batch, channels, height, width]; pass such a layer to hidden=")
    return torch.stack(parts).mean()


def heads_of(student: int, teacher: int) -> int:
    """Heads of relation for two widths: of `HEAD` each where that divides both.

    >>> heads_of(384, 768), heads_of(48, 48), heads_of(7, 5)
    (12, 1, 1)
    """
    common = math.gcd(student, teacher)
    return common // HEAD if common % HEAD == 0 else 1


def _fitting(valid: Tensor | None, x: Tensor) -> Tensor | None:
    return valid if valid is not None and x.dim() == 3 and x.shape[:2] == valid.shape else None
