"""Which parameters hold experts' matrices that may be kept otherwise."""

from __future__ import annotations

from torch import nn

from thrifty.architectures.expert_interface import implement, takes
from thrifty.architectures.moe.experts import ExpertDown, ExpertUp
from thrifty.architectures.moe.layer import MoE
from thrifty.kernels.grouped_linear.held import Held

OWN: dict[type[nn.Module], tuple[str, ...]] = {MoE: ("gate_up", "down"), ExpertUp: ("weight",), ExpertDown: ("weight",)}


def stacks(module: nn.Module) -> tuple[str, ...]:
    """The names of a module's parameters [experts, outputs, inputs], where `hold` may change what they are kept as.

    >>> stacks(MoE(8, 16, experts=4)), stacks(nn.Linear(2, 2))
    (('gate_up', 'down'), ())
    """
    if takes(module) and not module.is_transposed:
        return "gate_up_proj", "down_proj"
    return OWN.get(type(module), ())


def hold(module: nn.Module, kept: dict[str, Held]) -> None:
    """Put stacks in the places of parameters, in place; experts of transformers compute by our operators then."""
    for name, stack in kept.items():
        delattr(module, name)
        module.add_module(name, stack)
    if type(module) not in OWN:
        implement(module)
