"""Trains every architecture of `nas_cells` and writes the table that searches are judged by.

    python benchmarks/nas_table.py --device cuda --seeds 3 --out benchmarks/nas_table.csv

All architectures of a seed train at once: their weights are stacked, each edge's convolutions run for those architectures alone
that have one there, and Adam works element by element, so that each trains as it would alone. The same seed draws the same
batches for all.
"""

from __future__ import annotations

import argparse
import csv
import math
import time
from pathlib import Path

import nas_cells as cells
import torch
import torch.nn.functional as F
from torch import Tensor, nn

BATCH, RATE, EPOCHS = 128, 3e-3, 10
MOMENTUM = 0.1


class Norm(nn.Module):
    """Batch norm of [models, images, height, width, channels], each model's channels apart."""

    def __init__(self, models: int, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(models, 1, width)), nn.Parameter(torch.zeros(models, 1, width))
        self.register_buffer("mean", torch.zeros(models, 1, width))
        self.register_buffer("variance", torch.ones(models, 1, width))

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(len(x), -1, x.shape[-1])
        mean, variance = self.mean, self.variance
        if self.training:
            variance, mean = torch.var_mean(flat.float(), 1, correction=0, keepdim=True)
            with torch.no_grad():
                self.mean.lerp_(mean, MOMENTUM)
                self.variance.lerp_(variance * flat.shape[1] / (flat.shape[1] - 1), MOMENTUM)
        scale = self.weight * (variance + 1e-5).rsqrt()
        return torch.addcmul((self.bias - mean * scale).to(flat.dtype), flat, scale.to(flat.dtype)).view(x.shape)


class Windows(torch.autograd.Function):
    """[models, images, height, width, channels] -> [models, images, height, width, 9, channels]: what a 3x3 kernel reads."""

    @staticmethod
    def forward(ctx, x: Tensor, stride: int) -> Tensor:
        ctx.shape, ctx.stride = x.shape, stride
        padded = F.pad(x, (0, 0, 1, 1, 1, 1))
        return torch.stack([padded[where] for where in _places(x.shape, stride)], 4)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        models, images, height, width, channels = ctx.shape
        found = gradient.new_zeros(models, images, height + 2, width + 2, channels)
        for k, where in enumerate(_places(ctx.shape, ctx.stride)):
            found[where] += gradient[..., k, :]
        return found[:, :, 1:-1, 1:-1], None


def _places(shape: torch.Size, s: int) -> list[tuple[slice, ...]]:
    high, wide = (shape[2] - 1) // s + 1, (shape[3] - 1) // s + 1
    every = slice(None)
    return [(every, every, slice(i, i + s * (high - 1) + 1, s), slice(j, j + s * (wide - 1) + 1, s))
            for i in range(3) for j in range(3)]


class Conv(nn.Module):
    """3x3 convolutions of [models, images, height, width, channels], each model's weight [9, inputs, outputs] its own."""

    def __init__(self, models: int, inputs: int, outputs: int, stride: int, draw: torch.Generator) -> None:
        super().__init__()
        self.stride = stride
        bound = 1 / math.sqrt(inputs * 9)  # as nn.Conv2d draws
        self.weight = nn.Parameter((torch.rand(models, 9, inputs, outputs, generator=draw) * 2 - 1) * bound)

    def forward(self, x: Tensor) -> Tensor:
        columns = Windows.apply(x, self.stride)
        models, images, high, wide = columns.shape[:4]
        weight = self.weight.to(columns.dtype).flatten(1, 2)
        return torch.bmm(columns.flatten(4).flatten(1, 3), weight).view(models, images, high, wide, -1)


class Edge(nn.Module):
    """One edge of all models: skip, pool or convolution, each for the models that have it."""

    def __init__(self, kinds: Tensor, width: int, draw: torch.Generator) -> None:
        super().__init__()
        for name, kind in (("pools", 1), ("convolutions", 2)):
            self.register_buffer(name, (kinds == kind).nonzero()[:, 0])
        self.conv, self.norm = (Conv(len(self.convolutions), width, width, 1, draw), Norm(len(self.convolutions), width))

    def forward(self, x: Tensor) -> Tensor:
        found = x
        if len(self.pools):
            some = x.index_select(0, self.pools)
            pooled = F.avg_pool2d(some.flatten(0, 1).permute(0, 3, 1, 2), 3, 1, 1, count_include_pad=False)
            found = found.index_copy(0, self.pools, pooled.permute(0, 2, 3, 1).reshape(some.shape))
        if len(self.convolutions):
            some = x.index_select(0, self.convolutions)
            found = found.index_copy(0, self.convolutions, self.norm(self.conv(F.relu(some))))
        return found


class Nets(nn.Module):
    """Every architecture of a list, trained at once.

    Args:
        genotypes: of the architectures.
        seed: of their weights.
        dtype: that activations are in; weights, statistics and sums of squares are float32.
    """

    def __init__(self, genotypes: list[cells.Genotype], seed: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        draw, kinds, n = torch.Generator().manual_seed(seed), torch.tensor(genotypes), len(genotypes)
        self.models, self.dtype = n, dtype
        self.stem, self.stem_norm = Conv(n, 1, cells.WIDTH, 1, draw), Norm(n, cells.WIDTH)
        self.first = nn.ModuleList(Edge(kinds[:, i], cells.WIDTH, draw) for i in range(len(cells.EDGES)))
        self.reduce, self.reduce_norm = Conv(n, cells.WIDTH, 2 * cells.WIDTH, 2, draw), Norm(n, 2 * cells.WIDTH)
        self.second = nn.ModuleList(Edge(kinds[:, i], 2 * cells.WIDTH, draw) for i in range(len(cells.EDGES)))
        bound = 1 / math.sqrt(2 * cells.WIDTH)
        self.head = nn.Parameter((torch.rand(n, 2 * cells.WIDTH, cells.CLASSES, generator=draw) * 2 - 1) * bound)
        self.bias = nn.Parameter(torch.zeros(n, 1, cells.CLASSES))

    def forward(self, images: Tensor) -> Tensor:
        """[images, 1, 14, 14] -> [models, images, classes]."""
        x = images[:, 0, :, :, None].to(self.dtype).expand(self.models, *images.shape[:1], *images.shape[2:], 1)
        x = self.cell(self.first, self.stem_norm(self.stem(x)))
        x = self.cell(self.second, self.reduce_norm(self.reduce(F.relu(x))))
        return torch.baddbmm(self.bias, F.relu(x).float().mean((2, 3)), self.head)

    @staticmethod
    def cell(edges: nn.ModuleList, x: Tensor) -> Tensor:
        nodes = [x]
        for node in range(1, 4):
            into = [edges[i](nodes[start]) for i, (start, end) in enumerate(cells.EDGES) if end == node]
            nodes.append(sum(into[1:], into[0]))
        return nodes[-1]


def train(nets: Nets, data: dict[str, tuple[Tensor, Tensor]], seed: int, steps: int, report: bool = True) -> None:
    x, y = data["train"]
    optimizer = torch.optim.Adam(nets.parameters(), lr=RATE, fused=x.is_cuda)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / steps)))
    draw, order, began = torch.Generator().manual_seed(1000 + seed), torch.empty(0, dtype=torch.int64), time.perf_counter()
    for step in range(steps):
        if len(order) < BATCH:
            order = torch.randperm(len(x), generator=draw)
        rows, order = order[:BATCH].to(x.device), order[BATCH:]
        logits = nets(x[rows])
        loss = F.cross_entropy(logits.flatten(0, 1), y[rows].repeat(nets.models), reduction="sum") / BATCH  # a sum over models
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        if report and step % 50 == 0:
            print(f"seed {seed} step {step} of {steps}: loss {loss.item() / nets.models:.3f}, "
                  f"{time.perf_counter() - began:.1f} s", flush=True)


@torch.no_grad()
def accuracies(nets: Nets, data: tuple[Tensor, Tensor], batch: int = 250) -> Tensor:
    """[models] share of the images that are told right."""
    nets.eval()
    hits = sum((nets(x).argmax(-1) == y).sum(1) for x, y in zip(data[0].split(batch), data[1].split(batch), strict=True))
    nets.train()
    return hits / len(data[1])


def check() -> float:
    """The largest difference of outputs and gradients between stacked nets and plain ones with the same weights."""
    torch.manual_seed(0)
    genotypes = [cells.genotype(number) for number in (0, 37, 364, 500, 728)]
    nets, x, y, worst = Nets(genotypes, 0), torch.randn(6, 1, cells.SIDE, cells.SIDE), torch.randint(0, cells.CLASSES, (6,)), 0.0
    outputs = nets(x)
    (F.cross_entropy(outputs.flatten(0, 1), y.repeat(len(genotypes)), reduction="sum") / len(y)).backward()

    def kernel(weight: Tensor) -> Tensor:
        return weight.permute(2, 1, 0).reshape(weight.shape[2], weight.shape[1], 3, 3)

    for k, found in enumerate(genotypes):
        plain = cells.net(found)
        pairs = [(plain.stem[0].weight, nets.stem.weight, k), (plain.reduce[1].weight, nets.reduce.weight, k)]
        for cell, edges in ((plain.first, nets.first), (plain.second, nets.second)):
            pairs += [(module[1].weight, edge.conv.weight, int((edge.convolutions == k).nonzero()[0, 0]))
                      for edge, module in zip(edges, cell.edges, strict=True) if isinstance(module, cells.Convolution)]
        with torch.no_grad():
            for own, stacked, i in pairs:
                own.copy_(kernel(stacked[i]))
            plain.head.weight.copy_(nets.head[k].T)
            plain.head.bias.copy_(nets.bias[k, 0])
        output = plain(x)
        F.cross_entropy(output, y).backward()
        differences = [output - outputs[k], *(own.grad - kernel(stacked.grad[i]) for own, stacked, i in pairs)]
        worst = max(worst, *(float(difference.detach().abs().max()) for difference in differences))
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=EPOCHS * (cells.TRAIN // BATCH))
    parser.add_argument("--budget", type=float, default=math.inf, help="seconds for all seeds; fewer steps where they do not fit")
    parser.add_argument("--first", type=int, default=cells.ARCHITECTURES, help="train the first so many alone")
    parser.add_argument("--check", action="store_true", help="compare stacked nets with plain ones, and train nothing")
    parser.add_argument("--out", type=Path, default=Path("nas_table.csv"))
    arguments = parser.parse_args()
    if arguments.check:
        print(f"outputs and gradients of stacked and plain nets differ by at most {check():.1e}")
        return
    dtype = torch.bfloat16 if arguments.device == "cuda" else torch.float32
    began = time.perf_counter()
    data = {name: (x.to(arguments.device), y.to(arguments.device)) for name, (x, y) in cells.images().items()}
    genotypes = [cells.genotype(i) for i in range(min(arguments.first, cells.ARCHITECTURES))]
    columns: dict[str, list[float]] = {}
    steps = arguments.steps
    if arguments.budget < math.inf:
        trial = Nets(genotypes, 0, dtype).to(arguments.device)
        train(trial, data, 0, 5, report=False)
        trial.bias.sum().item()  # waits for the device
        first = time.perf_counter()
        train(trial, data, 0, 10, report=False)
        trial.bias.sum().item()
        each = (time.perf_counter() - first) / 10
        steps = min(steps, int((0.9 * arguments.budget - (time.perf_counter() - began)) / arguments.seeds / each))
        print(f"{1e3 * each:.1f} ms a step: {steps} steps", flush=True)
        del trial
    for seed in range(arguments.seeds):
        nets = Nets(genotypes, seed, dtype).to(arguments.device)
        train(nets, data, seed, steps)
        for split in ("validation", "test"):
            columns[f"{split}{seed}"] = [round(float(value), 4) for value in accuracies(nets, data[split])]
        print(f"seed {seed}: best {max(columns[f'validation{seed}']):.4f}, least {min(columns[f'validation{seed}']):.4f}, "
              f"{time.perf_counter() - began:.0f} s", flush=True)
        with arguments.out.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["architecture", *columns])
            writer.writerows(["".join(map(str, found)), *values]
                             for found, *values in zip(genotypes, *columns.values(), strict=True))


if __name__ == "__main__":
    main()
