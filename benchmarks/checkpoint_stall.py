"""How long a kept state stops a training of two ranks: written while it goes on, and before it goes on.

    python benchmarks/checkpoint_stall.py --ranks 2 --rounds 7

Both kinds keep the state of the same `zero3` training (a net of 28 million parameters, 0.34 GB of parameters and AdamW's
state) in turns, on the disk that TMPDIR is on. The stall is the time in `RanksKeeper.keep`; that of the training steps beside a
write is told too.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
from ranks import started
from torch import nn

from thrifty import AdamW, CrossEntropy, Train
from thrifty.measure.environment import environment, now
from thrifty.recipes.registry import method_class
from thrifty.training.distributed.kept import RanksKeeper
from thrifty.training.ranks import Group
from thrifty.training.session import TrainingSession


def net(width: int, blocks: int) -> nn.Module:
    torch.manual_seed(0)
    row = [nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
           for _ in range(blocks)]
    return nn.Sequential(nn.Linear(100, width), nn.Sequential(*row), nn.Linear(width, 50))


def rank(given: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    with Group(dist.FileStore(given.meet, given.ranks), given.rank, given.ranks) as ranks, tempfile.TemporaryDirectory() as own:
        session = TrainingSession(net(768, 6), [AdamW(), method_class("zero3")()], CrossEntropy(), steps=10_000, ranks=ranks,
                                  settings=Train(clip=None))
        batch = ((torch.randn(8, 100),), torch.arange(8))
        place = Path(ranks.gather(own)[0])
        keepers = {name: RanksKeeper(place / name, ranks, aside=name == "aside") for name in ("aside", "waiting")}
        stalls: dict[str, list[float]] = {name: [] for name in keepers}
        steps: dict[str, list[float]] = {"beside a write": [], "alone": []}

        def step() -> float:
            began = time.perf_counter()
            session.step(batch)
            return time.perf_counter() - began

        for number in range(given.rounds + 1):
            for name, keeper in keepers.items():
                session.step(batch)
                ranks.any(False)
                began = time.perf_counter()
                keeper.keep(session, "a benchmark", {})
                ranks.any(False)
                if number:  # the first makes what the others use again
                    stalls[name].append(time.perf_counter() - began)
                while not keeper.due(True):
                    steps["beside a write"].append(step())
                steps["alone"] += [step() for _ in range(3)]
        for keeper in keepers.values():
            keeper.close()
    if given.rank == 0:
        size = sum(p.numel() for p in session.model.parameters())
        print(f"{now()}, {environment()['cpu']}, {given.ranks} ranks, torch {torch.__version__}; {size / 1e6:.0f}M parameters")
        for name, seconds in (stalls | steps).items():
            print(f"{name}: {1e3 * statistics.median(seconds):.0f} ms, {1e3 * min(seconds):.0f} to {1e3 * max(seconds):.0f} "
                  f"({len(seconds)})")
        ratios = [a / b for a, b in zip(stalls["aside"], stalls["waiting"], strict=True)]
        print(f"stall of one written aside over one waited for: {statistics.median(ratios):.3f}, {min(ratios):.3f} to "
              f"{max(ratios):.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rank", type=int)
    parser.add_argument("--meet")
    given = parser.parse_args()
    if given.rank is not None:
        rank(given)
        return
    sys.exit(started(given.ranks, 1))


if __name__ == "__main__":
    main()
