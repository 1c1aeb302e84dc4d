"""Runs whose trainings are spread over ranks: started here, ended together, resumed, agreed."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from thrifty.errors import RunFailed, ThriftyError
from thrifty.recipes.ranks import Alone
from thrifty.recipes.recipe import Recipe
from thrifty.runs import cache, ranks
from thrifty.runs.job import Job, checkpoint_key, place, spread
from thrifty.runs.launcher import LocalLauncher
from thrifty.runs.preflight import check_ranks
from thrifty.runs.rank import require_agreement
from thrifty.runs.ranks import Elastic, count_here, gang
from thrifty.studies.events import Charged, Event, Stepped
from thrifty.target import Machine, Target
from thrifty.testing import workload
from thrifty.workloads.fingerprint import fingerprint

REFERENCE = "thrifty.testing:workload"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THRIFTY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def job(recipe: str, count: int = 2, seed: int = 0) -> Job:
    return Job(REFERENCE, fingerprint(workload), recipe, seed, Target(), Machine("cpu", count), lower=False)


def test_ranks_are_started_and_their_model_is_the_runs(tmp_path: Path) -> None:
    heard: list[Event] = []
    outcome = LocalLauncher().run(job("train(zero3, adamw, epochs=1) | train(adamw, steps=1)"), heard.append)
    (spread_training, alone) = [event.charge for event in heard
                                if isinstance(event, Charged) and event.charge.kind == "training"]
    assert spread_training.device_seconds >= 2 * spread_training.seconds and alone.device_seconds >= alone.seconds
    assert ("zero3", "share of the parameters' bytes that a rank holds") in [(e.method, e.what) for e in outcome.effects]
    held = next(e for e in outcome.effects if e.method == "zero3")
    assert 0.5 <= held.after < 0.52
    assert place("checkpoints", outcome.checkpoint).is_dir()
    assert not list((cache.directory() / "trainings").iterdir())  # what it kept on its way is gone


# -- death --------------------------------------------------------------------------------------------------------


def rank_processes() -> list[psutil.Process]:
    """Processes of ranks below this one, the youngest last: those that a job's process started, be it forked or not."""
    children = [child for child in psutil.Process().children(recursive=True)
                if "thrifty.runs.process" in " ".join(child.cmdline()) and child.ppid() != os.getpid()]
    return sorted(children, key=lambda child: child.create_time())


def killer(after: int, victim: int) -> tuple[list[Event], Callable[[Event], None]]:
    """A listener that kills a rank once so many events of steps were heard."""
    heard: list[Event] = []
    done = threading.Event()

    def hear(event: Event) -> None:
        heard.append(event)
        steps = sum(isinstance(each, Stepped) for each in heard)
        if steps == after and not done.is_set():
            done.set()
            os.kill(rank_processes()[victim].pid, signal.SIGKILL)

    return heard, hear


SLOW = "train(ddp, adamw, steps=40, batch_size=256, evaluations=0)"


@pytest.mark.slow
def test_a_killed_rank_ends_the_run_with_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    _, hear = killer(2, 1)
    began = time.monotonic()
    with pytest.raises(RunFailed, match=r"rank 1 was killed by signal 9 \(out of memory\?\)"):
        LocalLauncher().run(job(SLOW), hear)
    assert time.monotonic() - began < 100
    time.sleep(0.2)
    assert not rank_processes()


@pytest.mark.slow
def test_killed_ranks_start_again_and_go_on() -> None:
    heard, hear = killer(2, 0)
    LocalLauncher(restarts=1).run(job(SLOW), hear)
    assert any("rank 0 was killed by signal 9" in str(event) and "1 of 1 restarts" in str(event) for event in heard)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ranks_are_killed_twenty_times_and_every_run_ends_well() -> None:
    chance = random.Random(0)
    for time_of_twenty in range(20):
        heard, hear = killer(chance.randint(1, 5), chance.randrange(2))
        outcome = LocalLauncher(restarts=1).run(job(SLOW, seed=time_of_twenty), hear)
        assert place("checkpoints", outcome.checkpoint).is_dir()
        assert any("restarts" in str(event) for event in heard), time_of_twenty


# -- keys, checks -------------------------------------------------------------------------------------------------


def test_a_training_that_is_not_spread_has_one_rank_and_one_key() -> None:
    alone, two = job("train(adamw)", 1), job("train(adamw)", 2)
    assert checkpoint_key(alone, Recipe.parse("train(adamw)")) == checkpoint_key(two, Recipe.parse("train(adamw)"))
    spreading = Recipe.parse("train(ddp, adamw)")
    assert spread(spreading.phases[0]) and not spread(Recipe.parse("prune(ratio=0.5)").phases[0])
    assert checkpoint_key(job("train(ddp, adamw)", 2), spreading) != checkpoint_key(job("train(ddp, adamw)", 4), spreading)
    assert str(Recipe.parse("train(fsdp)")) == "train(zero3)"


@pytest.mark.parametrize(("recipe", "count", "why"), [
    ("train(adamw)", 2,
     "--nproc 2 asks for 2 ranks, but no training in train(adamw) is distributed: add one of ddp, zero1"),
    ("train(ddp, batch_size=6, accumulate=4)", 2, "a batch of 6 cannot be divided over 2 ranks and 4 micro-batches"),
    ("train(zero3(replicas=2))", 3, "zero3(replicas=2) does not divide 3 ranks"),
    ("train(zero2(replicas=4))", 4, "leaves everything on each of 4 ranks: use ddp"),
    ("train(zero3(offload=True))", 1, "one rank or team shards nothing"),
])
def test_what_cannot_be_spread_is_told_before_ranks_start(recipe: str, count: int, why: str) -> None:
    with pytest.raises(ThriftyError) as told:
        check_ranks(workload, Recipe.parse(recipe), count)
    assert why in str(told.value)


@dataclasses.dataclass(frozen=True)
class Told(Alone):
    """Three ranks, one of which has another version."""

    @property
    def count(self) -> int:
        return 3

    def gather(self, value: Any) -> list[Any]:
        return [value, value, {**value, "version of torch": "1.0"}]


def test_ranks_that_disagree_say_on_what() -> None:
    why = r"ranks disagree on the version of torch: rank 0 has 2\.13, rank 2 has 1\.0; give all"
    with pytest.raises(ThriftyError, match=why):
        require_agreement(Told(), {"recipe": "train", "version of torch": "2.13"})
    require_agreement(Alone(), {"recipe": "train"})


# -- torchrun -----------------------------------------------------------------------------------------------------


@pytest.fixture
def _torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1",
                        "MASTER_PORT": "29999"}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("_torchrun")
def test_torchrun_says_how_many_ranks_there_are() -> None:
    assert Elastic.here() == Elastic(1, 2, 1, "127.0.0.1", 29999)
    assert count_here(None) == count_here(2) == 2
    with pytest.raises(ThriftyError, match="--nproc 4 was given, but torchrun started 2 processes"):
        count_here(4)


@pytest.mark.usefixtures("_torchrun")
def test_half_of_torchruns_variables_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASTER_PORT")
    with pytest.raises(ThriftyError, match="start with torchrun, or unset RANK"):
        Elastic.here()


@pytest.mark.usefixtures("_torchrun")
def test_a_port_in_use_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    store = torch.distributed.TCPStore("127.0.0.1", 0, 1, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    here = Elastic.here()
    assert here is not None
    with pytest.raises(ThriftyError, match="is the port taken"):
        here.store()


def test_alone_there_is_no_torchrun() -> None:
    assert Elastic.here() is None and count_here(None) == 1 and count_here(3) == 3
    assert gang(2) == ranks.LocalGang(2)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_torchrun_starts_ranks_too(tmp_path: Path) -> None:
    torchrun = ["torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0"]
    run = ["thrifty", "run", REFERENCE, "train(zero3, adamw, steps=5)", "--pairs", "1", "--study", str(tmp_path / "study")]
    command = [sys.executable, "-m", *torchrun, "-m", *run, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    (trial,) = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert trial["status"] == "done"
    assert "zero3" in {effect["method"] for effect in trial["effects"]}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_run_starts_ranks_on_a_machine_with_nothing_set_up(tmp_path: Path) -> None:
    run = ["thrifty", "run", "digits", "train(ddp, adamw, steps=20)", "--nproc", "2", "--pairs", "1"]
    done = subprocess.run([sys.executable, "-m", *run, "--study", str(tmp_path / "study"), "--json"], capture_output=True,
                          text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout)["status"] == "done"
