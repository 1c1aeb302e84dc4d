"""How much of the frontier explore finds, for how much of the cost of measuring everything.

    python benchmarks/explore.py measure --study study-all    # every recipe of the space, once: about half an hour
    python benchmarks/explore.py replay --study study-all     # seconds: explore and its rivals on what was measured

The space: `digits`, trained in fp32 or bf16, pruned by five ratios with a distilling recovery, quantized or not, by
three compilers: 60 recipes. A replay asks explore what to run next and answers from the store: the figures that were
measured, the seconds that were charged; a training is paid for by the first recipe that needs it, as in a real run.

Hypervolume: of the drop in quality (up to 5 points), the logarithm of the latency's ratio to eager (up to 2x) and, where
three objectives are asked for, that of the training seconds (up to twice the dearest).
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Callable, Sequence

import moocore
import numpy as np

from thrifty.recipes.recipe import Recipe
from thrifty.report.progress import Progress
from thrifty.runs.opening import open_study
from thrifty.runs.preflight import resolve
from thrifty.runs.runner import Runner
from thrifty.search.alone import alone, composed
from thrifty.search.costs import Costs
from thrifty.search.propose import propose
from thrifty.search.space import Space
from thrifty.studies.constraints import Bars
from thrifty.studies.events import SweepBegan
from thrifty.studies.ledger import Ledger
from thrifty.studies.store import Store
from thrifty.studies.trial import Trial
from thrifty.target import Target
from thrifty.workloads.loading import load_workload

WORST_DROP = 0.05
BARS = Bars()
BATCH = 3
SHARES = (0.1, 0.2, 0.3, 0.4)
METHODS = ("bf16", "distill", "prune", "quantize", "inductor", "onnxruntime", "openvino")


def space_of(workload: str) -> Space:
    """Sixty recipes of `digits`."""
    space = Space.of(load_workload(workload), METHODS)
    keep: dict[str, Callable[[str], bool]] = {
        "length": lambda option: option == "1",
        "place": lambda option: option == "after",
        "recover": lambda option: "distill" in option,
        "last.quantize": lambda option: "bf16" not in option,
        "compile": lambda option: option != "export",
    }
    slots = (dataclasses.replace(slot, parts={option: part for option, part in slot.parts.items()
                                              if keep.get(slot.name, bool)(option)}) for slot in space.slots)
    return dataclasses.replace(space, slots=tuple(slots))


# -- everything, once ---------------------------------------------------------------------------------------------


def measure(workload: str, store: str) -> None:
    definition, target = resolve(workload), Target()
    recipes = sorted(space_of(workload).recipes())
    with open_study(store, definition, target) as (opened, _), Progress() as progress:
        runner = Runner(definition, opened, target=target, listener=progress.hear)
        progress.hear(SweepBegan(len(recipes)))
        for recipe in recipes:
            runner.run(Recipe.parse(recipe), pairs=1)


# -- again, from the store ----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Table:
    """What was measured of every recipe: trials by text, what each cost apart from its phases, and the reference."""

    space: Space
    trials: dict[str, Trial]
    spent: dict[str, Ledger]
    reference: Ledger

    @staticmethod
    def read(workload: str, place: str) -> Table:
        space = space_of(workload)
        with Store.open(place) as store:
            trials = {t.recipe: t for t in store.trials() if t.recipe in space.recipes()}
            missing = len(space.recipes()) - len(trials)
            if missing:
                raise SystemExit(f"{missing} recipes were not measured yet: run `measure` first")
            return Table(space, trials, {t.id: store.spent(t.id) for t in trials.values()}, store.spent("reference"))

    def phases(self, trial: Trial) -> dict[str, float]:
        """{prefix: seconds} of the trial's phases."""
        recipe = Recipe.parse(trial.recipe).transforms
        charges = trial.ledger.only("training", "teacher", "calibration", "search").charges
        return {str(Recipe(recipe.phases[: i + 1])): sum(c.seconds for c in charges if c.what == str(Recipe((phase,))))
                for i, phase in enumerate(recipe)}

    def measuring(self, trial: Trial) -> float:
        """Seconds of what is not shared with another recipe."""
        return (self.spent[trial.id].only("start", "scoring", "timing").seconds
                + trial.ledger.only("compilation").seconds)

    def cost(self, trial: Trial, kept: set[str]) -> float:
        """Seconds that the trial takes where some prefixes are kept; they are kept from then on."""
        new = {prefix: seconds for prefix, seconds in self.phases(trial).items() if prefix not in kept}
        kept.update(new)
        return sum(new.values()) + self.measuring(trial)

    @property
    def start(self) -> float:
        """The reference's compiled baseline and scoring, which everything needs; its training is a phase like any."""
        return self.reference.only("start", "scoring", "compilation").seconds

    def everything(self) -> float:
        kept: set[str] = set()
        return self.start + sum(self.cost(trial, kept) for trial in self.trials.values())


def volume(table: Table, trials: Sequence[Trial], objectives: int) -> float:
    dearest = max(t.training.seconds for t in table.trials.values() if t.training)
    worst = np.array([WORST_DROP, math.log(2), math.log(2 * dearest)])[:objectives]
    points = [(t.quality.drop.value, -math.log(t.inference.speedup.value), math.log(t.training.seconds))[:objectives]
              for t in trials if t.status == "done" and t.quality and t.training and t.inference
              and t.inference.speedup.value]
    inside = [point for point in points if (np.array(point) < worst).all()]
    return float(moocore.hypervolume(np.array(inside), ref=worst)) if inside else 0.0


Next = Callable[[Table, list[Trial], int], list[Recipe]]


def replay(table: Table, next_recipes: Next, seed: int) -> list[tuple[float, float, float]]:
    """[(share of everything's cost, of its hypervolume over two objectives, over three)] after each recipe."""
    whole, everything = table.everything(), list(table.trials.values())
    full = [volume(table, everything, objectives) for objectives in (2, 3)]
    kept: set[str] = set()
    ran: list[Trial] = []
    spent, curve = table.start, []
    while spent < max(SHARES) * whole and (batch := next_recipes(table, ran, seed)):
        for recipe in batch:
            trial = table.trials[str(recipe)]
            spent += table.cost(trial, kept)
            ran.append(trial)
            found = [volume(table, ran, objectives) / full[objectives - 2] for objectives in (2, 3)]
            curve.append((spent / whole, found[0], found[1]))
    return curve


def explores(table: Table, ran: list[Trial], seed: int, sampler: object = None) -> list[Recipe]:
    """What `thrifty explore` would run next."""
    costs = Costs.of(ran, table.spent, table.reference, table.space.reference)
    waiting = sorted(alone(table.space, ran, BARS), key=costs.seconds)
    if waiting:
        return waiting[:1]
    if together := composed(table.space, ran, BARS):
        return sorted(together, key=costs.seconds)
    return sorted(propose(table.space, ran, BARS, BATCH, seed, sampler), key=costs.seconds)


def chance(table: Table, ran: list[Trial], seed: int) -> list[Recipe]:
    """Random search."""
    left = sorted(table.trials.keys() - {t.recipe for t in ran})
    return [Recipe.parse(str(np.random.default_rng([seed, len(ran)]).choice(left)))] if left else []


def tpe(table: Table, ran: list[Trial], seed: int) -> list[Recipe]:
    import optuna

    return explores(table, ran, seed, lambda s: optuna.samplers.TPESampler(seed=s % 2**32, multivariate=True,
                                                                          n_startup_trials=4))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["measure", "replay"])
    parser.add_argument("--workload", default="digits")
    parser.add_argument("--study", required=True)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    if options.what == "measure":
        measure(options.workload, options.study)
        return
    table = Table.read(options.workload, options.study)
    print(f"{len(table.trials)} recipes, {table.everything():.0f} s in all, "
          f"{sum(t.status == 'failed' for t in table.trials.values())} failed; share of the whole hypervolume found, median "
          f"[least, most] of {options.seeds} seeds, and each seed's cost of 95% of it")
    rules = {"explore": explores, "explore with TPE": tpe, "random search": chance}
    curves = {name: [replay(table, rule, seed) for seed in range(options.seeds)] for name, rule in rules.items()}
    for objectives, what in ((1, "quality and latency"), (2, "quality, latency and training")):
        print(f"\n{what:30}" + "".join(f"{f'at {share:.0%}':>22}" for share in SHARES) + "   95% at")
        for name, seeds in curves.items():
            found = [[max((point[objectives] for point in curve if point[0] <= share), default=0.0) for curve in seeds]
                     for share in SHARES]
            reached = sorted(next((point[0] for point in curve if point[objectives] >= 0.95), math.inf) for curve in seeds)
            print(f"{name:30}"
                  + "".join(f"{f'{np.median(row):.3f} [{min(row):.3f}, {max(row):.3f}]':>22}" for row in found)
                  + "   " + " ".join("-" if math.isinf(share) else f"{share:.0%}" for share in reached))


if __name__ == "__main__":
    main()
