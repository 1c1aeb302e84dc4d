"""What two workers of Ray gain over one, where each recipe uses one thread.

    python benchmarks/ray_workers.py --recipes 8 --rounds 3

The same trainings of `digits`, each of its own learning rate, on a local cluster of one worker and of two in turns. Nothing is
served from the cache: every turn has one of its own. Seconds are those of the recipes alone, without Ray's start.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from thrifty.measure.environment import environment, now
from thrifty.runs.job import Job
from thrifty.runs.launcher_ray import RayLauncher
from thrifty.target import Machine, Target
from thrifty.workloads.fingerprint import fingerprint
from thrifty.workloads.loading import load_workload


def seconds(workers: int, recipes: list[str]) -> float:
    definition = load_workload("digits")
    with tempfile.TemporaryDirectory() as place:
        os.environ["THRIFTY_CACHE"] = str(Path(place) / "cache")
        launcher = RayLauncher(workers=workers)
        try:
            def run(recipe: str) -> None:
                launcher.run(Job("digits", fingerprint(definition), recipe, 0, Target(), Machine(threads=1), lower=False))

            run("train(adamw, steps=1, evaluations=0)")  # Ray's first worker starts slowly
            began = time.perf_counter()
            with ThreadPoolExecutor(workers) as pool:
                list(pool.map(run, recipes))
            return time.perf_counter() - began
        finally:
            launcher.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    given = parser.parse_args()
    recipes = [f"train(adamw(lr={(i + 1) / 1000:g}), steps={given.steps}, evaluations=0)" for i in range(given.recipes)]
    found: dict[int, list[float]] = {1: [], 2: []}
    for number in range(given.rounds):
        for workers in (1, 2) if number % 2 == 0 else (2, 1):
            found[workers].append(seconds(workers, recipes))
            print(f"{workers} workers: {found[workers][-1]:.1f} s", flush=True)
    gains = [one / two for one, two in zip(found[1], found[2], strict=True)]
    print(f"{now()}, {environment()['cpu']}, {environment()['cores']} cores; {given.recipes} recipes of {given.steps} steps: two "
          f"workers {statistics.median(gains):.2f} times one ({min(gains):.2f} to {max(gains):.2f})")


if __name__ == "__main__":
    main()
