"""TensorBoard: one folder per trial, which ``tensorboard --logdir`` shows."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, final

from thrifty.report.sinks.sink import Sink


@final
class TensorboardSink(Sink):
    """Curves and figures are scalars; the recipe and where it ran are a text."""

    name, extra = "tensorboard", "tensorboard"

    @staticmethod
    def check() -> None:
        importlib.import_module("tensorboard")

    _writer: Any = None

    def begin(self, run: str, recipe: str) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self.where / run))
        self._writer.add_text("recipe", f"`{recipe}`")

    def step(self, figures: Mapping[str, float], step: int) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def end(self, settings: Mapping[str, str], figures: Mapping[str, float], failed: bool) -> None:
        self.step(figures, 0)
        if settings:
            self._writer.add_text("trial", "\n".join(f"- {name}: `{text}`" for name, text in settings.items()))
        self._writer.flush()
        self._writer.close()
