"""Explore: a frontier under a budget, resumed as if it had never been interrupted."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

import thrifty
from thrifty import testing
from thrifty.search.explore import ExploreError, explore
from thrifty.studies.constraints import Bars
from thrifty.studies.events import RecipeBegan
from thrifty.studies.findings import Findings
from thrifty.studies.store import Store, StoreError

WORKLOAD = "thrifty.testing:workload"


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A space of four recipes, all of which the budget reaches."""
    place = tmp_path_factory.mktemp("explored") / "study"
    heard = []
    found = explore(WORKLOAD, 3600, study=place, bars=Bars.read("5pt"), methods=("onnxruntime",), promote=1,
                    listener=heard.append)
    return place, found, heard


@pytest.fixture(scope="module")
def minute(tmp_path_factory):
    """What a minute leaves, and the seconds that it took."""
    place, began = tmp_path_factory.mktemp("explored") / "study", time.perf_counter()
    found = explore(WORKLOAD, 60, study=place, bars=Bars.read("5pt"), methods=("onnxruntime",), promote=1)
    return place, found, time.perf_counter() - began


def test_a_minute_is_kept_to_and_ends_with_a_frontier(minute):
    place, found, seconds = minute
    assert seconds < 60 * 1.05 + 5 and found.ended in ("budget", "nothing left")
    assert found.trials and found.frontier and Findings.read(place).choice == found.choice


@pytest.mark.slow
def test_everything_is_run_once_and_the_best_is_claimed(study):
    _place, found, heard = study
    assert found.ended == "nothing left"
    assert len({trial.recipe for trial in found.trials}) == 4
    assert all(trial.status == "done" for trial in found.trials)
    claimed = [trial for trial in found.trials if trial.inference.speedup.low is not None]
    assert len(claimed) == 1 and claimed[0].test is not None
    assert found.choice.nearest is claimed[0]  # and recommended where it is faster, which a busy machine may not show
    assert (found.choice.trial is None) == (claimed[0].inference.speedup.verdict != "faster") == (found.choice.keep is not None)
    assert [event.id for event in heard if isinstance(event, RecipeBegan)].count(claimed[0].id) == 2


@pytest.mark.slow
def test_asking_again_runs_nothing(study):
    place, found, _ = study
    heard = []
    again = explore(WORKLOAD, 3600, study=place, bars=Bars.read("5pt"), methods=("onnxruntime",), promote=1,
                    listener=heard.append)
    assert (again.trials, again.frontier, again.choice, again.ended) == (found.trials, found.frontier, found.choice, found.ended)
    assert {event.id for event in heard if isinstance(event, RecipeBegan)} <= {"reference"}


@pytest.mark.slow
def test_a_spent_budget_gives_the_frontier_so_far(study):
    place, found, _ = study
    again = explore(WORKLOAD, 1.0, study=place, bars=Bars.read("5pt"), methods=("onnxruntime",), promote=1)
    assert again.ended == "budget" and again.trials == found.trials


@pytest.mark.slow
def test_the_findings_remember_the_bars(study):
    place, found, _ = study
    kept = Findings.read(place)
    assert kept.bars == Bars.read("5pt") and kept.choice == found.choice and kept.frontier == found.frontier


@pytest.mark.slow
def test_every_trial_says_when_it_pays(study):
    for trial in study[1].trials:
        assert trial.break_even_requests == "never" or trial.break_even_requests >= 0
        if trial.break_even_requests not in ("never", 0):
            assert trial.saved_seconds_per_request > 0


@pytest.mark.slow
def test_sigterm_ends_with_the_frontier_so_far(tmp_path):
    process = begin(tmp_path)
    wait_for(tmp_path / "study", trials=1)
    process.send_signal(signal.SIGTERM)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    told = json.loads(stdout)
    assert told["trials"] and told["bars"] == {"max_drop": "0.05", "max_bytes": None, "max_latency": None,
                                               "minimize": "latency"}
    assert "and the same command resumes" in stderr


def test_an_error_ends_with_the_frontier_so_far(minute, monkeypatch):
    place, found, _ = minute

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys.modules["thrifty.search.exploration"], "alone", full)
    ended = explore(WORKLOAD, 7200, study=place, bars=Bars.read("5pt"), methods=("onnxruntime",), promote=1)
    assert ended.ended == "error" and "No space left" in ended.error
    assert ended.trials == found.trials and ended.choice == found.choice


@pytest.mark.slow
def test_killed_at_twenty_random_moments_loses_at_most_the_run_in_hand(tmp_path):
    """SIGKILL, again and again: nothing that was kept is lost, nothing that was done is done again."""
    draw, known, charged = random.Random(0), {}, 0
    for _ in range(20):
        process = begin(tmp_path)
        try:
            process.wait(draw.uniform(0.5, 8.0))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
        process.communicate()
        if (tmp_path / "study" / "study.sqlite").is_file():
            with Store.open(tmp_path / "study") as store:
                now = {trial.id: trial.created for trial in store.trials() if trial.inference.speedup.pairs == 1}
                charges = len(store.spent().charges)
            assert {id for id in known if id not in now} <= claimed_in(tmp_path)
            assert all(now.get(id, created) == created for id, created in known.items())
            assert charges >= charged
            known, charged = now, charges
    time.sleep(0.5)  # the last child notices that its parent is gone
    process = begin(tmp_path)
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    assert len(json.loads(stdout)["trials"]) == 4
    with Store.open(tmp_path / "study") as store:
        # One training of each text, apart from those in hand when a kill came: at most one a kill, and never two kept.
        for trial in store.trials():
            assert set(store.rounds(trial.id, "screen")) == {0}
        trained = [charge.what for charge in store.spent().charges if charge.kind == "training"]
    assert len(trained) == len(set(trained))


def begin(tmp_path):
    """An exploration of four recipes, in a process of its own."""
    command = [sys.executable, "-m", "thrifty", "explore", WORKLOAD, "--budget", "1h", "--max-drop", "5pt",
               "--methods", "onnxruntime", "--study", str(tmp_path / "study"), "--json"]
    return subprocess.Popen(command, env={**os.environ, "THRIFTY_CACHE": str(tmp_path / "cache")},
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(place, trials):
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        if (place / "study.sqlite").is_file():
            with Store.open(place) as store:
                if len(store.trials()) >= trials:
                    return
        time.sleep(0.2)
    raise AssertionError("no trial came")


def claimed_in(tmp_path):
    with Store.open(tmp_path / "study") as store:
        return {trial.id for trial in store.trials() if trial.inference.speedup.pairs > 1}


# -- answered early -----------------------------------------------------------------------------------------------


def test_a_budget_too_small_for_the_reference_says_how_much_it_needs(tmp_path, monkeypatch):
    monkeypatch.setenv("THRIFTY_CACHE", str(tmp_path / "cache"))
    (tmp_path / "long.py").write_text(
        "import dataclasses\nfrom thrifty.testing import workload as base\n"
        'workload = dataclasses.replace(base, reference="train(adamw, steps=100000)")\n')
    says = r"takes about \d+ s here \(\d+ s at the very least\), but the budget is 30 s: .*--budget \d+s"
    with pytest.raises(ExploreError, match=says):
        explore(str(tmp_path / "long.py"), 30, study=tmp_path / "study")


def test_a_bar_that_the_reference_itself_misses(minute):
    """No drop can be shown to be under what the validation set resolves."""
    place = minute[0]
    with pytest.raises(ExploreError, match=r"the reference itself misses --max-drop .* raise it to 0\.\d+ or more"):
        explore(WORKLOAD, 3600, study=place, bars=Bars.read("0.001pt"), methods=("onnxruntime",))


@pytest.mark.parametrize("arguments, says", [
    ({"budget": 0}, "above 0 seconds"),
    ({"budget": 60, "workers": 1000}, "workers must be 1 to"),
    ({"budget": 60, "methods": ("prun",)}, "did you mean 'prune'"),
])
def test_arguments_that_cannot_be(tmp_path, arguments, says):
    with pytest.raises(thrifty.errors.ThriftyError, match=says):
        explore(WORKLOAD, study=tmp_path / "study", **arguments)
    assert not (tmp_path / "study").exists()


def test_another_seeds_trials_are_other_trials(minute):
    """Seed 0 has run what it could; seed 1 has not even a reference, and its budget is spent."""
    with pytest.raises(ExploreError, match="takes about"):
        explore(WORKLOAD, 1.0, study=minute[0], methods=("onnxruntime",), seed=1)


def test_a_study_of_another_workload_is_refused(minute, tmp_path):
    (tmp_path / "other.py").write_text(
        "import dataclasses\nfrom thrifty.testing import workload as base\n"
        'workload = dataclasses.replace(base, name="other")\n')
    with pytest.raises(StoreError, match="another --study"):
        explore(str(tmp_path / "other.py"), 60, study=minute[0])


@pytest.mark.slow
def test_recipes_are_prepared_side_by_side(tmp_path):
    """Two compilations at once, on processors of their own; the figures are those of one after the other."""
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one processor")
    found = explore(WORKLOAD, 3600, study=tmp_path / "study", methods=("onnxruntime",), promote=0, workers=2)
    assert {trial.status for trial in found.trials} == {"done"}
    assert len(found.trials) == 4
    assert testing.workload.reference
