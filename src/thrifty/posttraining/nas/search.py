"""One search: alternatives are made, scored and timed, each once and kept; whole models that were chosen are measured too."""

from __future__ import annotations

import copy
import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Callable, Mapping
from typing import Any, final

import torch
from torch import Tensor, nn

from thrifty.posttraining.nas.alternatives import AS_IT_IS, LEFT_OUT, Made, OutOfTime, build, make, reason, within
from thrifty.posttraining.nas.blocks import Block, Call, apart, blocks, calls, names
from thrifty.posttraining.nas.stopwatch import Refused, Stopwatch, peak
from thrifty.posttraining.nas.table import Names, Row, Table, Whole
from thrifty.posttraining.quantization.outputs import Outputs, split
from thrifty.posttraining.quantization.sensitivity import exchanged, held
from thrifty.recipes.context import Context, SearchBudgetSpent
from thrifty.recipes.recipe import Recipe

VALUES = 2**24
"""Numbers in a block's inputs that are held at once, at most."""
REHEARSED = 2
"""Blocks, and alternatives of each, in a rehearsal."""

Data = Callable[[], list[Call]]
"""What a block reads and gives; made when it is first asked for."""


@final
@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of a search.

    Args:
        alternatives: recipes of transforms, and "left out".
        pattern: of the blocks' names.
        engine: that everything is timed in.
        judge: "both", "outputs" or "quality".
        steps: of each distillation.
        seconds: for each alternative.
        throughput: whether batches are timed too.
    """

    alternatives: tuple[str, ...]
    pattern: str
    engine: str
    judge: str
    steps: int
    seconds: float
    throughput: bool


class Search:
    """What is measured of one model.

    Args:
        model: float, in eval mode; blocks of it are exchanged and put back.
        settings: of the search.
        context: that measures.
    """

    def __init__(self, model: nn.Module, settings: Settings, context: Context) -> None:
        self.model, self.settings, self.context = model.eval(), settings, context
        found, self.left = blocks(model, names(model, settings.pattern), context.example)
        self.blocks = found[:REHEARSED] if context.rehearsal else found
        self.made: dict[str, dict[str, Made]] = {one.name: {AS_IT_IS: Made(AS_IT_IS)} for one in self.blocks}
        self._stopwatch = Stopwatch(context, settings.engine, settings.throughput, model)
        with torch.no_grad():
            self._outputs = Outputs(model, split(context)[1])
        self._quality = 0.0

    # -- the table ------------------------------------------------------------------------------------------------

    def table(self) -> Table:
        """Every alternative of every block, made, scored and timed.

        Where the seconds to measure run out, the alternatives that are not measured yet are left out, with that reason.
        """
        if self._judges_quality:
            key, score = self._key("quality"), self.context.score
            assert score is not None
            self._quality = float(self.context.recall(key, lambda: {"quality": score(self.model, key=key)})["quality"])
        if self.context.time is None:
            self.context.progress("nothing is timed here: a block's bytes are used in place of its latency")
        own = self._stopwatch.row(AS_IT_IS, self.model)
        rows: dict[str, tuple[Row, ...]] = {}
        refused: dict[str, dict[str, str]] = {}
        for i, one in enumerate(self.blocks):
            self.context.progress(f"block {i + 1} of {len(self.blocks)}: {one.name}")
            first = self._timed(one, Made(AS_IT_IS), Row(AS_IT_IS, 0.0, *self._sizes(one, Made(AS_IT_IS))))
            found, refused[one.name] = [first], {}
            data = functools.cache(functools.partial(self._calls, one.name))
            for text in self._texts(one):
                try:
                    with within(self.settings.seconds):  # which may end it after its last step too
                        row = self._alternative(one, text, data)
                    found.append(row)
                except SearchBudgetSpent as error:
                    refused[one.name][text] = str(error)
                except Exception as error:  # whatever a transform, an exporter or a backend raises on this block
                    refused[one.name][text] = reason(error)
            rows[one.name] = tuple(found)
        return Table(rows, own, (), refused)

    def _texts(self, one: Block) -> list[str]:
        found = [text for text in self.settings.alternatives if text != LEFT_OUT or one.skippable]
        return found[:REHEARSED] if self.context.rehearsal else found

    def _alternative(self, one: Block, text: str, data: Data) -> Row:
        key = self._key("alternative", one.name, text, "" if text == LEFT_OUT else Recipe.parse(text).hash(),
                        str(self.settings.steps), self.settings.judge)
        kept = self.context.recall(key, lambda: self._decided(one, text, data, key))
        if "refused" in kept:
            raise Refused(kept["refused"])
        tensors = {name: x for name, x in kept.items() if isinstance(x, Tensor)}
        made = Made.of(text, kept["parts"], tensors)
        row = self._timed(one, made, Row(text, 0.0, kept["bytes"], kept["peak"], kept["error"], kept["drop"]))
        self.made[one.name][text] = made
        return row

    def _decided(self, one: Block, text: str, data: Data, key: str) -> dict[str, Any]:
        """An alternative and its scores; or why there is none, which holds as long as the model does."""
        try:
            made = make(self.model.get_submodule(one.name), one, text, data(), self.context, self.settings.steps, key)
            size, peak = self._sizes(one, made)
            error, drop = self._scored({one.name: made}, key)
        except (SearchBudgetSpent, OutOfTime):
            raise
        except Exception as failed:  # whatever the transform raises on this block
            return {"refused": reason(failed)}
        values, tensors = made.to_values()
        return {"parts": values, "bytes": size, "peak": peak, "error": error, "drop": drop, **tensors}

    def _calls(self, name: str) -> list[Call]:
        """What a block reads and gives on calibration data."""
        batches = self.context.calibration()
        return calls(self.model, name, itertools.islice(batches, 1) if self.context.rehearsal else batches, VALUES)

    # -- measures -------------------------------------------------------------------------------------------------

    @property
    def _judges_quality(self) -> bool:
        return self.context.score is not None and self.settings.judge != "outputs"

    def _scored(self, chosen: Mapping[str, Made], key: str) -> tuple[float, float | None]:
        """Error of the outputs, and drop of quality, of the model with these alternatives; None of what does not judge."""
        with exchanged(self.model, self._modules(chosen)), torch.no_grad():
            error = 0.0 if self.settings.judge == "quality" and self._judges_quality else self._outputs.error(self.model)
            if not self._judges_quality:
                return error, None
            assert self.context.score is not None
            return error, self._quality - self.context.score(self.model, key=key)

    def _modules(self, chosen: Mapping[str, Made]) -> dict[str, nn.Module]:
        return {one.name: build(copy.deepcopy(self.model.get_submodule(one.name)), one, chosen[one.name])
                for one in self.blocks if one.name in chosen and chosen[one.name].name != AS_IT_IS}

    def _sizes(self, one: Block, made: Made) -> tuple[float, float]:
        module = build(copy.deepcopy(self.model.get_submodule(one.name)), one, made)
        return float(held(module)), peak(apart(module, one.form), one.example)

    def _timed(self, one: Block, made: Made, row: Row) -> Row:
        if made.name == LEFT_OUT:
            return dataclasses.replace(row, batch=0.0 if self.settings.throughput else None)
        module = apart(build(copy.deepcopy(self.model.get_submodule(one.name)), one, made), one.form)
        batch = self._stopwatch.batch(module, one.example)
        return dataclasses.replace(row, seconds=self._stopwatch.seconds(module, one.example), batch=batch)

    # -- whole models ---------------------------------------------------------------------------------------------

    def whole(self, chosen: Names) -> Whole | None:
        """A chosen model, built and measured; None where the engine does not take it, or it takes too long."""
        try:
            with within(self.settings.seconds):
                return self._whole(chosen)
        except (Refused, OutOfTime) as error:
            self.context.progress(f"{', '.join(chosen)}: {error}")
            return None

    def _whole(self, chosen: Names) -> Whole:
        made = {one.name: self.made[one.name][name] for one, name in zip(self.blocks, chosen, strict=True)}
        with exchanged(self.model, self._modules(made)):
            row = self._stopwatch.row(", ".join(chosen), self.model)
        key = self._key("whole", str(chosen), str(self.settings.steps), self.settings.judge)
        kept = self.context.recall(key, lambda: dict(zip(("error", "drop"), self._scored(made, key), strict=True)))
        return Whole(chosen, dataclasses.replace(row, error=kept["error"], drop=kept["drop"]))

    def _key(self, *parts: str) -> str:
        return hashlib.sha256("\n".join((self.settings.pattern, *parts)).encode()).hexdigest()
