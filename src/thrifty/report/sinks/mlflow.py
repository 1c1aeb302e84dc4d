"""MLflow: one run a trial in an SQLite file, which ``mlflow server --backend-store-uri sqlite:///...`` shows."""

from __future__ import annotations

import importlib
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import final

from thrifty.report.sinks.sink import Sink

FILE = "mlflow.db"
LONGEST = 5000
"""Characters of a parameter or a tag; MLflow takes some more."""


@final
class MlflowSink(Sink):
    """One experiment a workload; a trial's run is found again by its tag ``thrifty.trial``."""

    name, extra = "mlflow", "mlflow"

    @staticmethod
    def check() -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        importlib.import_module("mlflow")
        importlib.import_module("sqlalchemy")

    def __init__(self, where: Path, project: str) -> None:
        super().__init__(where, project)
        from mlflow.tracking import MlflowClient

        for library in ("mlflow", "alembic"):
            logging.getLogger(library).setLevel(logging.CRITICAL)  # what fails is raised, and told once
        self._client = MlflowClient(f"sqlite:///{(where / FILE).resolve()}")
        found = self._client.get_experiment_by_name(project)
        self._experiment: str = found.experiment_id if found else self._client.create_experiment(
            project, artifact_location=(where / "artifacts").resolve().as_uri())
        self._run = ""

    def begin(self, run: str, recipe: str) -> None:
        known = self._client.search_runs([self._experiment], f"tags.`thrifty.trial` = '{run}'", max_results=1)
        if known:
            self._run = known[0].info.run_id
            self._client.set_terminated(self._run, "RUNNING")
            return
        made = self._client.create_run(self._experiment, run_name=recipe[:250] or "the model as it comes",
                                       tags={"thrifty.trial": run})
        self._run = made.info.run_id
        self._client.log_param(self._run, "recipe", recipe[:LONGEST])

    def step(self, figures: Mapping[str, float], step: int) -> None:
        self._log(figures, step)

    def end(self, settings: Mapping[str, str], figures: Mapping[str, float], failed: bool) -> None:
        self._log(figures, 0)
        for name, text in settings.items():  # tags, not parameters: a trial that is measured again has others
            self._client.set_tag(self._run, f"thrifty.{name}", text[:LONGEST])
        self._client.set_terminated(self._run, "FAILED" if failed else "FINISHED")

    def _log(self, figures: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        self._client.log_batch(self._run, metrics=[Metric(name, value, now, step) for name, value in figures.items()])
