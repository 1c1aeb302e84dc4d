"""What a layer really computes: whether another may stand in its place, and if not, why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from thrifty.errors import ThriftyError

WEIGHED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding, nn.LSTM, nn.GRU)
"""Layers that methods exchange."""
OWN_FORWARD = "a subclass that computes in its own way"
HOOKED = "has hooks, which read its values"
COMPLEX = "complex weights"
OLD_NORMS = {"WeightNorm": "weight_norm", "SpectralNorm": "spectral_norm"}
"""{class of the hook: name of the parametrization that took its place}."""
NAMED = 4
"""Layers that one line names, of each reason."""
_IDLE = frozenset({"__init__", "__module__", "__doc__", "__qualname__", "__annotations__", "__repr__", "__constants__",
                   "__firstlineno__", "__static_attributes__", "__annotate_func__", "__slots__", "__parameters__",
                   "__orig_bases__", "__setstate__", "__dict__", "__weakref__", "__final__", "extra_repr", "reset_parameters",
                   "from_pretrained", "__jit_unused_properties__"})
"""What a subclass may define anew without computing anything else."""


def _changes(cls: type[nn.Module], base: type[nn.Module]) -> bool:
    """Whether a subclass overrides something that ``base`` computes with."""
    if cls is base:
        return False
    own = {name for each in cls.__mro__[:cls.__mro__.index(base)] for name in vars(each)}
    return any(hasattr(base, name) or name in ("weight", "bias", "__getattr__") for name in own - _IDLE)


def computes_as(module: nn.Module | None, base: type[nn.Module]) -> bool:
    """Whether the module is a ``base`` in all but its name: of that type, or a subclass that overrides nothing.

    >>> class Named(nn.Linear): pass
    >>> class Doubled(nn.Linear):
    ...     def forward(self, x): return 2 * super().forward(x)
    >>> computes_as(Named(2, 2), nn.Linear), computes_as(Doubled(2, 2), nn.Linear)
    (True, False)
    """
    return isinstance(module, base) and "forward" not in vars(module) and not _changes(type(module), base)


def hooked(module: nn.Module) -> bool:
    """Whether somebody listens to the module's calls or gradients, and may change them."""
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks)


def is_one_of(module: nn.Module | None, classes: tuple[type[nn.Module], ...]) -> bool:
    """Whether a module computes as one of the classes, and nobody listens."""
    return module is not None and any(computes_as(module, base) for base in classes) and not hooked(module)


def why_kept(module: nn.Module) -> str | None:
    """Why no other layer may stand in this one's place; None where one may, or where the module holds no weight of its own."""
    held = [p for p in module.parameters(recurse=False) if p.dim() > 1]
    if not held:
        return None
    if any(p.is_complex() for p in held):
        return COMPLEX
    base = next((base for base in WEIGHED if isinstance(module, base)), None)
    if base is None:
        return f"no low-precision layer replaces {type(module).__name__}"
    if not computes_as(module, base):
        return OWN_FORWARD
    return HOOKED if hooked(module) else None


def bake(model: nn.Module) -> list[str]:
    """Put the weights that parametrizations compute in eval mode in the place of these, in place; names of the layers.

    torch's own `remove_parametrizations` takes a property from a class that copies of the layer share.
    """
    found = [(name, module) for name, module in model.named_modules() if parametrize.is_parametrized(module)]
    for _, module in found:
        held: Any = module.parametrizations
        trained = {name: [p.requires_grad for p in each.parameters(recurse=False)] for name, each in held.items()}
        training = module.training
        with torch.no_grad():
            values = {name: getattr(module.eval(), name).detach().clone() for name in held}
        del module._modules["parametrizations"]
        module.__class__ = type(module).__bases__[0]
        for name, value in values.items():
            if trained[name]:
                setattr(module, name, nn.Parameter(value, requires_grad=any(trained[name])))
            else:
                module.register_buffer(name, value)
        module.train(training)
    return [name for name, _ in found]


def refuse_old_norms(model: nn.Module) -> None:
    """Raise where a layer's weight is computed by a hook before each call, torch's old way: such a layer cannot be copied.

    Raises:
        ThriftyError: names the layer, and the new way.
    """
    for name, module in model.named_modules():
        for hook in module._forward_pre_hooks.values():
            if new := OLD_NORMS.get(type(hook).__name__):
                raise ThriftyError(f"layer {name!r} uses {new} as a hook, the old torch form, which cannot be copied: "
                                   f"use torch.nn.utils.parametrizations.{new}")


def told(left: Mapping[str, str]) -> str:
    """Layers that stay float, by their reasons, in one line.

    >>> told({"a": "has hooks", "b": "small", "c": "small"})
    'a (has hooks), b and c (small)'
    """
    reasons: dict[str, list[str]] = {}
    for name, reason in left.items():
        reasons.setdefault(reason, []).append(name or "the model itself")
    return ", ".join(f"{_and(names)} ({reason})" for reason, names in reasons.items())


def _and(names: list[str]) -> str:
    if len(names) > NAMED:
        return f"{', '.join(names[:NAMED])} and {len(names) - NAMED} more"
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]
