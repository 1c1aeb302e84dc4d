"""What stands in the places of transformers' state-space mixers: their weights and caches, our kernels."""

from __future__ import annotations

import itertools
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from thrifty.architectures.convolution import causal
from thrifty.architectures.mixer import Compaction
from thrifty.errors import ThriftyError
from thrifty.kernels.mamba2_step import mamba2_step
from thrifty.kernels.mamba2_step.naive import norm_gated
from thrifty.kernels.selective_scan import selective_scan, selective_step
from thrifty.kernels.ssd import ssd, time_steps


class Stand(nn.Module):
    """A mixer of transformers by other arithmetic: its submodules and weights under their names.

    Args:
        mixer: whose weights it shares.

    Raises:
        ThriftyError: an activation other than silu.
    """

    in_proj: nn.Linear
    conv1d: nn.Conv1d
    out_proj: nn.Linear
    A_log: Tensor
    D: Tensor

    def __init__(self, mixer: Any) -> None:
        super().__init__()
        if mixer.activation not in ("silu", "swish"):
            raise ThriftyError(f"a convolution with {mixer.activation} is not supported; use silu")
        for name, child in mixer.named_children():
            if next(itertools.chain(child.parameters(), child.buffers()), None) is not None:
                self.add_module(name, child)
        for name, weight in mixer.named_parameters(recurse=False):
            self.register_parameter(name, weight)
        self.inner, self.state, self.layer_idx = mixer.intermediate_size, mixer.ssm_state_size, mixer.layer_idx
        self.taps, self.layer_type = mixer.conv_kernel_size, getattr(mixer, "layer_type", "linear_attention")
        self.train(mixer.training)

    def _kept(self, cache: Any) -> tuple[Tensor | None, Tensor | None]:
        """The convolution's last inputs [batch, channels, taps], the newest last, and the state; None before the first token."""
        if cache is None:
            return None, None
        return cache.get_conv_state(self.layer_idx, state_idx=0), cache.get_recurrent_state(self.layer_idx, state_idx=0)

    def _before(self, raw: Tensor, conv: Tensor | None) -> Tensor:
        """[batch, taps, channels]: one input more than the convolution reads, as many as transformers' cache holds."""
        return raw.new_zeros(raw.shape[0], self.taps, raw.shape[2]) if conv is None else conv.mT.to(raw.dtype)

    def _keep(self, cache: Any, before: Tensor, raw: Tensor, final: Tensor, rows: Compaction | None) -> None:
        """Leave in the cache what the next token needs."""
        if cache is None:
            return
        joined = torch.cat([before, raw], 1)
        last = joined[:, -self.taps:] if rows is None else joined.gather(1, _last(rows, self.taps)[..., None].expand(
            -1, -1, joined.shape[2]))
        cache.update_conv_state(last.mT, self.layer_idx, conv_kernel_size=self.taps)
        cache.update_recurrent_state(final, layer_idx=self.layer_idx)


@final
class Accelerated(Stand):
    """A ``Mamba2Mixer`` of transformers by our kernels."""

    norm: Any
    dt_bias: Tensor

    def __init__(self, mixer: Any) -> None:
        super().__init__(mixer)
        self.heads, self.head, self.groups = mixer.num_heads, mixer.head_dim, mixer.n_groups
        low, high = mixer.time_step_limit
        self.limits = (float(low), float(high))

    def forward(self, hidden_states: Tensor, cache_params: Any = None, attention_mask: Tensor | None = None,
                **kwargs: Any) -> Tensor:
        conv, state = self._kept(cache_params)
        if hidden_states.shape[1] == 1 and conv is not None and state is not None and attention_mask is None:
            return self._token(hidden_states, cache_params, conv, state)
        rows = None if attention_mask is None else Compaction.of(attention_mask.bool())
        x = hidden_states if rows is None else rows.apply(hidden_states)
        shared = self.groups * self.state
        z, raw, dt = self.in_proj(x).split([self.inner, self.inner + 2 * shared, self.heads], dim=-1)
        before = self._before(raw, conv)
        mixed, _ = causal(raw, self.conv1d.weight, self.conv1d.bias, before[:, 1:])
        x, B, C = mixed.split([self.inner, shared, shared], dim=-1)
        dt = time_steps(dt, self.dt_bias, self.limits, None if rows is None else rows.mask)
        y, final = ssd(x.unflatten(-1, (self.heads, self.head)), dt, -self.A_log.to(dt.dtype).exp(),
                       B.unflatten(-1, (self.groups, self.state)), C.unflatten(-1, (self.groups, self.state)), self.D,
                       initial=state)
        self._keep(cache_params, before, raw, final, rows)
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


@final
class AcceleratedMamba(Stand):
    """A ``MambaMixer`` or ``JambaMambaMixer`` of transformers by our scan; the latter has norms on dt, B and C."""

    x_proj: nn.Linear
    dt_proj: nn.Linear
    norms = ("dt_layernorm", "b_layernorm", "c_layernorm")

    def __init__(self, mixer: Any) -> None:
        super().__init__(mixer)
        self.rank = mixer.time_step_rank

    def forward(self, hidden_states: Tensor, cache_params: Any = None, attention_mask: Tensor | None = None,
                **kwargs: Any) -> Tensor:
        conv, state = self._kept(cache_params)
        rows = None if attention_mask is None else Compaction.of(attention_mask.bool())
        raw, z = self.in_proj(hidden_states if rows is None else rows.apply(hidden_states)).chunk(2, dim=-1)
        before = self._before(raw, conv)
        x, _ = causal(raw, self.conv1d.weight, self.conv1d.bias, before[:, 1:])
        steps = self.x_proj(x).split([self.rank, self.state, self.state], dim=-1)
        norms: list[Any] = [getattr(self, name, nn.Identity()) for name in self.norms]
        dt, B, C = (norm(part) for norm, part in zip(norms, steps, strict=True))
        dt = time_steps(self.dt_proj(dt), mask=None if rows is None else rows.mask)
        A = -self.A_log.to(dt.dtype).exp()
        if x.shape[1] == 1 and state is not None:
            y, final = selective_step(state.to(dt.dtype), x[:, 0], dt[:, 0], A, B[:, 0], C[:, 0], self.D)
            y = y[:, None]
        else:
            y, final = selective_scan(x, dt, A, B, C, self.D, initial=state)
        self._keep(cache_params, before, raw, final, rows)
        y = self.out_proj(y * F.silu(z))
        return y if rows is None else rows.undo(y)


def _last(rows: Compaction, taps: int) -> Tensor:
    """Which of [taps before, tokens] are the last of each row's: [batch, taps]."""
    return rows.lengths[:, None] + torch.arange(taps, device=rows.lengths.device)
