"""Time and steps to a fixed loss of a language model, each optimizer equally tuned, three seeds.

    python benchmarks/optimizers_lm.py --device cuda --optimizers adamw sophia muon soap

The model is `python-lm`'s architecture (12.6 million parameters in six layers of width 384), its tokens those of the running
Python's own library. Each optimizer gets four learning rates, one seed each, a cosine schedule over the same number of
steps; the best by validation loss is run with two seeds more. The target is the mean final validation loss of AdamW's
best: the table says at which step and after how many seconds each run first came to it, where it did.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time

import numpy as np
import torch
from torch import Tensor

from thrifty.method import TrainingMethod
from thrifty.recipe import Train
from thrifty.registry import method_class
from thrifty.training.loop import Fit
from thrifty.training.mixed_precision import Bf16
from thrifty.workload import CrossEntropy
from thrifty.workloads.python_lm import LanguageModel
from thrifty.workloads.python_text import VOCABULARY, tokens

RATES = {"adamw": (1e-3, 2e-3, 4e-3, 8e-3), "sophia": (3e-4, 6e-4, 1.2e-3, 2.4e-3), "muon": (2e-3, 4e-3, 8e-3, 1.6e-2),
         "soap": (1e-3, 2e-3, 4e-3, 8e-3), "lion": (1e-4, 2e-4, 4e-4, 8e-4), "adafactor": (1e-2, 2e-2, 4e-2, 8e-2),
         "schedule_free": (2e-3, 4e-3, 8e-3, 1.6e-2)}
CONTEXT = 256


@dataclasses.dataclass(frozen=True)
class Curve:
    """Validation loss (nats a token) after steps and seconds of training."""

    seed: int
    points: tuple[tuple[int, float, float], ...]

    @property
    def final(self) -> float:
        return self.points[-1][2]

    def reached(self, loss: float) -> tuple[int, float] | None:
        return next(((step, seconds) for step, seconds, value in self.points if value <= loss), None)


def stream(split: str, device: str) -> Tensor:
    return torch.from_numpy(np.concatenate([ids for ids, _ in tokens(split)]).astype(np.int64)).to(device)


def windows(ids: Tensor, starts: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
    rows = ids[starts[:, None] + torch.arange(CONTEXT + 1, device=ids.device)]
    return (rows[:, :-1],), rows[:, 1:]


def train(method: TrainingMethod, seed: int, ids: Tensor, held: Tensor, arguments: argparse.Namespace) -> Curve:
    torch.manual_seed(seed)
    model = LanguageModel(layers=arguments.layers, width=arguments.width, heads=arguments.width // 64,
                          hidden=4 * arguments.width)
    fit = Fit(model, [method, Bf16()], CrossEntropy(), steps=arguments.steps, settings=Train(warmup=0.1),
              device=arguments.device)
    order = torch.Generator().manual_seed(seed)
    points, spent = [], 0.0
    for step in range(1, arguments.steps + 1):
        starts = torch.randint(len(ids) - CONTEXT - 1, (arguments.batch,), generator=order).to(ids.device)
        began = time.perf_counter()
        fit.step(windows(ids, starts))
        if step % arguments.every == 0 or step == arguments.steps:
            if arguments.device == "cuda":
                torch.cuda.synchronize()
            spent += time.perf_counter() - began
            points.append((step, spent, loss_of(fit.evaluated(), held)))
            fit.model.train()
        else:
            spent += time.perf_counter() - began
    return Curve(seed, tuple(points))


@torch.no_grad()
def loss_of(model: torch.nn.Module, held: Tensor) -> float:
    model.eval()
    starts = torch.arange(0, len(held) - CONTEXT - 1, CONTEXT, device=held.device)
    sums = [CrossEntropy()(model(*batch[0]), batch) for batch in (windows(held, part) for part in starts.split(128))]
    return float(sum(total for total, _ in sums)) / float(sum(weight for _, weight in sums))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--optimizers", nargs="+", default=["adamw", "sophia", "muon", "soap"])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--every", type=int, default=20)
    parser.add_argument("--rates", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--target", type=float, help="of an earlier run, where AdamW is not among the optimizers")
    arguments = parser.parse_args()
    ids, held = stream("train", arguments.device), stream("validation", arguments.device)
    train(make("adamw", 1e-3), 9, ids, held, argparse.Namespace(**{**vars(arguments), "steps": 5}))  # warms the device up
    best: dict[str, tuple[float, list[Curve]]] = {}
    for name in arguments.optimizers:
        first = {lr: train(make(name, lr), 0, ids, held, arguments) for lr in RATES[name][: arguments.rates]}
        print(name, "; ".join(f"lr {lr:g}: {curve.final:.4f}" for lr, curve in first.items()), flush=True)
        lr = min(first, key=lambda rate: first[rate].final)
        more = [train(make(name, lr), seed, ids, held, arguments) for seed in range(1, arguments.seeds)]
        best[name] = lr, [first[lr], *more]
    target = arguments.target or statistics.mean(curve.final for curve in best["adamw"][1])
    where = torch.cuda.get_device_name() if arguments.device == "cuda" else "CPU"
    print(f"{where}, torch {torch.__version__}, {len(ids):,} tokens, vocabulary {VOCABULARY}, {arguments.steps} steps of "
          f"{arguments.batch} x {CONTEXT}; target {target:.4f} nats a token")
    print("| optimizer | lr | final loss, each seed | step at the target | seconds at the target | seconds in all |\n"
          "| --- | --- | --- | --- | --- | --- |")
    for name, (lr, curves) in best.items():
        reached = [curve.reached(target) for curve in curves]
        print(f"| {name} | {lr:g} | {', '.join(f'{c.final:.4f}' for c in curves)} "
              f"| {', '.join(str(r[0]) if r else 'never' for r in reached)} "
              f"| {', '.join(f'{r[1]:.1f}' if r else 'never' for r in reached)} "
              f"| {', '.join(f'{c.points[-1][1]:.1f}' for c in curves)} |")


def make(name: str, lr: float) -> TrainingMethod:
    made = method_class(name)(lr=lr)  # type: ignore[call-arg]
    assert isinstance(made, TrainingMethod)
    return made


if __name__ == "__main__":
    main()
