"""Experts of transformers' mixtures by our kernels, through its `ExpertsInterface`."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from thrifty.architectures.moe.layer import exported, mixed
from thrifty.architectures.moe.router import Routing
from thrifty.kernels.exporting import exporting
from thrifty.kernels.grouped_linear.held import Held
from thrifty.kernels.moe import moe

NAME = "thrifty"


def takes(module: nn.Module) -> bool:
    """Whether it holds experts of transformers that compute what our kernels do: silu(gate) * up, no bias, gates above ups."""
    return (hasattr(module, "_apply_gate") and hasattr(module, "gate_up_proj") and hasattr(module, "down_proj")
            and getattr(module, "has_gate", False) and getattr(module, "is_concatenated", False)
            and not getattr(module, "has_bias", True) and not getattr(module, "has_post_expert_norm", False)
            and not getattr(module, "_is_expert_parallel", True)
            and getattr(module._apply_gate, "__func__", None) is _default_gate()
            and type(getattr(module, "act_fn", None)).__name__ in ("SiLU", "SiLUActivation"))


def implement(module: Any) -> None:
    """Have the experts computed by `forward`; the configuration is their own from here on, so that others keep theirs."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    ALL_EXPERTS_FUNCTIONS.register(NAME, forward)
    module.config = copy.copy(module.config)
    module.config._experts_implementation = NAME


@contextlib.contextmanager
def computed_by_us(module: Any) -> Iterator[None]:
    """Likewise, for as long as it lasts."""
    before = module.config
    implement(module)
    try:
        yield
    finally:
        module.config = before


def forward(self: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """In transformers' place: tokens [tokens, width], the experts of each and their weights."""
    gate_up, down = self.gate_up_proj, self.down_proj
    if self.is_transposed:
        gate_up, down = gate_up.mT, down.mT
    x = hidden_states if isinstance(gate_up, Held) else hidden_states.to(gate_up.dtype)
    if exporting():
        return exported(x, top_k_index, top_k_weights, gate_up, down).to(hidden_states.dtype)
    choices, order = top_k_index.reshape(-1).int().sort(stable=True)
    ends = torch.searchsorted(choices, torch.arange(self.num_experts, device=choices.device, dtype=torch.int32), right=True)
    if isinstance(gate_up, Held):
        y = mixed(x, Routing(top_k_index, top_k_weights, order, ends.long()), gate_up, down)
    else:
        y = moe(x, gate_up, down, top_k_weights, order, ends)
    return y.to(hidden_states.dtype)


def _default_gate() -> Any:
    from transformers.integrations.moe import _default_apply_gate

    return _default_apply_gate
