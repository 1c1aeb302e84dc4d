"""Nets and helpers that the compilers' tests share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from thrifty.artifacts.lowered import Lowered
from thrifty.engines import Engine, open_engine
from thrifty.posttraining.quantize import Quantize
from thrifty.recipes.context import Context


class ConvNet(nn.Module):
    """Odd sizes, a residual sum, a pool, a stride, a depthwise convolution, one input channel."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
                                  nn.MaxPool2d(2))
        self.a, self.b = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.head = nn.Linear(width, 7)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        y = torch.relu(self.b(torch.relu(self.a(y))) + y)
        return self.head(torch.relu(self.depthwise(y)).mean((2, 3)))


class Attention(nn.Module):
    """An encoder's block: embedding, attention with a mask, norms, GELU."""

    def __init__(self, width: int = 48, heads: int = 3, words: int = 300) -> None:
        super().__init__()
        self.heads = heads
        self.table, self.norm1, self.norm2 = nn.Embedding(words, width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.norm1(self.table(ids))
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        seen = mask.bool()[:, None, None, :]
        y = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        x = self.norm2(x + self.out(y.transpose(1, 2).flatten(2)))
        return x + self.down(nn.functional.gelu(self.up(x)))


def images(n: int = 40) -> Tensor:
    return torch.randn(n, 1, 29, 23, generator=torch.Generator().manual_seed(0))


def conv_net(width: int = 24) -> nn.Module:
    torch.manual_seed(0)
    net = ConvNet(width).train()
    net(images())
    return net.eval().requires_grad_(False)


def texts(n: int = 6) -> tuple[Tensor, Tensor]:
    ids = torch.randint(0, 300, (n, 13), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[::2, 9:] = 0
    return ids, mask


def encoder() -> nn.Module:
    torch.manual_seed(0)
    return Attention().eval().requires_grad_(False)


def quantized(net: nn.Module, *inputs: Tensor) -> nn.Module:
    return Quantize()(net, [(inputs, None)]).requires_grad_(False)


def lowered(compiler: Any, net: nn.Module, example: tuple[Tensor, ...], directory: Path,
            shapes: Any = None) -> tuple[Lowered, Engine, int]:
    """Lower, open as a server would; returns the record, the engine and the bytes of its files."""
    directory.mkdir(parents=True, exist_ok=True)
    context = Context(example=example, calibration=lambda: iter(()), shapes=shapes or {})
    record = compiler.lower(net, example, directory, context)
    assert sorted(x.name for x in directory.iterdir()) == sorted(record.files)
    manifest = {"engine": record.engine, "files": dict.fromkeys(record.files), "native": record.native,
                "precision": record.precision, "instruction_set": record.instruction_set,
                "outputs": [{"dtype": x.dtype} for x in record.outputs]}
    engine = open_engine(directory, manifest, trust_native_code=True)
    return record, engine, sum((directory / x).stat().st_size for x in record.files)


def called(engine: Engine, *inputs: Tensor) -> Tensor:
    return torch.from_numpy(np.array(engine.arrays(engine.run(engine.native([x.numpy() for x in inputs])))[0]))


def check_outputs_stay(engine: Engine, x: Tensor) -> None:
    """What an engine gave is not written over by its next call."""
    first = called(engine, x[:2])
    kept, again = first.clone(), called(engine, x[2:4])
    assert torch.equal(first, kept) and torch.equal(kept, called(engine, x[:2])) and not torch.equal(kept, again)


def error(got: Tensor, want: Tensor) -> float:
    """Relative Frobenius error."""
    return float((got - want).norm() / want.norm())
