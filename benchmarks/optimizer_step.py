"""A step of Sophia against torch's fused AdamW, or of our Muon against torch's, interleaved, in fresh processes.

    python benchmarks/optimizer_step.py --parameters 1e6 --threads 2
    python benchmarks/optimizer_step.py --parameters 124e6 --threads 2
    python benchmarks/optimizer_step.py --parameters 1.12e9 --device cuda
    python benchmarks/optimizer_step.py --parameters 1e6 --muon --threads 2

The parameters are those of transformer blocks (four tensors of each width's square, two of four times it, eight vectors,
which Muon does not take).
Each process times blocks A B B A; the interval is over processes. Milliseconds are medians over all of them.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim import Optimizer

from thrifty.measure.statistics import pair_log_ratio, ratio_interval
from thrifty.training.optimizers.muon import Orthogonal
from thrifty.training.optimizers.sophia import SophiaOptimizer


def shapes(parameters: float) -> list[tuple[int, ...]]:
    """Of as many blocks as come nearest to so many parameters."""
    width = 128 if parameters < 1e7 else 768 if parameters < 5e8 else 2048
    block: list[tuple[int, ...]] = [*[(width, width)] * 4, (4 * width, width), (width, 4 * width), *[(width,)] * 8]
    size = sum(math.prod(shape) for shape in block)
    return block * max(1, round(parameters / size))


def seconds(step: Callable[[], object], device: str, calls: int) -> float:
    """Of one call, over a block of them."""
    if device == "cpu":
        began = time.perf_counter()
        for _ in range(calls):
            step()
        return (time.perf_counter() - began) / calls
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    first.record()
    for _ in range(calls):
        step()
    last.record()
    torch.cuda.synchronize()
    return first.elapsed_time(last) / 1e3 / calls


def parameters_of(wanted: float, device: str, dtype: torch.dtype) -> list[Tensor]:
    made = [torch.randn(shape, device=device, dtype=dtype).requires_grad_() for shape in shapes(wanted)]
    for p in made:
        p.grad = torch.randn_like(p)
    return made


def child(arguments: argparse.Namespace) -> None:
    """One process: prints the blocks' seconds of both sides."""
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    dtype = getattr(torch, arguments.dtype)
    parameters = parameters_of(arguments.parameters, arguments.device, dtype)
    baseline, ours = (muons if arguments.muon else adamw_and_sophia)(parameters, arguments)
    for _ in range(1 if arguments.muon else 3):
        baseline.step()
        ours.step()
    calls = max(1, math.ceil(0.02 / seconds(baseline.step, arguments.device, 1 if arguments.muon else 2)))
    found: dict[str, list[float]] = {"baseline": [], "ours": []}
    for cycle in range(arguments.cycles):
        for name in ("baseline", "ours", "ours", "baseline") if cycle % 2 == 0 else ("ours", "baseline", "baseline", "ours"):
            step = baseline.step if name == "baseline" else ours.step
            found[name].append(seconds(step, arguments.device, calls))
    print(json.dumps({**found, "elements": sum(p.numel() for p in parameters), "tensors": len(parameters)}))


def adamw_and_sophia(parameters: list[Tensor], arguments: argparse.Namespace) -> tuple[Optimizer, Optimizer]:
    sophia = SophiaOptimizer(parameters, lr=1e-4, weight_decay=0.1, stochastic_rounding=arguments.stochastic_rounding)
    sophia.update_curvature(count=1.0)
    return torch.optim.AdamW(parameters, lr=1e-4, fused=True), sophia


def muons(parameters: list[Tensor], arguments: argparse.Namespace) -> tuple[Optimizer, Optimizer]:
    matrices = [p for p in parameters if p.ndim == 2]
    theirs = torch.optim.Muon(matrices, lr=1e-4, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    return theirs, Orthogonal(matrices, lr=1e-4, weight_decay=0.1, momentum=0.95)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=float, default=1e6)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--muon", action="store_true", help="our Muon against torch's")
    parser.add_argument("--stochastic-rounding", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--cycles", type=int, default=8)
    parser.add_argument("--child", action="store_true")
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments)
        return
    runs = [json.loads(subprocess.run([sys.executable, __file__, *sys.argv[1:], "--child"], check=True,
                                      capture_output=True, text=True).stdout) for _ in range(arguments.pairs)]
    # baseline seconds / side seconds is the speed-up; its inverse, the share of the baseline's time, is what is printed
    share = ratio_interval([-pair_log_ratio(run["baseline"], run["ours"]) for run in runs])
    theirs, mine = (1e3 * statistics.median(x for run in runs for x in run[name]) for name in ("baseline", "ours"))
    elements, size = runs[0]["elements"], 4 if arguments.dtype == "float32" else 2
    where = torch.cuda.get_device_name() if arguments.device == "cuda" else f"CPU, {arguments.threads} threads"
    print(f"{where}, torch {torch.__version__}, {arguments.dtype}, {elements:,} parameters in {runs[0]['tensors']} tensors")
    if arguments.muon:
        print(f"torch's Muon {theirs:.3f} ms; ours {mine:.3f} ms; ours / torch's {share.value:.3f} "
              f"[{share.low:.3f}, {share.high:.3f}], {share.n} processes")
    else:
        moved = elements * (3 * size + 12)
        print(f"AdamW fused {theirs:.3f} ms; Sophia {mine:.3f} ms ({moved / mine / 1e6:.0f} GB/s); "
              f"Sophia / AdamW {share.value:.3f} [{share.low:.3f}, {share.high:.3f}], {share.n} processes")


if __name__ == "__main__":
    main()
