"""A model of transformers made faster where it stands: state-space layers and experts by our kernels, its weights kept."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import nn

from thrifty.architectures.accelerated import Accelerated, AcceleratedMamba, Stand
from thrifty.architectures.expert_interface import computed_by_us, implement, takes
from thrifty.errors import NoEffect

STANDS: Mapping[str, Callable[[Any], Stand]] = {
    "Mamba2Mixer": Accelerated, "MambaMixer": AcceleratedMamba, "JambaMambaMixer": AcceleratedMamba}
"""{class of transformers: what stands in its place}."""


def accelerate(model: nn.Module) -> nn.Module:
    """Replace the model's Mamba and Mamba-2 layers and experts in place; names of weights, signatures and caches stay.

    Experts with a gate by silu and no bias compute by `thrifty.kernels.moe`, which transformers then knows as the implementation
    "thrifty"; others stay as they are. Beside being faster, state-space layers compute what transformers 5.23 get wrong: padding
    on the right leaves the state of the prompt without it, ``time_step_limit`` holds token by token too, and a cached call may
    bring several tokens.

    Args:
        model: a model of transformers, such as ``Mamba2ForCausalLM``, ``JambaForCausalLM`` or ``MixtralForCausalLM``, or any
            module that holds such layers.

    Raises:
        NoEffect: it has no layer that becomes faster.

    >>> import torch
    >>> from transformers import Mamba2Config, Mamba2ForCausalLM
    >>> config = Mamba2Config(num_heads=4, head_dim=16, hidden_size=32, state_size=8, n_groups=2, num_hidden_layers=2,
    ...                       vocab_size=50)
    >>> model = Mamba2ForCausalLM(config).eval()
    >>> ids = torch.arange(7)[None]
    >>> before = model(ids).logits
    >>> torch.allclose(accelerate(model)(ids).logits, before, atol=1e-5)
    True
    """
    found = _mixers(model)
    mixtures = [module for module in model.modules() if takes(module)]
    if not (found or mixtures):
        raise NoEffect("accelerate finds no transformers Mamba or Mamba-2 layer and no experts in "
                       f"{type(model).__name__}: remove it")
    for module in mixtures:
        implement(module)
    for parent, name, child in found:
        setattr(parent, name, STANDS[type(child).__name__](child))
    return model


@contextlib.contextmanager
def exportable(model: nn.Module) -> Iterator[None]:
    """Have the model's state-space layers and experts computed by torch's own operators of fixed sizes for as long as it lasts.

    transformers scan token by token, which would be as many operators as there are tokens, and multiply experts by an operator of
    their own, which an artifact could not open.

    Args:
        model: of any kind; others than transformers' stay as they are.
    """
    found = [one for one in _mixers(model) if one[2].activation in ("silu", "swish")]
    with contextlib.ExitStack() as stack:
        for module in model.modules():
            if takes(module):
                stack.enter_context(computed_by_us(module))
        try:
            for parent, name, child in found:
                setattr(parent, name, STANDS[type(child).__name__](child))
            yield
        finally:
            for parent, name, child in found:
                setattr(parent, name, child)


def _mixers(model: nn.Module) -> list[tuple[nn.Module, str, Any]]:
    """(parent, name, mixer) of the state-space layers of transformers."""
    return [(parent, name, child) for parent in model.modules() for name, child in parent.named_children()
            if type(child).__name__ in STANDS and type(child).__module__.startswith("transformers.")]
