"""A search among the subnets of a model: Optuna proposes, each is made, scored and timed, the best within the limits stays."""

from __future__ import annotations

import copy
import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from thrifty.errors import MissingExtra
from thrifty.posttraining.nas import alternatives
from thrifty.posttraining.nas.alternatives import OutOfTime, reason
from thrifty.posttraining.nas.batch_norm import renew
from thrifty.posttraining.nas.blocks import Call
from thrifty.posttraining.nas.choosing import GAIN, out_of_reach, over, shown, wanted, within
from thrifty.posttraining.nas.elastic import Space, Subnet, build
from thrifty.posttraining.nas.limits import LEAST, Limit
from thrifty.posttraining.nas.stopwatch import Refused, Stopwatch
from thrifty.posttraining.nas.table import Table, Whole
from thrifty.posttraining.quantization.outputs import Outputs, split
from thrifty.recipes.context import Context, SearchBudgetSpent

FINALISTS = 3
"""Subnets that are distilled when the search is over."""
STARTUP = 10
"""Trials that TPE draws at random before it learns; and how many subnets of NSGA-II are one generation."""
ROWS = 32
"""Requests of a batch that is distilled on."""


@final
@dataclass(frozen=True)
class Made:
    """A subnet: how it is made again of the model.

    Args:
        values: of `Space.decide`.
        tensors: statistics, and weights where it was distilled, by name.
    """

    values: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


AS_IT_IS = Made({"left_out": {}, "cutting": None, "kernels": {}}, {})


@final
@dataclass(frozen=True)
class Found:
    """What a search ends with.

    Args:
        table: of whole models that were measured.
        whole: the chosen one; the model as it is where ``unchanged`` says why.
        made: how it is made.
        unchanged: "" where a subnet was chosen.
        refused: {subnet: why it cannot be}.
    """

    table: Table
    whole: Whole
    made: Made
    unchanged: str
    refused: Mapping[str, str]


@final
class Sampling:
    """One search.

    Args:
        space: of subnets.
        limits: to keep to.
        minimize: "loss", "latency" or "bytes".
        engine: that everything is timed in.
        steps: of the finalists' distillation.
        seconds: for each subnet.
        context: that measures.
    """

    def __init__(self, space: Space, limits: Sequence[Limit], minimize: str, engine: str, steps: int, seconds: float,
                 context: Context) -> None:
        self.space, self.limits, self.minimize, self.context = space, limits, minimize, context
        self.steps, self.seconds = steps, seconds
        self._stopwatch = Stopwatch(context, engine, any(limit.what in LEAST for limit in limits), space.model)
        self._learn, held_out = split(context)
        with torch.no_grad():
            self._outputs = Outputs(space.model, held_out)
        self._quality = self._scored_whole()
        if context.time is None:
            context.progress("nothing is timed here: a model's bytes are used in place of its latency")
        self._own = Whole((), self._stopwatch.row("as it is", space.model))
        self._made: dict[tuple[str, ...], Made] = {(): AS_IT_IS}
        self._wholes: dict[tuple[str, ...], Whole] = {(): self._own}
        self._refused: dict[tuple[str, ...], str] = {}

    def _scored_whole(self) -> float:
        score, key = self.context.score, self._key("quality")
        return 0.0 if score is None else float(self.context.recall(key, lambda: {
            "quality": score(self.space.model, key=key)})["quality"])

    # -- the search -----------------------------------------------------------------------------------------------

    def search(self, sampler: str, trials: int) -> Found:
        """Measure as many subnets, all of them where there are no more, then distil the best.

        Raises:
            OutOfReach: none is within the limits; names the nearest.
        """
        try:
            if self.space.size <= trials:
                for subnet in self.space.every():
                    self.measured(subnet)
            else:
                self._sampled(sampler, trials)
            self._distilled()
        except SearchBudgetSpent as error:
            self.context.progress(f"{error}; the best of {len(self._wholes)} models is taken")
        return self._found()

    def rehearsed(self) -> Found:
        """The first subnet that can be, whatever it is worth: that it is built and goes on is what a rehearsal shows."""
        for subnet in self.space.uniform():
            if (whole := self.measured(subnet)) is not None and whole.names:
                return Found(self._table(), whole, self._made[whole.names], "", {})
        return Found(self._table(), self._own, AS_IT_IS, "no subnet can be made", {})

    def _sampled(self, sampler: str, trials: int) -> None:
        study = _study(sampler, self.context.seed)
        keys = {variable.key: variable.options for variable in self.space.variables}
        for subnet in (self.space.whole, *self.space.uniform()):
            study.enqueue_trial({key: options.index(subnet[key]) for key, options in keys.items()}, skip_if_exists=True)
        optuna = _optuna()
        for i in range(trials):
            trial = study.ask()
            whole = self.measured({key: options[trial.suggest_int(key, 0, len(options) - 1)] for key, options in keys.items()})
            if whole is None:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
                continue
            for limit in self.limits:
                trial.set_constraint(limit.what, over(whole.row, limit, self._own.row))
            study.tell(trial, self._figure(whole))
            if (i + 1) % 16 == 0:
                self.context.progress(f"{i + 1} of {trials} subnets")

    def _figure(self, whole: Whole) -> float:
        return self._table().figure(whole.row, self.minimize)

    def _distilled(self) -> None:
        """The best subnets learn to give what the whole model gave; each counts as another subnet."""
        if not self.steps or self.context.distil is None:
            return
        best = sorted((whole for names, whole in self._wholes.items() if names and self._keeps(whole)), key=self._figure)
        for whole in best[:FINALISTS]:
            self._taken((*whole.names, f"distilled for {self.steps} steps"), functools.partial(self._learned, whole))

    def _keeps(self, whole: Whole) -> bool:
        """Within the limits, but for the drop, which distilling wins back."""
        return within([whole], [limit for limit in self.limits if limit.what != "drop"], self._own.row, lambda _: 0.0) is not None

    def _learned(self, whole: Whole, key: str) -> Made:
        assert self.context.distil is not None
        made = self._made[whole.names]
        pieces = max(1, len(self._learn[0]) // ROWS)
        batches = list(zip(*(x.tensor_split(pieces) for x in self._learn), strict=True))
        with torch.no_grad():
            examples = [Call(batch, self.space.model(*batch)) for batch in batches]
        done = self.context.distil(self._built(made), examples, steps=self.steps, key=key)
        return Made(made.values, {name: x.detach().clone().contiguous() for name, x in done.student.state_dict().items()
                                  if x.is_floating_point()})

    # -- single subnets ---------------------------------------------------------------------------------------------

    def measured(self, subnet: Subnet) -> Whole | None:
        """A subnet, made, scored and timed; None where it cannot be, or the engine does not take it."""
        return self._taken(self.space.told(subnet), lambda key: self._renewed(self.space.decide(subnet)))

    def _renewed(self, values: Mapping[str, Any]) -> Made:
        model = self._built(Made(values, {}))
        return Made(values, renew(model, self._learn))

    def _taken(self, names: tuple[str, ...], make: Callable[[str], Made]) -> Whole | None:
        if names in self._wholes or names in self._refused:
            return self._wholes.get(names)
        try:
            with alternatives.within(self.seconds):  # which may end it after its last step too
                found = self._measured(names, make)
            self._made[names], self._wholes[names] = found
        except (Refused, OutOfTime) as error:
            self._refused[names] = str(error)
        return self._wholes.get(names)

    def _measured(self, names: tuple[str, ...], make: Callable[[str], Made]) -> tuple[Made, Whole]:
        key = self._key("subnet", *names, self.space.elastic.structure, self.space.elastic.criterion)
        kept = self.context.recall(key, lambda: self._decided(make, key))
        if "refused" in kept:
            raise Refused(kept["refused"])
        made = Made(kept["values"], {name: x for name, x in kept.items() if isinstance(x, Tensor)})
        row = self._stopwatch.row(", ".join(names), self._built(made))
        return made, Whole(names, dataclasses.replace(row, error=kept["error"], drop=kept["drop"]))

    def _decided(self, make: Callable[[str], Made], key: str) -> dict[str, Any]:
        """A subnet and its scores; or why there is none, which holds as long as the model does."""
        try:
            made = make(key)
            model = self._built(made)
            with torch.no_grad():
                error = self._outputs.error(model)
            drop = None if self.context.score is None else self._quality - self.context.score(model, key=key)
        except (SearchBudgetSpent, OutOfTime):
            raise
        except Exception as failed:  # whatever a model's own code raises at sizes that it did not expect
            return {"refused": reason(failed)}
        return {"values": dict(made.values), "error": error, "drop": drop, **made.tensors}

    def _built(self, made: Made) -> nn.Module:
        return build(copy.deepcopy(self.space.model), made.values, made.tensors)

    # -- what is chosen -------------------------------------------------------------------------------------------

    def _table(self) -> Table:
        wholes = tuple(whole for names, whole in self._wholes.items() if names)
        return Table({}, self._own.row, wholes)

    def _found(self) -> Found:
        table, refused = self._table(), {", ".join(names): why for names, why in self._refused.items()}
        if why := self._no_gain(table):
            return Found(table, self._own, AS_IT_IS, why, refused)
        everything = (self._own, *table.wholes)
        best = within(everything, self.limits, self._own.row, lambda row: table.figure(row, self.minimize))
        if best is None:
            raise out_of_reach(everything, self.limits, self._own.row, lambda whole: ", ".join(whole.names) or "as it is")
        why = "the model as it is meets the limits, and nothing better does" if best is self._own else ""
        return Found(table, best, self._made[best.names], why, refused)

    def _no_gain(self, table: Table) -> str:
        if not table.wholes:
            return f"no subnet can be served; {next(iter(self._refused.values()), 'none was measured')}"
        for what in wanted(self._own.row, self.limits, self.minimize):
            own = self._own.row.of(what)
            if own - min(whole.row.of(what) for whole in table.wholes) <= GAIN * own:
                return (f"no measured gain: no subnet saves a significant amount of {what}, out of "
                        f"{shown(what, self._own.row.shown(what))}")
        return ""

    def _key(self, *parts: str) -> str:
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def note(found: Found) -> str:
    """What was chosen, in a few words."""
    if found.unchanged:
        return f"unchanged: {found.unchanged}"
    own, row = found.table.own, found.whole.row
    lost = "" if row.drop is None else f"; quality on validation moves by {-row.drop:.4g}"
    return (f"chosen of {len(found.table.wholes)} subnets: {', '.join(found.whole.names)}; {shown('latency', row.seconds)} for "
            f"{shown('latency', own.seconds)}, {shown('bytes', row.bytes)} for {shown('bytes', own.bytes)}{lost}")


def _study(sampler: str, seed: int) -> Any:
    samplers = _optuna().samplers
    made = (samplers.NSGAIISampler(seed=seed % 2**32, population_size=STARTUP) if sampler == "nsga2"
            else samplers.TPESampler(seed=seed % 2**32, n_startup_trials=STARTUP))
    return _optuna().create_study(sampler=made)


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise MissingExtra("optuna", "explore") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna
