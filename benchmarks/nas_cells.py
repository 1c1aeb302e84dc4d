"""The cell space of the exhaustive benchmark: 729 architectures, small enough to train them all.

A cell has four nodes; each of its six edges is one of three operations, and both cells of a net are alike. Images are
Fashion-MNIST at 14x14 (Debian's `dataset-fashion-mnist`; FASHION_MNIST names another folder of the four files).
"""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
OPERATIONS = ("skip", "pool", "conv")
ARCHITECTURES = len(OPERATIONS) ** len(EDGES)
WIDTH, CLASSES, SIDE = 8, 10, 14
TRAIN, VALIDATION, TEST = 6000, 5000, 5000
FOLDER = "/usr/share/datasets/fashion-mnist"

Genotype = tuple[int, ...]
"""The operation of each edge."""


def genotype(number: int) -> Genotype:
    """The architecture of that number, from 0."""
    return tuple(number // 3**edge % 3 for edge in range(len(EDGES)))


def number(found: Genotype) -> int:
    return sum(operation * 3**edge for edge, operation in enumerate(found))


def text(found: Genotype) -> str:
    """`conv skip pool ...`, edge by edge."""
    return " ".join(OPERATIONS[operation] for operation in found)


# -- data ---------------------------------------------------------------------------------------------------------


def images() -> dict[str, tuple[Tensor, Tensor]]:
    """{split: (images [n, 1, 14, 14] about mean 0 and deviation 1, labels [n])}; test images come from the test files."""
    folder = Path(os.environ.get("FASHION_MNIST", FOLDER))
    if (folder / "fashion14.npz").is_file():
        kept = np.load(folder / "fashion14.npz")
        pixels, labels = kept["pixels"], kept["labels"]
    else:
        train, test = _read(folder, "train"), _read(folder, "t10k")
        shuffle = np.random.default_rng(0).permutation(len(train[0]))[: TRAIN + VALIDATION]
        pixels = np.concatenate([train[0][shuffle], test[0][:TEST]])
        labels = np.concatenate([train[1][shuffle], test[1][:TEST]])
        pixels = pixels.reshape(-1, SIDE, 2, SIDE, 2).mean((2, 4)).round().astype(np.uint8)
    x = (torch.from_numpy(pixels.astype(np.float32))[:, None] - 72.9) / 85.0
    y = torch.from_numpy(labels.astype(np.int64))
    ends = np.cumsum([TRAIN, VALIDATION, TEST])
    return {name: (x[end - n:end], y[end - n:end])
            for name, n, end in zip(("train", "validation", "test"), (TRAIN, VALIDATION, TEST), ends, strict=True)}


def _read(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    pixels = np.frombuffer(gzip.decompress((folder / f"{name}-images-idx3-ubyte.gz").read_bytes()), np.uint8, offset=16)
    labels = np.frombuffer(gzip.decompress((folder / f"{name}-labels-idx1-ubyte.gz").read_bytes()), np.uint8, offset=8)
    return pixels.reshape(-1, 28, 28), labels


# -- one net ------------------------------------------------------------------------------------------------------


class Convolution(nn.Sequential):
    """ReLU, 3x3 convolution, batch norm."""

    def __init__(self, width: int) -> None:
        super().__init__(nn.ReLU(), nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))


class Pool(nn.AvgPool2d):
    """The mean of 3x3, the border's of fewer."""

    def __init__(self) -> None:
        super().__init__(3, 1, 1, count_include_pad=False)


def operation(kind: int, width: int) -> nn.Module:
    return (nn.Identity, Pool, lambda: Convolution(width))[kind]()


class Cell(nn.Module):
    """Four nodes; each is the sum of the edges into it, and the last is what the cell gives.

    Args:
        edges: a module for each of `EDGES`.
    """

    def __init__(self, edges: list[nn.Module]) -> None:
        super().__init__()
        self.edges = nn.ModuleList(edges)

    def forward(self, x: Tensor) -> Tensor:
        nodes = [x]
        for node in range(1, 4):
            into = [self.edges[i](nodes[start]) for i, (start, end) in enumerate(EDGES) if end == node]
            nodes.append(torch.stack(into).sum(0) if len(into) > 1 else into[0])
        return nodes[-1]


class CellNet(nn.Module):
    """A stem, a cell at 14x14, a convolution of stride 2, a cell of twice the width at 7x7, and a linear layer.

    Args:
        make: (edge's position, width) -> its module.
    """

    def __init__(self, make) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, WIDTH, 3, padding=1, bias=False), nn.BatchNorm2d(WIDTH))
        self.first = Cell([make(i, WIDTH) for i in range(len(EDGES))])
        self.reduce = nn.Sequential(nn.ReLU(), nn.Conv2d(WIDTH, 2 * WIDTH, 3, 2, padding=1, bias=False),
                                    nn.BatchNorm2d(2 * WIDTH))
        self.second = Cell([make(i, 2 * WIDTH) for i in range(len(EDGES))])
        self.head = nn.Linear(2 * WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.reduce(self.first(self.stem(x))))
        return self.head(F.relu(x).mean((2, 3)))


def net(found: Genotype) -> CellNet:
    """The architecture as a plain module."""
    return CellNet(lambda edge, width: operation(found[edge], width))
