"""`python-lm`: a transformer language model on the text of Python's own standard library, judged by bits per byte.

Data: the running Python's own library without tests, installed packages and machine-written tables; `python_text` lists
and hashes the files. CPython 3.11.7: 484 files (8.0 MB) to train on, 60 (0.86 MB) for validation, 62 (1.0 MB) for test,
of which 257 and 306 windows are scored. Tokens: byte pairs learned from the training files, 3.3 bytes each.

Model: `LanguageModel`, 8.7 million parameters: 4 layers of width 384 over 256 tokens.

Reference, 2026-11-23, 2 cores of an Intel Xeon with AMX, torch 2.13: trains in 189 s to 2.226 bits per byte on
validation and 2.207 on test (seed 0). An order-2 model of bytes needs 2.69 and 2.68 there; gzip, which sees whole files at
once, 2.08 and 2.14, lzma 1.98 and 2.05. An eager fp32 forward pass of one window takes 38 ms on one thread, scoring
validation 7 s on two.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import ClassVar, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from thrifty.architectures.attention import Attention
from thrifty.errors import WorkloadError
from thrifty.workloads.embedded.python_text import START, VOCABULARY, tokens
from thrifty.workloads.quality import BitsPerByte
from thrifty.workloads.workload import CrossEntropy, SingleStream, Workload

CONTEXT = 256
WINDOWS_PER_FILE = 6
IGNORED = -100


class Block(nn.Module):
    """x + attention(norm(x)), then + mlp(norm(...)); rotary positions, causal attention, GELU."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class LanguageModel(nn.Module):
    """Decoder-only transformer: ids [batch, tokens] int64 -> logits [batch, tokens, vocabulary].

    Args:
        vocabulary, width, layers, heads, hidden: sizes; ``hidden`` is the MLP's.
        context: most tokens.

    >>> LanguageModel(layers=1)(torch.zeros(2, 8, dtype=torch.int64)).shape
    torch.Size([2, 8, 2048])
    """

    tp_plan: ClassVar[Mapping[str, str]] = {
        **{f"blocks.*.{name}": "colwise" for name in ("attention.query", "attention.key", "attention.value", "up")},
        **{f"blocks.*.{name}": "rowwise" for name in ("attention.out", "down")},
    }
    """Matrices that ranks may split, by outputs and by inputs."""

    def __init__(
        self,
        vocabulary: int = VOCABULARY,
        width: int = 384,
        layers: int = 4,
        heads: int = 6,
        hidden: int = 1536,
        context: int = CONTEXT,
    ) -> None:
        super().__init__()
        self.context = context
        self.embedding = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(Block(width, heads, hidden) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.apply(_initialise)
        for name, weight in self.named_parameters():  # GPT-2's: the sum over all layers keeps the size of one
            if name.endswith(("out.weight", "down.weight")):
                nn.init.normal_(weight, std=0.02 / math.sqrt(2 * layers))

    def forward(self, ids: Tensor) -> Tensor:
        if ids.shape[1] > self.context:
            raise WorkloadError(f"this language model takes {self.context} tokens at most, but got {ids.shape[1]}: make it with "
                                "a larger context")
        x = self.embedding(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)


@final
class Windows(Dataset[tuple[Tensor, object]]):
    """A split cut into windows of up to 256 tokens that never cross a file; read at first use.

    A window's inputs are START and all of its tokens but the last, its targets all of its tokens: every token of a
    window is predicted exactly once, the first from START alone, so that bits / bytes is the length of a real code.
    Where a file's last window is shorter, its inputs end in START (causal: without influence) and its targets in
    -100 (not scored).

    Items are (inputs [256], targets [256]) in training, (inputs, (targets, bytes, file)) in validation and test,
    where at most 6 windows of a file are taken, evenly spread: more files say more than more of one file.

    Args:
        split: "train", "validation" or "test".
    """

    def __init__(self, split: str) -> None:
        self.split = split

    @functools.cached_property
    def _windows(self) -> list[tuple[int, int]]:
        """(file, first token) of each window."""
        windows = []
        for file, (ids, _) in enumerate(tokens(self.split)):
            starts = list(range(0, len(ids), CONTEXT))
            if self.split != "train":
                starts = _spread(starts, WINDOWS_PER_FILE)
            windows += [(file, start) for start in starts]
        return windows

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, index: int) -> tuple[Tensor, object]:
        file, start = self._windows[index]
        ids, sizes = (part[start : start + CONTEXT] for part in tokens(self.split)[file])
        inputs, target = window(ids, CONTEXT)
        return inputs, target if self.split == "train" else (target, int(sizes.sum()), file)


def window(ids: np.ndarray, length: int) -> tuple[Tensor, Tensor]:
    """(inputs, targets) of one window's tokens, as `Windows` describes.

    >>> window(np.array([7, 8, 9]), 4)
    (tensor([0, 7, 8, 0]), tensor([   7,    8,    9, -100]))
    """
    inputs = torch.full((length,), START)
    target = torch.full((length,), IGNORED)
    known = torch.from_numpy(ids.astype(np.int64))
    inputs[1 : len(ids)] = known[:-1]
    target[: len(ids)] = known
    return inputs, target


def _spread(items: list[int], most: int) -> list[int]:
    """At most ``most`` of them, evenly spread, the first always among them."""
    return items if len(items) <= most else [items[i * len(items) // most] for i in range(most)]


def example(n: int) -> tuple[Tensor]:
    """n windows of tokens drawn at random: the time of a forward pass does not depend on them."""
    return (torch.randint(VOCABULARY, (n, CONTEXT), generator=torch.Generator().manual_seed(0)),)


workload = Workload(
    name="python-lm",
    model=LanguageModel,
    train=Windows("train"),
    validation=Windows("validation"),
    test=Windows("test"),
    loss=CrossEntropy(ignore_index=IGNORED),
    quality=BitsPerByte(),
    example=example,
    scenario=SingleStream(),
    reference="train(adamw(lr=2e-3), steps=600)",
    batch_size=4,
)
