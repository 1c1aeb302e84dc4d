"""What whitening is worth: `minilm` factored with and without it, judged on test, nothing trained after.

    python benchmarks/low_rank.py --ratios 0.1 0.2

Calibration takes validation inputs, as every run of this workload does; recall is counted on test.
"""

from __future__ import annotations

import argparse
import copy
import time

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from thrifty.measure.environment import environment, now
from thrifty.measure.statistics import paired_drop
from thrifty.posttraining.elements import parameters
from thrifty.posttraining.low_rank.factored import Factored
from thrifty.posttraining.low_rank.low_rank import LowRank
from thrifty.runs.context import make_context
from thrifty.target import Target
from thrifty.workloads.embedded.minilm import workload
from thrifty.workloads.quality import Scores
from thrifty.workloads.workload import Workload


def scores(found: Workload, model: nn.Module) -> Scores:
    with torch.inference_mode():
        return found.quality(lambda inputs: model(*inputs), found.test)


def operations(found: Workload, model: nn.Module) -> float:
    """Floating-point operations of one request."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(*found.example(1))
    return float(counter.get_total_flops())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.1, 0.2])
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    dense = workload.model()
    reference, work, total = scores(workload, dense), operations(workload, dense), parameters(dense)
    print(f"{now()}, {environment()['cpu']}, {environment()['cores']} cores, torch {torch.__version__}\n")
    print("| recipe | parameters | operations | layers factored | recall@10 on test | points lost, 95% interval | plan |\n"
          "| --- | --- | --- | --- | --- | --- | --- |")
    print(f"| as it comes | {total / 1e6:.1f}M | 1.00x | 0 | {100 * reference.value:.1f}% | | |", flush=True)
    for ratio in arguments.ratios:
        for whiten in (True, False):
            method = LowRank(ratio=ratio, whiten=whiten)
            context = make_context(workload, Target(threads=arguments.threads), 0, lambda event: None)
            began = time.perf_counter()
            with torch.no_grad():
                plan = method.plan(dense, context)
            seconds = time.perf_counter() - began
            thin = method.build(copy.deepcopy(dense), plan).eval()
            layers = sum(isinstance(module, Factored) for module in thin.modules())
            after = scores(workload, thin)
            drop = paired_drop(reference, after, higher_is_better=True)
            print(f"| `low_rank(ratio={ratio:g}, whiten={whiten})` | {parameters(thin) / total:.2f}x | "
                  f"{operations(workload, thin) / work:.2f}x | {layers} | {100 * after.value:.1f}% | "
                  f"{100 * drop.value:.1f} [{100 * drop.low:.1f}, {100 * drop.high:.1f}] | {seconds:.0f} s |", flush=True)


if __name__ == "__main__":
    main()
