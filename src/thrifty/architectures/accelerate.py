"""A model of transformers made faster where it stands: Mamba-2 layers and experts by our kernels, with its weights and cache."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor, nn

from thrifty.architectures.convolution import causal
from thrifty.architectures.expert_interface import implement, takes
from thrifty.architectures.mixer import Compaction
from thrifty.errors import NoEffect, ThriftyError
from thrifty.kernels.mamba2_step import mamba2_step
from thrifty.kernels.mamba2_step.naive import norm_gated
from thrifty.kernels.ssd import ssd, time_steps


def accelerate(model: nn.Module) -> nn.Module:
    """Replace the model's Mamba-2 layers and experts in place; names of weights, signatures and caches stay as they are.

    Experts with a gate by silu and no bias compute by `thrifty.kernels.moe`, which transformers then knows as the implementation
    "thrifty"; others stay as they are. Beside being faster, Mamba-2 computes what transformers 5.23 get wrong: padding on the
    right leaves the state of the prompt without it, ``time_step_limit`` holds token by token too, and a cached call may bring
    several tokens.

    Args:
        model: a model of transformers, such as ``Mamba2ForCausalLM`` or ``MixtralForCausalLM``, or any module that holds such
            layers.

    Raises:
        NoEffect: it has no layer that becomes faster.

    >>> from transformers import Mamba2Config, Mamba2ForCausalLM
    >>> config = Mamba2Config(num_heads=4, head_dim=16, hidden_size=32, state_size=8, n_groups=2, num_hidden_layers=2,
    ...                       vocab_size=50)
    >>> model = Mamba2ForCausalLM(config).eval()
    >>> ids = torch.arange(7)[None]
    >>> before = model(ids).logits
    >>> torch.allclose(accelerate(model)(ids).logits, before, atol=1e-5)
    True
    """
    found = [(parent, name, child) for parent in model.modules() for name, child in parent.named_children()
             if type(child).__name__ == "Mamba2Mixer" and type(child).__module__.startswith("transformers.")]
    mixtures = [module for module in model.modules() if takes(module)]
    if not (found or mixtures):
        raise NoEffect(f"accelerate finds no transformers Mamba-2 layer and no experts in {type(model).__name__}: remove it")
    for module in mixtures:
        implement(module)
    for parent, name, child in found:
        setattr(parent, name, Accelerated(child))
    return model


@final
class Accelerated(nn.Module):
    """A ``Mamba2Mixer`` of transformers by our kernels: its submodules, its weights, its way of being called.

    Args:
        mixer: whose weights it shares.

    Raises:
        ThriftyError: an activation other than silu.
    """

    in_proj: nn.Linear
    conv1d: nn.Conv1d
    norm: Any
    out_proj: nn.Linear
    dt_bias: Tensor
    A_log: Tensor
    D: Tensor

    def __init__(self, mixer: Any) -> None:
        super().__init__()
        if mixer.activation not in ("silu", "swish"):
            raise ThriftyError(f"a convolution with {mixer.activation} is not supported; use silu")
        for name, child in mixer.named_children():
            if next(child.parameters(), None) is not None:
                self.add_module(name, child)
        for name, weight in mixer.named_parameters(recurse=False):
            self.register_parameter(name, weight)
        self.inner, self.heads, self.head = mixer.intermediate_size, mixer.num_heads, mixer.head_dim
        self.groups, self.state, self.layer_idx = mixer.n_groups, mixer.ssm_state_size, mixer.layer_idx
        low, high = mixer.time_step_limit
        self.limits, self.taps, self.layer_type = (float(low), float(high)), mixer.conv_kernel_size, mixer.layer_type
        self.train(mixer.training)

    def forward(self, hidden_states: Tensor, cache_params: Any = None, attention_mask: Tensor | None = None,
                **kwargs: Any) -> Tensor:
        conv = state = None
        if cache_params is not None:
            conv = cache_params.get_conv_state(self.layer_idx, state_idx=0)  # [batch, channels, taps], the newest last
            state = cache_params.get_recurrent_state(self.layer_idx, state_idx=0)
        if hidden_states.shape[1] == 1 and conv is not None and state is not None and attention_mask is None:
            return self._token(hidden_states, cache_params, conv, state)
        rows = None if attention_mask is None else Compaction.of(attention_mask.bool())
        x = hidden_states if rows is None else rows.apply(hidden_states)
        shared = self.groups * self.state
        z, raw, dt = self.in_proj(x).split([self.inner, self.inner + 2 * shared, self.heads], dim=-1)
        weight = self.conv1d.weight
        # One input more than the convolution reads: the cache of transformers holds as many as there are taps.
        before = raw.new_zeros(raw.shape[0], self.taps, raw.shape[2]) if conv is None else conv.mT.to(raw.dtype)
        mixed, _ = causal(raw, weight, self.conv1d.bias, before[:, 1:])
        x, B, C = mixed.split([self.inner, shared, shared], dim=-1)
        dt = time_steps(dt, self.dt_bias, self.limits, None if rows is None else rows.mask)
        y, final = ssd(x.unflatten(-1, (self.heads, self.head)), dt, -self.A_log.to(dt.dtype).exp(),
                       B.unflatten(-1, (self.groups, self.state)), C.unflatten(-1, (self.groups, self.state)), self.D,
                       initial=state)
        if cache_params is not None:
            joined = torch.cat([before, raw], 1)
            last = joined[:, -self.taps:] if rows is None else joined.gather(1, _last(rows, self.taps)[..., None].expand(
                -1, -1, joined.shape[2]))
            cache_params.update_conv_state(last.mT, self.layer_idx, conv_kernel_size=self.taps)
            cache_params.update_recurrent_state(final, layer_idx=self.layer_idx)
        y = self.out_proj(norm_gated(y.flatten(2), z, self.norm.weight, self.groups, self.norm.variance_epsilon))
        return y if rows is None else rows.undo(y)

    def _token(self, x: Tensor, cache_params: Any, conv: Tensor, state: Tensor) -> Tensor:
        zxbcdt = self.in_proj(x)[:, 0]
        before, after = conv[..., 1:].mT.contiguous(), state.contiguous()
        if torch.is_grad_enabled():
            zxbcdt = zxbcdt.detach()
        y = mamba2_step(zxbcdt, before, after, self.conv1d.weight[:, 0], self.conv1d.bias, self.dt_bias,
                        -self.A_log.float().exp(), self.D, self.norm.weight, groups=self.groups, limits=self.limits,
                        eps=self.norm.variance_epsilon)
        newest = zxbcdt[:, self.inner : self.inner + conv.shape[1], None]
        cache_params.update_conv_state(newest.to(conv.dtype), self.layer_idx, conv_kernel_size=self.taps)
        cache_params.update_recurrent_state(after, layer_idx=self.layer_idx)
        return self.out_proj(y)[:, None]  # type: ignore[no-any-return]


def _last(rows: Compaction, taps: int) -> Tensor:
    """Which of [taps before, tokens] are the last of each row's: [batch, taps]."""
    return rows.lengths[:, None] + torch.arange(taps, device=rows.lengths.device)
