"""Weights & Biases, offline: ``wandb sync`` sends the runs when someone wants that."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from typing import Any, final

from thrifty.report.sinks.sink import Sink


@final
class WandbSink(Sink):
    """One run each time that a trial is measured, in the trial's group; figures are its summary."""

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
        # Measured again, it is a run of its own: what has been synced under an id is not to be written anew.
        earlier = len(list(self.where.glob(f"wandb/offline-run-*-{run}*")))
        self._run = wandb.init(
            project=self.project, id=f"{run}-{earlier + 1}" if earlier else run, group=run, mode="offline", settings=quiet,
            name=recipe[:120] or "the model as it comes", config={"recipe": recipe}, dir=str(self.where),
            reinit="finish_previous")

    def step(self, figures: Mapping[str, float], step: int) -> None:
        self._run.log({**figures, "step": step})

    def end(self, settings: Mapping[str, str], figures: Mapping[str, float], failed: bool) -> None:
        self._run.summary.update({**figures, **settings})
        self._run.finish(exit_code=int(failed))

    def close(self) -> None:
        import wandb

        wandb.teardown()  # waits for the process that writes: a run that has finished is not in its file yet
