"""Jobs on a Ray cluster of this machine: lost workers, unlike machines, a Ray that does not start."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from thrifty.errors import RunFailed, ThriftyError
from thrifty.recipes.recipe import Recipe
from thrifty.runs import launcher_ray
from thrifty.runs.job import Job, Outcome, place
from thrifty.runs.launcher import LocalLauncher
from thrifty.runs.launcher_ray import RayLauncher, require_alike, start
from thrifty.runs.runner import Runner, open_study
from thrifty.search.explore import explore
from thrifty.studies.events import Event
from thrifty.target import Machine, Target
from thrifty.testing import workload
from thrifty.workloads.fingerprint import fingerprint


def test_a_ray_that_hangs_or_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    hanging: Any = SimpleNamespace(init=lambda **options: time.sleep(30))
    with pytest.raises(ThriftyError, match="Ray did not start within 0.2 s"):
        start(hanging, 2, 0.2)

    def refuse(**options: Any) -> None:
        assert options["address"] == "nowhere:1"
        raise ConnectionError("no such cluster")

    monkeypatch.setenv("RAY_ADDRESS", "nowhere:1")
    with pytest.raises(ThriftyError, match=r"Ray does not start \(ConnectionError: no such cluster\)"):
        start(SimpleNamespace(init=refuse), 2)  # type: ignore[arg-type]


def test_another_processors_work_is_not_taken() -> None:
    here = {"processor": launcher_ray.processor(), "version": launcher_ray.VERSION}
    require_alike(here)
    with pytest.raises(RunFailed, match="a worker's processor is Z80 but here it is"):
        require_alike({**here, "processor": "Z80"})


def test_processors_are_shared_out_among_jobs_side_by_side() -> None:
    shares = LocalLauncher((0, 1, 2), restarts=1).beside(2)
    assert shares == [LocalLauncher((0, 1), 1), LocalLauncher((2,), 1)]
    assert not LocalLauncher().apart


# -- a cluster of this machine ------------------------------------------------------------------------------------


@pytest.fixture
def launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RayLauncher]:
    monkeypatch.setenv("THRIFTY_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    found = RayLauncher(workers=2)
    yield found
    found.close()


def job(recipe: str) -> Job:
    return Job("thrifty.testing:workload", fingerprint(workload), recipe, 0, Target(), Machine(), lower=False)


def kill_one(done: list[Outcome], after: int) -> None:
    """Kill the worker of a job that runs, once so many are done."""
    while len(done) < after:
        time.sleep(0.05)
    workers = [child for child in psutil.Process().children(recursive=True) if "ray::execute" in " ".join(child.cmdline())]
    os.kill(workers[0].pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_forty_recipes_give_forty_results_though_a_worker_dies(launcher: RayLauncher) -> None:
    assert launcher.workers == 2 and launcher.apart and launcher.beside(2) == [launcher, launcher]
    recipes = [f"train(adamw(lr={(i + 1) / 1000:g}), steps=2, evaluations=0)" for i in range(40)]
    done: list[Outcome] = []
    heard: list[Event] = []
    killer = threading.Thread(target=kill_one, args=(done, 15))
    killer.start()

    def one(recipe: str) -> None:
        done.append(launcher.run(job(recipe), heard.append))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, recipes))
    killer.join()
    assert len({outcome.checkpoint for outcome in done}) == len(done) == 40
    assert all(place("checkpoints", outcome.checkpoint).is_dir() for outcome in done)
    trainings = [event for event in heard if "kind='training'" in str(event)]
    assert len(trainings) == 40  # what the lost worker had begun was charged as lost, and told once
    assert sum("was lost" in str(event) for event in heard) == 1


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_recipe_that_fails_fails_once_and_the_study_goes_on(launcher: RayLauncher, tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="the loss is"):
        launcher.run(job("train(adamw(lr=1e30), steps=5, clip=None)"))
    recipes = [Recipe.parse(f"train(adamw(lr={lr}), steps=3)") for lr in (0.001, 0.002)]
    with open_study(tmp_path / "study", workload, Target()) as (store, _):
        runner = Runner(workload, store, launcher=launcher)
        runner.prepare(recipes)
        trials = [runner.run(recipe, pairs=1) for recipe in recipes]
    assert [trial.status for trial in trials] == ["done", "done"]
    found = explore(workload, 1e6, study=tmp_path / "study", methods=("onnxruntime",), promote=0, launcher=launcher, workers=2)
    assert found.ended == "nothing left" and any("onnxruntime" in trial.recipe for trial in found.trials)
