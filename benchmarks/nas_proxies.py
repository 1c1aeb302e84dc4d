"""Zero-cost proxies judged by the table of all 729 architectures of `nas_cells`, beside parameters and FLOPs.

    python benchmarks/nas_proxies.py --seeds 3

Every architecture is scored at initialization, once a seed: its weights and the batch of training images are drawn from it. What
is told is Spearman's correlation with mean accuracy on validation over the table's seeds; within architectures of the same
number of convolutions too, where size says nothing; and what the proxy's favorite is worth. What the accuracy of one training
correlates with the mean of the table's other seeds is the ceiling.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import nas_cells as cells
import numpy as np
import torch
from nas import Table
from scipy.stats import spearmanr

from thrifty import CrossEntropy
from thrifty.measure.environment import environment, now
from thrifty.training.nas import proxies

LOSS = CrossEntropy()
PROXIES = {
    "parameters (control)": lambda net, batch: proxies.parameters(net),
    "FLOPs (control)": lambda net, batch: proxies.flops(net, (batch[0][0][:1],)),
    "synflow": lambda net, batch: proxies.synflow(net, batch[0]),
    "snip": lambda net, batch: proxies.snip(net, batch, LOSS),
    "grasp": lambda net, batch: proxies.grasp(net, batch, LOSS),
    "gradient norm": lambda net, batch: proxies.grad_norm(net, batch, LOSS),
    "Jacobian covariance": lambda net, batch: proxies.jacobian_covariance(net, batch[0]),
    "naswot": lambda net, batch: proxies.naswot(net, batch[0]),
}


def scored(seed: int, size: int) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """({proxy: [architectures]}, {proxy: seconds of all})."""
    x, y = cells.images()["train"]
    drawn = torch.from_numpy(np.random.default_rng(seed).choice(len(x), size, replace=False))
    batch = ((x[drawn],), y[drawn])
    found = {name: np.zeros(cells.ARCHITECTURES) for name in PROXIES}
    seconds = dict.fromkeys(PROXIES, 0.0)
    for number in range(cells.ARCHITECTURES):
        torch.manual_seed(1_000_000 * seed + number)
        net = cells.net(cells.genotype(number))
        for name, proxy in PROXIES.items():
            began = time.perf_counter()
            found[name][number] = proxy(net, batch)
            seconds[name] += time.perf_counter() - began
    return found, seconds


def within(values: np.ndarray, accuracy: np.ndarray) -> float:
    """Spearman's correlation among architectures of the same number of convolutions, the mean over numbers by their size."""
    counts = np.array([cells.genotype(i).count(2) for i in range(cells.ARCHITECTURES)])
    found = []
    for count in range(len(cells.EDGES)):  # with convolutions everywhere there is one
        same = counts == count
        if np.ptp(values[same]) > 0:
            found.append((float(spearmanr(values[same], accuracy[same])[0]), int(same.sum())))
    return sum(value * n for value, n in found) / sum(n for _, n in found) if found else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--table", type=Path, default=Path(__file__).with_name("nas_table.csv"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    table = Table(arguments.table)
    print(f"{now()}, {environment()['cpu']}, one thread, torch {torch.__version__}, batches of {arguments.batch}\n")
    others = [np.delete(table.values, seed, 1).mean(1) for seed in range(table.values.shape[1])]
    ceiling = [float(spearmanr(table.values[:, seed], rest)[0]) for seed, rest in enumerate(others)]
    print(f"one training against the mean of the others: {', '.join(f'{value:.3f}' for value in ceiling)}; within equal numbers "
          f"of convolutions {', '.join(f'{within(table.values[:, s], rest):.3f}' for s, rest in enumerate(others))}\n")
    done = [scored(seed, arguments.batch) for seed in range(arguments.seeds)]
    print("| proxy | Spearman | by seed | within equal numbers of convolutions | rank of its favorite | ms an architecture |\n"
          "| --- | --- | --- | --- | --- | --- |")
    for name in PROXIES:
        values = [found[name] for found, _ in done]
        every = [float(spearmanr(one, table.means)[0]) for one in values]
        inside = statistics.mean(within(one, table.means) for one in values)
        favorites = [table.rank(int(one.argmax())) for one in values]
        cost = statistics.mean(seconds[name] for _, seconds in done) / cells.ARCHITECTURES
        print(f"| {name} | {statistics.mean(every):.3f} | {', '.join(f'{value:.3f}' for value in every)} | {inside:.3f} | "
              f"{', '.join(map(str, favorites))} | {1e3 * cost:.1f} |", flush=True)


if __name__ == "__main__":
    main()
