"""Weights & Biases, offline: ``wandb sync`` sends the runs when someone wants that."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from typing import Any, final

from thrifty.report.sinks.sink import Sink


@final
class WandbSink(Sink):
    """One run a trial; figures are its summary."""

    name, extra = "wandb", "wandb"

    @staticmethod
    def check() -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # which is sent, whatever the mode is
        importlib.import_module("wandb")

    _run: Any = None

    def begin(self, run: str, recipe: str) -> None:
        import wandb

        quiet = wandb.Settings(silent=True, console="off", disable_git=True, disable_code=True, x_disable_stats=True,
                               x_disable_meta=True)
        self._run = wandb.init(project=self.project, id=run, name=recipe[:120] or "the model as it comes", dir=str(self.where),
                               config={"recipe": recipe}, mode="offline", reinit="finish_previous", settings=quiet)

    def step(self, figures: Mapping[str, float], step: int) -> None:
        self._run.log({**figures, "step": step})

    def end(self, settings: Mapping[str, str], figures: Mapping[str, float], failed: bool) -> None:
        self._run.summary.update({**figures, **settings})
        self._run.finish(exit_code=int(failed))
