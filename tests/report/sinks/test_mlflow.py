"""What is logged to MLflow, read back by its own client."""

import shutil
import sqlite3
from contextlib import closing

import pytest
from tests.report.sinks.events import CLAIMED, FAILED, LOSSES, RECIPE, told

from thrifty.report.sinks.logs import log_to
from thrifty.report.sinks.sink import figures_of

pytest.importorskip("mlflow", reason="mlflow-skinny is not installed")


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    """A database is made once: its tables take seconds."""
    folder = tmp_path_factory.mktemp("mlflow")
    with log_to(f"mlflow:{folder}", study=folder, workload="other"):
        return folder / "mlflow.db"


@pytest.fixture
def study(tmp_path, empty):
    (tmp_path / "mlflow").mkdir()
    shutil.copy(empty, tmp_path / "mlflow")
    return tmp_path


def test_read_back(study):
    with log_to("mlflow", study=study, workload="my digits") as hear:
        for event in told():
            hear(event)
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{study}/mlflow/mlflow.db")
    experiment = client.get_experiment_by_name("my-digits")
    runs = {run.data.tags["thrifty.trial"]: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"reference", "aaa", "bbb"}  # measured again, it is the same run
    best = runs["aaa"]
    assert best.info.status == "FINISHED" and best.data.params["recipe"] == RECIPE
    assert {name: best.data.metrics[name] for name in figures_of(CLAIMED)} == pytest.approx(figures_of(CLAIMED))
    assert best.data.tags["thrifty.inference.speedup.verdict"] == "faster"
    for name, points in LOSSES.items():
        assert [(each.step, each.value) for each in client.get_metric_history(best.info.run_id, name)] == points
    assert runs["bbb"].info.status == "FAILED" and runs["bbb"].data.tags["thrifty.error"] == FAILED.error


def test_a_database_that_goes_away_ends_the_sink_alone(study):
    said = []
    with log_to("mlflow", study=study, workload="digits", say=said.append) as hear:
        with closing(sqlite3.connect(study / "mlflow" / "mlflow.db")) as db:
            db.executescript("DROP TABLE metrics; DROP TABLE latest_metrics")
        for event in told():
            hear(event)
    assert len(said) == 1 and said[0].startswith("mlflow stopped logging: ")
