"""What Sophia's estimator costs a training: tokens a second of a GPT-2-124M-shaped model, AdamW and Sophia interleaved.

    python benchmarks/sophia_overhead.py --device cuda

Sides: AdamW, Sophia with an estimate every ten steps on half a batch and on a quarter. Blocks are whole periods of the
estimator; the ratio is of one process, over its blocks.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from thrifty import TrainingSession
from thrifty.recipes.phases import Train
from thrifty.recipes.training_method import TrainingMethod
from thrifty.training.mixed_precision import Bf16
from thrifty.training.optimizers.adamw import AdamW
from thrifty.training.optimizers.sophia import Sophia
from thrifty.workloads.embedded.python_lm import LanguageModel
from thrifty.workloads.workload import CrossEntropy

PERIOD = 10


def session(method: TrainingMethod, arguments: argparse.Namespace) -> TrainingSession:
    torch.manual_seed(0)
    model = LanguageModel(vocabulary=arguments.vocabulary, width=arguments.width, layers=arguments.layers,
                          heads=arguments.width // 64, hidden=4 * arguments.width, context=arguments.context)
    model.head.weight = model.embedding.weight  # tied, as GPT-2's
    return TrainingSession(model, [method, Bf16()], CrossEntropy(), steps=10_000, settings=Train(warmup=0.1),
                           device=arguments.device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--vocabulary", type=int, default=50_304)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--cycles", type=int, default=4)
    arguments = parser.parse_args()
    sides = {name: session(method, arguments) for name, method in {
        "AdamW": AdamW(), "Sophia, half a batch": Sophia(every=PERIOD, estimator_batch=0.5),
        "Sophia, a quarter": Sophia(every=PERIOD, estimator_batch=0.25)}.items()}
    ids = torch.randint(arguments.vocabulary, (arguments.batch, arguments.context + 1), device=arguments.device)
    batch = ((ids[:, :-1],), ids[:, 1:])
    for side in sides.values():
        for _ in range(PERIOD):
            side.step(batch)
    found: dict[str, list[float]] = {name: [] for name in sides}
    for cycle in range(2 * arguments.cycles):
        for name in list(sides) if cycle % 2 == 0 else reversed(list(sides)):
            if arguments.device == "cuda":
                torch.cuda.synchronize()
            began = time.perf_counter()
            for _ in range(PERIOD):
                loss = sides[name].step(batch)
            float(loss)
            if arguments.device == "cuda":
                torch.cuda.synchronize()
            found[name].append((time.perf_counter() - began) / PERIOD)
    where = torch.cuda.get_device_name() if arguments.device == "cuda" else "CPU"
    parameters = sum(p.numel() for p in sides["AdamW"].model.parameters())
    print(f"{where}, torch {torch.__version__}, eager, bf16 autocast, "
          f"{parameters:,} parameters, batch {arguments.batch} x {arguments.context}")
    for name, seconds in found.items():
        step = statistics.median(seconds)
        against = statistics.median(s / a for s, a in zip(seconds, found["AdamW"], strict=True))
        print(f"{name}: {step * 1e3:.1f} ms a step, {ids[:, 1:].numel() / step:,.0f} tokens/s, "
              f"time {against:.4f} of AdamW's (blocks {min(seconds) * 1e3:.1f} to {max(seconds) * 1e3:.1f} ms)")


if __name__ == "__main__":
    main()
