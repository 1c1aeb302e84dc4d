"""Layers that round in training what their integer twins, which `quantize` built, hold in the end."""

from __future__ import annotations

import abc
from typing import Any, final

import torch
from torch import Tensor, nn

from thrifty.numerics.fake import fake_quantize, first_step, learning_gain
from thrifty.numerics.grid import TINY, UINT8_MAX, per_token, rows
from thrifty.numerics.modules import GroupedEmbedding, GroupedLinear, QuantConv, QuantEdge, QuantEmbedding, QuantLinear
from thrifty.numerics.packing import pack


@final
class WeightGrid(nn.Module):
    """The grids of a weight's rows, or of groups within them, while it is trained.

    Learned, a step is s = s_0 |r| with r trained from 1: optimizers that divide a gradient by its size, as Adam does,
    change r by about the learning rate and would change a step of 0.01 by as much. Else a step follows its weights: it
    stays the same share of their extent. Zeros stay. Once settled, integers stay too, and steps alone are learned.

    Args:
        weight: [rows, ...] that the steps were found for.
        step: float32 [rows, groups].
        zero: [rows, groups] of grids over 0..levels; None for symmetric ones over -levels..levels.
        levels: the greatest whole number.
        learned: whether steps are trained.
    """

    step: Tensor
    share: Tensor
    low: Tensor
    high: Tensor
    settled: Tensor
    kept: Tensor

    def __init__(self, weight: Tensor, step: Tensor, zero: Tensor | None, levels: int, learned: bool) -> None:
        super().__init__()
        weight, at = weight.detach().float(), torch.zeros_like(step) if zero is None else zero.float()
        self.register_buffer("low", (-at if zero is not None else at - levels).unsqueeze(2))
        self.register_buffer("high", (levels - at).unsqueeze(2))
        extent = _extent(weight.reshape(*step.shape, -1), signed=zero is None)
        known = (step > 10 * TINY) & (extent > 0)
        step = torch.where(known, step, first_step(weight, float(levels)).unsqueeze(1))
        self.register_buffer("step", step)
        self.register_buffer("share", torch.where(known, step / extent.clamp_min(TINY), 1 / levels))
        self.signed = zero is None
        self.gain = learning_gain(weight.numel() // step.numel(), float(self.high.max()))
        # Buffers, so that a resumed training, or an average of the weights, has the same integers.
        self.register_buffer("settled", torch.tensor(False))
        self.register_buffer("kept", torch.zeros(*step.shape, weight.numel() // step.numel(), dtype=torch.int16))
        # Of one dimension: optimizers take matrices for weights, and decay them.
        self.ratio = nn.Parameter(torch.ones(step.numel())) if learned else None

    def steps(self, weight: Tensor) -> Tensor:
        """float32 [rows, groups], above 0."""
        if self.ratio is not None:
            return (self.step * self.ratio.view_as(self.step)).abs().clamp_min(TINY)
        return (self.share * _extent(weight.detach().float().reshape(*self.step.shape, -1), self.signed)).clamp_min(TINY)

    def forward(self, weight: Tensor) -> Tensor:
        """The weight on its grid, with gradients for it and its steps."""
        return self.rounded(weight.reshape(*self.step.shape, -1), self.steps(weight), slice(None)).reshape(weight.shape)

    def rounded(self, grouped: Tensor, steps: Tensor, at: Tensor | slice) -> Tensor:
        """Some rows of the weight, [..., groups, n], on their grids; ``at`` says which they are."""
        steps = steps.unsqueeze(-1)
        moving = fake_quantize(grouped, steps, self.low[at], self.high[at], self.gain)
        return torch.where(self.settled, (self.kept[at] * steps).to(moving.dtype), moving)

    def numbers(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """(whole numbers of weight's shape as float32, steps [rows, groups]); zeros are not added."""
        steps = self.steps(weight)
        q = torch.clamp(torch.round(weight.float().reshape(self.kept.shape) / steps.unsqueeze(2)), self.low, self.high)
        return torch.where(self.settled, self.kept, q).reshape(weight.shape), steps

    @torch.no_grad()
    def settle(self, weight: Tensor) -> None:
        """Keep the integers that the weight has now."""
        self.kept.copy_(self.numbers(weight)[0].reshape(self.kept.shape))
        self.settled.fill_(True)


def _extent(grouped: Tensor, signed: bool) -> Tensor:
    """[rows, groups]: what a grid has to span of [rows, groups, n]."""
    if signed:
        return grouped.abs().amax(2)
    return grouped.amax(2).clamp_min(0) - grouped.amin(2).clamp_max(0)


class Rounded(nn.Module, abc.ABC):
    """A layer in training, and the integer layer that it will be.

    In eval mode it computes with the very integers that it leaves, so that what is evaluated is what is served.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return self.rounded(x)
        twin: Tensor = self.integer()(x)
        return twin

    @abc.abstractmethod
    def rounded(self, x: Tensor) -> Tensor:
        """The layer on rounded numbers, with gradients as if they had not been rounded."""

    @abc.abstractmethod
    def integer(self) -> nn.Module:
        """The integer layer, holding the present numbers."""


@final
class RoundedEdge(Rounded):
    """Rounds an activation to 256 values on a grid whose step may be learned; its zero stays."""

    step: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, twin: QuantEdge, learned: bool) -> None:
        super().__init__()
        self.twin = twin
        self.register_buffer("step", twin.scale.clone())
        self.register_buffer("low", -twin.zero)
        self.register_buffer("high", UINT8_MAX - twin.zero)
        self.most = float(self.high)
        self.ratio = nn.Parameter(torch.ones(1)) if learned else None

    def steps(self) -> Tensor:
        if self.ratio is None:
            return self.step
        return (self.step * self.ratio).abs().clamp_min(TINY).squeeze()

    def rounded(self, x: Tensor) -> Tensor:
        return fake_quantize(x, self.steps(), self.low, self.high, learning_gain(x[0].numel(), self.most))

    @torch.no_grad()
    def integer(self) -> nn.Module:
        self.twin.scale.copy_(self.steps())
        return self.twin


@final
class RoundedConv(Rounded):
    """A convolution of rounded weights and, behind it, its batch norm where there was one.

    A batch norm scales whole rows, and a row's grid scales with it: f Q(w; s) = Q(f w; f s). So weights are rounded
    before the norm, whose statistics are those of the rounded convolution, and folding changes nothing:

        integers: sign(f) round(w / s);  scale: |f| s;  bias: beta + (b - mean) f,  f = gamma / sqrt(variance + eps)

    Args:
        conv, norm: float.
        twin: what both become.
        entry: rounds the input here, where nothing rounded it before; else the edge that did.
        learned: whether steps are trained.
    """

    def __init__(self, conv: nn.Conv1d | nn.Conv2d, norm: nn.Module | None, twin: QuantConv, entry: RoundedEdge,
                 learned: bool) -> None:
        super().__init__()
        self.conv, self.norm, self.twin, self.entry = conv, norm, twin, entry
        with torch.no_grad():
            step = twin.scale / self._factor().abs().clamp_min(TINY)
            step = torch.where(self._factor() == 0, 0.0, step)  # such rows say nothing of their weights
        self.grid = WeightGrid(conv.weight, step.unsqueeze(1), None, int(twin.weight.abs().max()), learned)

    def _factor(self) -> Tensor:
        """f: float32 [rows]."""
        norm: Any = self.norm
        if norm is None:
            return self.conv.weight.new_ones(len(self.conv.weight))
        root = torch.rsqrt(norm.running_var + norm.eps)
        return root if norm.weight is None else norm.weight * root

    @property
    def weight(self) -> Tensor:
        return self.conv.weight

    def rounded(self, x: Tensor) -> Tensor:
        if self.twin.rounds:
            x = self.entry(x)
        y = self.conv._conv_forward(x, self.grid(self.weight), self.conv.bias)
        return y if self.norm is None else self.norm(y)  # type: ignore[no-any-return]

    @torch.no_grad()
    def integer(self) -> nn.Module:
        norm: Any = self.norm
        q, steps = self.grid.numbers(self.weight)
        factor = self._factor()
        sign = torch.where(factor < 0, -1.0, 1.0)
        bias = torch.zeros_like(factor) if self.conv.bias is None else self.conv.bias
        if norm is not None:
            bias = (bias - norm.running_mean) * factor + (0.0 if norm.bias is None else norm.bias)
        self.twin.weight.copy_(rows(q, sign))
        self.twin.scale.copy_(steps.squeeze(1) * factor.abs())
        self.twin.bias.copy_(bias)
        self.twin.x_scale.copy_(self.entry.steps())
        return self.twin


@final
class RoundedLinear(Rounded):
    """A product of rounded tokens and rounded rows, smoothed as the integer layer is."""

    def __init__(self, linear: nn.Linear, twin: QuantLinear, learned: bool) -> None:
        super().__init__()
        self.linear, self.twin = linear, twin
        self.grid = WeightGrid(linear.weight * twin.smooth, twin.scale.unsqueeze(1), None,
                               int(twin.weight.abs().max()), learned)

    @property
    def weight(self) -> Tensor:
        return self.linear.weight * self.twin.smooth

    def rounded(self, x: Tensor) -> Tensor:
        smoothed = x / self.twin.smooth
        with torch.no_grad():
            q, token = per_token(smoothed)
            change = (q * token - smoothed).to(smoothed.dtype)
        return nn.functional.linear(smoothed + change, self.grid(self.weight), self.linear.bias)

    @torch.no_grad()
    def integer(self) -> nn.Module:
        q, steps = self.grid.numbers(self.weight)
        self.twin.weight.copy_(q)
        self.twin.scale.copy_(steps.squeeze(1))
        if self.twin.bias is not None:
            self.twin.bias.copy_(self.linear.bias)
        return self.twin


@final
class RoundedGroups(Rounded):
    """A product with weights of few bits, rounded in groups; activations stay as they are."""

    def __init__(self, linear: nn.Linear, twin: GroupedLinear, learned: bool) -> None:
        super().__init__()
        self.linear, self.twin = linear, twin
        self.grid = WeightGrid(self.weight, twin.scale, twin.zero, 2**twin.bits - 1, learned)

    @property
    def weight(self) -> Tensor:
        return self.linear.weight if self.twin.smooth is None else self.linear.weight * self.twin.smooth

    def rounded(self, x: Tensor) -> Tensor:
        smoothed = x if self.twin.smooth is None else x / self.twin.smooth.to(x.dtype)
        return nn.functional.linear(smoothed, self.grid(self.weight), self.linear.bias)

    @torch.no_grad()
    def integer(self) -> nn.Module:
        q, steps = self.grid.numbers(self.weight)
        zero = self.twin.zero.repeat_interleave(self.twin.group, 1)
        self.twin.packed.copy_(pack((q + zero).to(torch.uint8), self.twin.bits))
        self.twin.scale.copy_(steps)
        if self.twin.bias is not None:
            self.twin.bias.copy_(self.linear.bias)
        return self.twin


@final
class RoundedEmbedding(Rounded):
    """A table of rounded rows. One that is tied to a linear layer is rounded on that layer's grid.

    Args:
        embedding: float.
        twin: what it becomes.
        tied: the linear layer whose integers it looks up; None where it has its own.
        learned: whether steps are trained.
    """

    def __init__(self, embedding: nn.Embedding, twin: QuantEmbedding | GroupedEmbedding,
                 tied: RoundedLinear | RoundedGroups | None, learned: bool) -> None:
        super().__init__()
        table: Any = twin
        self.embedding, self.twin, self.tied = embedding, table, tied
        self.grid = tied.grid if tied is not None else WeightGrid(
            embedding.weight, table.scale.unsqueeze(1), None, int(table.weight.abs().max()), learned)

    @property
    def weight(self) -> Tensor:
        return self.embedding.weight

    def rounded(self, x: Tensor) -> Tensor:
        steps = self.grid.steps(self.weight)[x]
        return self.grid.rounded(self.embedding(x).unflatten(-1, (steps.shape[-1], -1)), steps, x).flatten(-2)

    @torch.no_grad()
    def integer(self) -> nn.Module:
        if self.tied is not None:
            product = self.tied.integer()
            for name, _ in list(self.twin.named_buffers()):
                setattr(self.twin, name, getattr(product, name))
            return self.twin
        q, steps = self.grid.numbers(self.weight)
        self.twin.weight.copy_(q)
        self.twin.scale.copy_(steps.squeeze(1))
        return self.twin


WEIGHTED = (RoundedConv, RoundedLinear, RoundedGroups, RoundedEmbedding)
"""Layers with a weight on a grid."""
