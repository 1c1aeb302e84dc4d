"""Layers that differ from torch's own, as people write them: subclasses, tied weights, hooks, an output of a class."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Named(nn.Linear):
    """A subclass that changes nothing."""


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class Standardized(nn.Linear):
    def forward(self, x):
        weight = self.weight - self.weight.mean(1, keepdim=True)
        return F.linear(x, weight / (weight.std(1, keepdim=True) + 1e-5) / 6, self.bias)


class Named2d(nn.Conv2d):
    """A subclass that changes nothing."""


class Padded2d(nn.Conv2d):
    def forward(self, x):
        return super().forward(F.pad(x, (1, 0, 1, 0)))


class Causal1d(nn.Conv1d):
    def forward(self, x):
        return super().forward(F.pad(x, ((self.kernel_size[0] - 1) * self.dilation[0], 0)))


class Swapped2d(nn.Conv2d):
    """Overrides what the forward calls."""

    def _conv_forward(self, input, weight, bias):
        return super()._conv_forward(input.flip(-1), weight, bias)


class Spectral(nn.Module):
    """Complex weights over frequencies."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, width, 4, dtype=torch.cfloat) / width ** 0.5)

    def forward(self, x):
        f = torch.fft.rfft(x)
        out = torch.zeros_like(f)
        out[..., :4] = torch.einsum("bim,iom->bom", f[..., :4], self.weight)
        return x + torch.fft.irfft(out, n=x.shape[-1])


class Counting(nn.Module):
    """A buffer that every forward changes, in place or by another."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.inplace = inplace
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        if self.inplace:
            self.calls.add_(1)
        else:
            self.calls = self.calls + 1
        return x


class Twice(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.first = self.second = layer

    def forward(self, x):
        return torch.tanh(self.second(torch.relu(self.first(x))))


class Residual(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x):
        return x + self.body(x)


class Tied(nn.Module):
    """Two layers of one weight, or a function that reads a layer's weight by itself."""

    def __init__(self, width: int, how: str) -> None:
        super().__init__()
        self.how, self.a, self.b = how, nn.Linear(width, width), nn.Linear(width, width)
        if how == "tied":
            self.b.weight = self.a.weight

    def forward(self, x):
        h = torch.relu(self.a(x))
        if self.how == "read":
            return F.linear(h, self.a.weight.t(), self.b.bias)
        if self.how == "typed":
            return self.b(h.to(self.a.weight.device))
        return self.b(h)


class Asks(nn.Module):
    """Asks where and of what type a layer's weight is before it calls it, and cannot be traced."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x):
        if x.dtype != self.layer.weight.dtype or bool(x.isnan().any()):
            x = x.float()
        return self.layer(x.to(self.layer.weight.device))


def halved(module, inputs, output):
    return output * 0.5


def tripled(module, inputs):
    return (3 * inputs[0],)


def seen(module, grad_input, grad_output):
    return None


@dataclass
class Answer:
    scores: Tensor
    hidden: Tensor
