from __future__ import annotations

import dataclasses
import io
import json
import math
import os
import signal
import subprocess
import sys
import time

import pytest

from thrifty import testing
from thrifty.errors import WorkloadError
from thrifty.report.tuning import print_tuned
from thrifty.search.contender import TuneError
from thrifty.search.tune import plan, tune
from thrifty.studies.events import Noted
from thrifty.studies.store import Store
from thrifty.studies.trial import Trial

WORKLOAD, REFERENCE = "thrifty.testing:workload", testing.workload.reference
ROWS = """
import torch
import thrifty

x = torch.randn(320, 8, generator=torch.Generator().manual_seed(0))
y = (x @ torch.randn(8, 3, generator=torch.Generator().manual_seed(1))).argmax(1)
split = [torch.utils.data.TensorDataset(x[part], y[part]) for part in (slice(256), slice(256, 288), slice(288, None))]
workload = thrifty.Workload(
    name="rows", model=lambda: torch.nn.Linear(8, 3), train=split[0], validation=split[1], test=split[2],
    loss=thrifty.CrossEntropy(), quality=thrifty.Accuracy(), example=lambda n: (x[:n],),
    reference="train(adamw(lr=0.003), epochs=2)", batch_size=32,
)
"""


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """A linear model: a training takes no longer than its process."""
    file = tmp_path_factory.mktemp("workload") / "rows.py"
    file.write_text(ROWS)
    return str(file)


@pytest.fixture(scope="module")
def study(rows, tmp_path_factory):
    """One optimizer, the three trials that bracket, one final seed: the fewest trainings that there can be."""
    place = tmp_path_factory.mktemp("tuned") / "study"
    return place, tune(rows, ["adamw(lr=0.012)"], study=place, trials=3, seeds=1, evaluations=4)


def test_tuning_brackets_the_learning_rate_and_trains_the_best_again(study):
    _, found = study
    (one,) = found.optimizers
    assert sorted(tried.values["lr"] for tried in one.tried) == [0.003, 0.012, 0.048]
    assert one.recipe in {tried.recipe for tried in one.tried}
    top = max(tried.quality for tried in one.tried if tried.quality is not None)
    assert next(tried.quality for tried in one.tried if tried.recipe == one.recipe) == top
    assert ("lr" in one.edges) == (one.recipe != "train(adamw(lr=0.012), epochs=2)")
    assert {"beta2", "weight_decay"} <= {*one.edges}  # for which three trials do not reach
    assert one.final.seeds == found.baseline.seeds == (1,)  # nothing was tuned on it
    assert found.target == found.baseline.quality.value and found.every == 4
    assert one.final.speedup is None or one.final.speedup.low is None  # of one seed there is no claim
    assert found.use == found.reference == REFERENCE


def test_everything_is_kept_and_charged_and_test_is_never_looked_at(study):
    place, found = study
    with Store.open(place) as store:
        trials = store.trials()
        assert len(trials) == 5 and all(trial.status == "done" for trial in trials)
        assert [trial.seed for trial in trials].count(0) == 3
        assert all(trial.test is None and store.scores(trial.id, "test") is None for trial in trials)
        spent = store.spent()
        assert len(spent.only("training").charges) == 5 and spent.only("start", "rehearsal", "evaluation").seconds > 0
        curves = {trial.id: store.rounds(trial.id, "training")[0]["curve"] for trial in trials}
        assert {len(curve) for curve in curves.values()} == {1, 4}
        for trial in trials:
            curve = curves[trial.id]
            assert [point["step"] for point in curve] in ([16], [4, 8, 12, 16])
            assert curve[-1]["quality"] == trial.quality.value
            assert curve[-1]["flops"] == pytest.approx(trial.training.flops)
            assert math.isnan(trial.quality.drop.low)
    apart = spent.only("harness").seconds  # charged when the study is closed
    assert found.spent.seconds == pytest.approx(spent.seconds - apart) and apart > 0


def test_asking_again_trains_nothing(rows, study):
    place, found = study
    heard = []
    again = tune(rows, ["adamw(lr=0.012)"], study=place, trials=3, seeds=1, evaluations=4, listener=heard.append)
    assert dataclasses.replace(again, spent=found.spent) == found
    assert again.spent.only("training", "evaluation", "rehearsal") == found.spent.only("training", "evaluation", "rehearsal")
    assert {type(event) for event in heard} == {Noted}


def test_what_was_found_reads_well_and_is_json(study):
    _, found = study
    told = json.loads(json.dumps(found.to_json()))
    assert told["optimizers"][0]["tried"][0]["values"] == {"lr": 0.012, "beta2": 0.999, "weight_decay": 0.01}
    assert told["spent"]["seconds"] > 0 and told["use"] == REFERENCE
    into = io.StringIO()
    print_tuned(found, into)
    text = " ".join(into.getvalue().split())
    assert "Tried, with one seed, on validation" in text and "seeds 1" in text and REFERENCE in text
    assert ("not tuned" in text) == bool(found.optimizers[0].edges)
    assert "to within 4 steps" in text


def test_a_budget_that_does_not_reach_is_told_before_anything_is_trained(tmp_path):
    with pytest.raises(TuneError, match=r"give at least --budget \d+s"):
        tune(WORKLOAD, ["adamw", "lion"], study=tmp_path / "study", budget=0.5)
    with Store.open(tmp_path / "study") as store:
        assert not store.trials() and not store.spent().only("training").charges


def test_what_cannot_run_is_told_before_there_is_a_study(tmp_path):
    for options in ({"trials": 2}, {"trials": 4, "also": "warmup"}, {"seeds": 0}, {"evaluations": 0}, {"budget": 0.0}):
        with pytest.raises(TuneError):
            tune(WORKLOAD, ["adamw"], study=tmp_path / "study", **options)
    with pytest.raises(TuneError, match="at least one"):
        tune(WORKLOAD, [], study=tmp_path / "study")
    with pytest.raises(WorkloadError, match="not loaded from a file"):
        tune(dataclasses.replace(testing.workload, source=""), ["adamw"], study=tmp_path / "study")
    assert not (tmp_path / "study").exists()


def test_the_plan_is_the_bracket():
    assert plan(WORKLOAD, ["lion"]) == [
        "train(lion, epochs=2)", "train(lion(lr=7.5e-05), epochs=2)", "train(lion(lr=0.0012), epochs=2)"]


@pytest.mark.slow
def test_a_learning_rate_that_diverges_is_an_upper_end_and_is_charged(tmp_path):
    optimizer = "adamw(lr=1e+36)"  # 2.5e35 diverges as well
    found = tune(WORKLOAD, [optimizer], study=tmp_path / "study", trials=3, seeds=1, evaluations=1)
    (one,) = found.optimizers
    assert all(tried.quality is None and "loss" in tried.error for tried in one.tried)
    assert one.final is None and one.recipe == "" and one.edges[0] == "lr" and found.use == REFERENCE
    with Store.open(tmp_path / "study") as store:
        assert len(store.failures()) == 3 and len(store.spent().only("failure").charges) == 3
    print_tuned(found, into := io.StringIO())
    assert into.getvalue().count("diverged") == 3
    again = tune(WORKLOAD, [optimizer], study=tmp_path / "study", trials=3, seeds=1, evaluations=1)
    assert dataclasses.replace(again, spent=found.spent) == found
    assert {charge.kind for charge in again.spent.charges[len(found.spent.charges):]} <= {"harness"}  # of the first call's end


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_budget_gives_every_optimizer_as_many_trials(rows, tmp_path):
    found = tune(rows, ["adamw", "lion"], study=tmp_path / "study", budget=3600, trials=4, seeds=2, evaluations=2)
    assert [len(one.tried) for one in found.optimizers] == [4, 4]
    assert all(one.final.seeds == (1, 2) for one in found.optimizers)
    with pytest.raises(TuneError, match="has room for"):
        tune(rows, ["adamw", "lion"], study=tmp_path / "study", budget=1.0, seeds=2, evaluations=2)


@pytest.mark.slow
def test_killed_and_asked_again_it_goes_on(rows, tmp_path):
    command = [sys.executable, "-m", "thrifty", "tune", rows, "adamw", "--trials", "3", "--seeds", "1",
               "--evaluations", "2", "--study", str(tmp_path / "study"), "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ))
    until = time.monotonic() + 120
    while time.monotonic() < until and len(kept(tmp_path / "study")) < 2:
        time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = kept(tmp_path / "study")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    after = kept(tmp_path / "study")
    assert len(json.loads(done.stdout)["optimizers"][0]["tried"]) == 3
    assert before and all(after[id].created == trial.created for id, trial in before.items())


def kept(place) -> dict[str, Trial]:
    if not (place / "study.sqlite").is_file():
        return {}
    with Store.open(place) as store:
        return {trial.id: trial for trial in store.trials()}
