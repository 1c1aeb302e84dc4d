"""Searches judged by the table of all 729 architectures of `nas_cells`, at equal cost in trainings.

    python benchmarks/nas.py --seeds 10 > table

Every search names an architecture; the table (`nas_table.csv`, made by `nas_table.py`) says what it is worth: its rank by mean
accuracy on validation over the table's seeds. Architectures within one standard error of the 36th best count with the top 5%,
and how many they are is said. A gradient search is trained here, on the same 6,000 images, and costs what its seconds are in
trainings of single architectures on the same processor. Random search and Optuna's samplers see the table's value of one seed
for each draw, and are judged by the mean like the others.
"""

from __future__ import annotations

import argparse
import csv
import math
import statistics
import time
import warnings
from collections import Counter
from pathlib import Path

import nas_cells as cells
import numpy as np
import torch
from torch import nn
from torch.utils.data import TensorDataset

from thrifty import AdamW, CrossEntropy, fit
from thrifty.measure.environment import environment, now
from thrifty.recipes.phases import Train
from thrifty.training.nas.choice import Choice
from thrifty.training.nas.darts import Darts

TOP = 0.05
BATCH = 128
SEARCHES = {
    "darts(softmax), plain first order": Darts("softmax", rate=0.01),
    "darts(softmax, auxiliary=1, beta=1)": Darts("softmax", rate=0.01, auxiliary=1.0, beta=1.0),
    "darts(dirichlet)": Darts("dirichlet", rate=0.03),
    "darts(dirichlet, auxiliary=1), the cured one": Darts("dirichlet", rate=0.03, auxiliary=1.0),
    "darts(gumbel)": Darts("gumbel", rate=0.03),
    "darts(path)": Darts("path", rate=0.03),
    "darts(softmax, weights=norms)": Darts("softmax", rate=0.01, weights="norms"),
}


class Table:
    """What every architecture is worth."""

    def __init__(self, path: Path) -> None:
        with path.open() as file:
            head, *rows = csv.reader(file)
        columns = [i for i, name in enumerate(head) if name.startswith("validation")]
        self.values = np.array([[float(row[i]) for i in columns] for row in rows])
        self.means = self.values.mean(1)
        self.error = float(np.sqrt(self.values.var(1, ddof=1).mean() / len(columns)))
        self.cut = float(np.sort(self.means)[::-1][math.ceil(TOP * len(rows)) - 1])
        self.top = self.means >= self.cut - self.error

    def rank(self, number: int) -> int:
        """1 is the best."""
        return 1 + int((self.means > self.means[number]).sum())


def space() -> nn.Module:
    """Both cells' edges open; the cells are decided alike."""
    def make(edge: int, width: int) -> nn.Module:
        return Choice({name: cells.operation(kind, width) for kind, name in enumerate(cells.OPERATIONS)}, group=f"edge{edge}",
                      node=f"{width}.{cells.EDGES[edge][1]}")

    return cells.CellNet(make)


def searched(method: Darts, seed: int, data: TensorDataset, epochs: float) -> tuple[int, float]:
    """(the architecture's number, seconds) of one search."""
    torch.manual_seed(seed)
    began = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that skips took over is counted below
        done = fit(space(), [method, AdamW(lr=3e-3)], data, CrossEntropy(), seed=seed, batch_size=BATCH,
                   settings=Train(epochs=epochs))
    genotype = done.plans[-1][1].values["decided"]
    found = tuple(cells.OPERATIONS.index(genotype[f"edge{i}"]) for i in range(len(cells.EDGES)))
    return cells.number(found), time.perf_counter() - began


def alone(data: TensorDataset, steps: int) -> float:
    """Seconds of training one architecture, the mean over three."""
    def one(number: int) -> float:
        began = time.perf_counter()
        fit(cells.net(cells.genotype(number)), [AdamW(lr=3e-3)], data, CrossEntropy(), batch_size=BATCH,
            settings=Train(steps=steps))
        return time.perf_counter() - began

    return statistics.mean(one(number) for number in (121, 364, 607))


def drawn(table: Table, kind: str, draws: int, seed: int) -> int:
    """The architecture that a sampler likes best after so many trainings, each the table's of one seed."""
    seen = table.values[:, seed % table.values.shape[1]]
    if kind == "random":
        numbers = np.random.default_rng(seed).choice(len(seen), draws, replace=False)
        return int(numbers[seen[numbers].argmax()])
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    samplers = {"TPE": optuna.samplers.TPESampler(seed=seed),
                "NSGA-II": optuna.samplers.NSGAIISampler(seed=seed, population_size=10)}

    def objective(trial: optuna.Trial) -> float:
        found = tuple(cells.OPERATIONS.index(trial.suggest_categorical(f"edge{i}", list(cells.OPERATIONS)))
                      for i in range(len(cells.EDGES)))
        trial.set_user_attr("number", cells.number(found))
        return float(seen[cells.number(found)])

    study = optuna.create_study(direction="maximize", sampler=samplers[kind])
    study.optimize(objective, n_trials=draws)
    return int(study.best_trial.user_attrs["number"])


def told(name: str, table: Table, numbers: list[int], cost: str) -> None:
    ranks, inside = [table.rank(number) for number in numbers], sum(bool(table.top[number]) for number in numbers)
    strict = sum(table.means[number] >= table.cut for number in numbers)
    common = Counter(cells.text(cells.genotype(number)) for number in numbers).most_common(1)[0]
    kinds = Counter(operation for number in numbers for operation in cells.genotype(number))
    skip, mean = kinds[0] / kinds.total(), statistics.mean(table.means[number] for number in numbers)
    print(f"| {name} | {cost} | {inside} of {len(numbers)} ({strict} without ties) | {statistics.median(ranks):g} "
          f"({min(ranks)} to {max(ranks)}) | {100 * mean:.2f}% | {100 * skip:.0f}% | "
          f"{common[0]} ({common[1]}) |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--steps", type=int, default=246, help="of the table's trainings")
    parser.add_argument("--only", default="", help="part of the name of the gradient searches to run")
    parser.add_argument("--draws", type=int, nargs="*", default=[2, 5, 10, 20, 45])
    parser.add_argument("--table", type=Path, default=Path(__file__).with_name("nas_table.csv"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    table = Table(arguments.table)
    print(f"{now()}, {environment()['cpu']}, one thread, torch {torch.__version__}\n")
    print(f"{len(table.means)} architectures, standard error of a mean {100 * table.error:.2f} points; the best "
          f"{100 * table.means.max():.2f}%, the median {100 * np.median(table.means):.2f}%; the 36th {100 * table.cut:.2f}%, "
          f"{int(table.top.sum())} count as the top 5%\n")
    print("| search | cost in trainings | in the top 5% | rank: median (range) | mean accuracy | skips | most common |\n"
          "| --- | --- | --- | --- | --- | --- | --- |")
    for kind in ("random", "TPE", "NSGA-II"):
        for draws in arguments.draws:
            if kind == "random" or draws >= 5:
                told(f"{kind}, {draws} draws", table, [drawn(table, kind, draws, seed) for seed in range(arguments.seeds)],
                     f"{draws}")
    data = TensorDataset(*cells.images()["train"])
    one = alone(data, arguments.steps)
    for name, method in SEARCHES.items():
        if arguments.only in name:
            found = [searched(method, seed, data, arguments.epochs) for seed in range(arguments.seeds)]
            cost = statistics.mean(seconds for _, seconds in found) / one
            told(name, table, [number for number, _ in found], f"{cost:.1f}")


if __name__ == "__main__":
    main()
