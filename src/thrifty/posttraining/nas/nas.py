"""Post-training architecture search: each block of a trained model becomes one of its alternatives, chosen together."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, final

from torch import Tensor, nn

from thrifty.errors import ThriftyError
from thrifty.numerics import graph as graphs
from thrifty.numerics.linears import ready
from thrifty.posttraining.nas import limits as limiting
from thrifty.posttraining.nas.alternatives import AS_IT_IS, LEFT_OUT, Made, build, transforms
from thrifty.posttraining.nas.blocks import Block, Form
from thrifty.posttraining.nas.choosing import Chosen, choose, note, uniform
from thrifty.posttraining.nas.limits import LEAST
from thrifty.posttraining.nas.search import Search, Settings
from thrifty.posttraining.nas.stopwatch import require
from thrifty.posttraining.nas.table import Table, Whole
from thrifty.posttraining.quantization.sensitivity import held
from thrifty.recipes.card import Card
from thrifty.recipes.claim import Claim
from thrifty.recipes.context import Context
from thrifty.recipes.hyperparameters import HyperparameterError, choice, number, pattern, read_text, recipe_texts
from thrifty.recipes.transform import Plan, Transform

ALTERNATIVES = (
    "quantize(w8a8)", "quantize(w4a16, group=32)", "low_rank(ratio=0.25)", "low_rank(ratio=0.5)",
    "prune(ratio=0.25)", "prune(ratio=0.5)", "prune(ratio=0.75)",
    "prune(ratio=0.25) | quantize(w8a8)", "prune(ratio=0.5) | quantize(w8a8)",
)
"""Of a block beside itself and its absence."""


@final
@dataclass(frozen=True)
class Nas(Transform):
    """Choose one alternative for each block of a trained model, all at once, by measured costs.

    1. Alternatives of a block are made by the transforms of the recipes in ``alternatives``, applied to the block alone; float
       ones then learn for a few steps to give what the block gave, on what it read.
    2. Each is scored once, by the error of the model's outputs and by quality on validation, and timed on the target in
       ``engine`` in turns with the model as it is, equal blocks once. One that fails, or takes too long, is left out and listed
       with the reason.
    3. A mixed-integer program picks one a block: least loss, the sum over blocks of error and drop (each in its median),
       under all limits.
    4. What it picked is built and measured whole, beside each alternative in all blocks alike. The table is corrected by what it
       missed, and solved again. The best measured model within the limits is taken.

    Tables, scores and timings are kept: another limit costs no new scoring, a killed search resumes.
    Without a measurable gain the model stays as it is, and the search says so.

    Args:
        limits: what the model may use, separated by commas: ``latency<=2ms``, ``bytes<=40%`` (of the model as it is in the same
            engine), ``memory<=64MB`` (weights, and the largest layer's inputs and outputs), ``throughput>=500/s`` (in batches of
            32), ``drop<=1pt``.
        minimize: what is made small within them: ``loss`` (least change), ``latency`` or ``bytes``; with the latter two limit the
            drop.
        alternatives: recipes of transforms for a block. With ``quantize`` among them nothing can be trained after.
        leave_out: whether a block that gives the shape that it reads may be left out.
        blocks: the modules that are exchanged, a pattern over names; without one, the model's children, and those of containers.
        engine: that everything is timed in; what serves should be the same.
        judge: how single alternatives are scored: ``both``, ``outputs`` alone (where scoring takes long), or ``quality`` alone.
        steps: steps of each alternative's distillation.
        rounds: rounds of solving and measuring at most.
        seconds: for each alternative.

    >>> Nas("latency<=1.5ms, bytes<=30%").limits
    'latency<=1.5ms, bytes<=30%'
    """

    limits: str = read_text("latency<=70%", limiting.read, "limits, as latency<=2ms, bytes<=40%")
    minimize: str = choice("loss", "loss", "latency", "bytes")
    alternatives: tuple[str, ...] = recipe_texts(*ALTERNATIVES)
    leave_out: bool = True
    blocks: str = pattern("")
    engine: str = choice("onnxruntime", "eager", "onnxruntime", "openvino", "inductor", "export")
    judge: str = choice("both", "both", "outputs", "quality")
    steps: int = number(40, 0)
    rounds: int = number(5, 1)
    seconds: float = number(120, 0, open_low=True)

    name: ClassVar[str] = "nas"
    version: ClassVar[int] = 2
    card: ClassVar[Card] = Card(
        family="nas",
        benefit="inference time",
        trade_off="the search: every alternative is built, scored and timed; quality, partly recovered by retraining",
        paper='"Puzzle: Distillation-Based NAS for Inference-Optimized LLMs", Bercovich et al. 2024, arXiv:2411.19146; '
              '"Once-for-All", Cai et al. 2019, arXiv:1908.09791',
        needs=frozenset({"calibration"}),
        requires=frozenset({"module", "float-weights", "trained"}),
    )

    def _check(self) -> None:
        """Refuse hyperparameters that do not go together."""
        if self.minimize != "loss" and not any(limit.what == "drop" for limit in self._limits):
            raise HyperparameterError(f"nas(minimize={self.minimize}): without a limit on drop, the smallest {self.minimize} "
                                      "comes from a useless model; add drop<=1pt to limits")
        if self.judge == "outputs" and any(limit.what == "drop" for limit in self._limits):
            raise HyperparameterError("nas(judge=outputs): drop is a drop in quality; use judge=both, or remove the limit")
        if not self.alternatives and not self.leave_out:
            raise HyperparameterError("nas(alternatives=()): a search space of one has nothing to choose; give alternatives, or "
                                      "leave_out=True")

    @property
    def _limits(self) -> tuple[limiting.Limit, ...]:
        return limiting.read(self.limits)

    @property
    def _phases(self) -> list[Transform]:
        return [phase for text in self.alternatives for phase in transforms(text)]

    @property
    def timed(self) -> bool:
        return True

    @property
    def provides(self) -> frozenset[str]:
        return self.card.provides.union(*(phase.provides for phase in self._phases))

    @property
    def removes(self) -> frozenset[str]:
        return self.card.removes.union(*(phase.removes for phase in self._phases))

    def plan(self, model: nn.Module, context: Context) -> Plan:
        """Search.

        Raises:
            HyperparameterError: hyperparameters that do not go together.
            OutOfReach: no choice keeps to the limits; names the nearest.
            ThriftyError: the pattern names no blocks, an alternative is no transform, or the engine is not installed.
        """
        self._check()
        limited = {limit.what for limit in self._limits}
        if "drop" in limited and context.score is None:
            raise ThriftyError(f"nas(limits={self.limits!r}): the drop is judged by a workload's quality, and there is no "
                               "workload here: run it as a phase of a recipe, or limit something else")
        require(self.engine, self.name, context)
        texts = (*self.alternatives, *((LEFT_OUT,) if self.leave_out else ()))
        settings = Settings(texts, self.blocks, self.engine, self.judge, self.steps if not context.rehearsal else 1, self.seconds,
                            bool(limited.intersection(LEAST)))
        search = Search(ready(copy.deepcopy(model)), settings, context)
        table = search.table()
        for block, why in search.left.items():
            context.progress(f"{block} stays as it is: {why}")
        if context.rehearsal:
            chosen = self._rehearsed(search, table)
        else:
            chosen = choose(table, self._limits, self.minimize, self.rounds, search.whole, uniform(table))
        context.progress(note(chosen))
        return self._planned(search, chosen)

    def _rehearsed(self, search: Search, table: Table) -> Chosen:
        """Whatever the first alternative is: that it can be built and goes on is what a rehearsal shows."""
        names = tuple(rows[-1].name if i == 0 else AS_IT_IS for i, rows in enumerate(table.blocks.values()))
        return Chosen(table, names, search.whole(names) or Whole(names, table.own))

    def _planned(self, search: Search, chosen: Chosen) -> Plan:
        parts: dict[str, Any] = {}
        tensors: dict[str, Tensor] = {}
        for i, (one, name) in enumerate(zip(search.blocks, chosen.names, strict=True)):
            if name != AS_IT_IS:
                made, own = search.made[one.name][name].to_values()
                parts[one.name] = {"alternative": name, "form": dataclasses.asdict(one.form), "wrapped": one.wrapped,
                                   "parts": made, "place": str(i)}
                tensors |= {f"{i}#{key}": tensor for key, tensor in own.items()}
        table = chosen.table
        predictor = {"errors": table.errors(), "table": table.predicted(chosen.names, "latency"),
                     "measured": chosen.whole.row.seconds}
        points = [] if chosen.unchanged else table.frontier()
        values = {"blocks": parts, "unchanged": chosen.unchanged, "chosen": list(chosen.names), "table": table.to_json(),
                  "left": search.left, "predictor": predictor,
                  "frontier": [[list(point.names), point.used, point.loss] for point in points]}
        return Plan(values, tensors)

    def build(self, model: nn.Module, plan: Plan) -> nn.Module:
        model = ready(model)
        for name, values in plan.values["blocks"].items():
            try:
                block = model.get_submodule(name)
            except AttributeError as error:
                raise ThriftyError(f"the plan changes {name}, which this model does not have: it was made for another "
                                   "model") from error
            one = Block(name, Form(**values["form"]), (), False, values["wrapped"])
            own = {key.partition("#")[2]: x for key, x in plan.tensors.items() if key.partition("#")[0] == values["place"]}
            graphs.replace(model, name, build(block, one, Made.of(values["alternative"], values["parts"], own)))
        if any("float-weights" in phase.removes for phase in self._phases):
            for parameter in model.parameters():
                parameter.requires_grad_(False)
        return model

    def list_layers(self, model: nn.Module, plan: Plan) -> list[dict[str, Any]]:
        table = Table.from_json(plan.values["table"])
        return [{"layer": name, "scheme": row.name, "bytes": int(row.bytes), "error": row.error}
                for (name, rows), chosen in zip(table.blocks.items(), plan.values["chosen"], strict=True)
                for row in rows if row.name == chosen]

    def claims(self, before: nn.Module, after: nn.Module) -> tuple[Claim, ...]:
        had, has = float(held(before)), float(held(after))
        return () if had == has else (Claim("bytes of the model", had, has, minimum=0.5 * abs(had - has), probe=bytes_held),)


def bytes_held(model: nn.Module) -> float:
    """Bytes of all parameters and buffers."""
    return float(held(model))
