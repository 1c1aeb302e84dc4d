"""Elastic subnets: a trained model without some of its blocks, channels and kernels' borders, found by sampling."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, ClassVar, final

from torch import nn

from thrifty.errors import ThriftyError
from thrifty.numerics.plain import bake, told
from thrifty.posttraining.elements import rows
from thrifty.posttraining.nas import elastic
from thrifty.posttraining.nas import limits as limiting
from thrifty.posttraining.nas.nas import bytes_held
from thrifty.posttraining.nas.sampling import AS_IT_IS, Sampling, note
from thrifty.posttraining.nas.stopwatch import require
from thrifty.posttraining.pruning.structures import KINDS
from thrifty.recipes.card import Card
from thrifty.recipes.claim import Claim
from thrifty.recipes.context import Context
from thrifty.recipes.hyperparameters import HyperparameterError, choice, number, read_text
from thrifty.recipes.transform import Plan, Transform


def shares(text: str) -> tuple[float, ...]:
    """Shares of channels from their text; 1, the width as it is, is always among those of a space and is left out here.

    Raises:
        ThriftyError: one is no number above 0 and up to 1.

    >>> shares("0.5, 0.75, 1"), shares("1")
    ((0.5, 0.75), ())
    """
    try:
        found = sorted({float(part) for part in text.split(",")})
    except ValueError as error:
        raise ThriftyError(f"{text!r} are not shares: write 0.5,0.75,1") from error
    if not all(0 < share <= 1 for share in found):
        raise ThriftyError(f"{text!r}: a share of channels must be above 0 and at most 1")
    return tuple(share for share in found if share < 1)


@final
@dataclass(frozen=True)
class Subnets(Transform):
    """Choose a subnet of a trained model under limits: fewer channels, fewer blocks, smaller kernels, found by sampling.

    1. What can differ: of each group of channels that leave together (as ``prune`` finds them) the most important share; in each
       container the number of blocks that are left out, the least missed first; each convolution's kernel, cropped to its
       center. What the model's own code counts on stays.
    2. Optuna proposes subnets, seeded, under the limits as constraints; the model as it is, every share in all groups alike and
       the smallest of all come first. A space no larger than ``trials`` is tried whole.
    3. Weights stay as they are. Batch norms' statistics are taken anew for every subnet, on calibration data. Each is then scored
       by the error of its outputs and by quality on validation, and timed whole in ``engine``.
    4. The three best learn, for ``steps`` steps, to give what the whole model gave. The best measured model is taken.

    What was made, scored and timed is kept: a killed search resumes, and a subnet that another search
    proposes again costs nothing. Without a measurable gain the model stays as it is, and the search says so.

    Args:
        limits: what the model may use, as ``nas`` has it: ``latency<=2ms, bytes<=40%, drop<=1pt``.
        minimize: what is made small within them: ``loss`` (error of the outputs, and drop of quality), ``latency`` or ``bytes``;
            with the latter two limit the drop.
        width: shares of channels that a group may keep, as 0.5,0.75,1; 1 alone for no elastic width.
        depth: whether blocks that give the shape that they read may be left out.
        kernel: whether kernels may be cropped, to every smaller odd size.
        structure: whose channels leave: ``channels``, ``heads``, ``residual``, or ``width`` for all three; see ``prune``.
        criterion: by which channels are ranked: ``magnitude``, ``activation`` or ``taylor``; see ``prune``.
        round_to: every width is a multiple of it; heads leave one by one.
        trials: the maximum number of proposed subnets.
        sampler: ``tpe`` or ``nsga2``.
        engine: that everything is timed in; what serves should be the same.
        steps: of the distillation of the best three; 0 leaves the weights as they are.
        seconds: for each subnet.

    >>> Subnets("latency<=60%, bytes<=50%", width="0.25,0.5,1").width
    '0.25,0.5,1'
    """

    limits: str = read_text("latency<=70%", limiting.read, "limits, as latency<=2ms, bytes<=40%")
    minimize: str = choice("loss", "loss", "latency", "bytes")
    width: str = read_text("0.5,0.75,1", shares, "shares of channels above 0 and up to 1, as 0.5,0.75,1")
    depth: bool = True
    kernel: bool = True
    structure: str = choice("channels", *KINDS)
    criterion: str = choice("magnitude", "magnitude", "activation", "taylor")
    round_to: int = number(8, 1)
    trials: int = number(64, 2)
    sampler: str = choice("tpe", "tpe", "nsga2")
    engine: str = choice("onnxruntime", "eager", "onnxruntime", "openvino", "inductor", "export")
    steps: int = number(100, 0)
    seconds: float = number(120, 0, open_low=True)

    name: ClassVar[str] = "subnets"
    version: ClassVar[int] = 2
    card: ClassVar[Card] = Card(
        family="nas",
        benefit="inference time",
        trade_off="the search: every subnet is built, scored and timed whole; quality, partly recovered by retraining",
        paper='"Once-for-All: Train One Network and Specialize it for Efficient Deployment", Cai et al. 2019, arXiv:1908.09791; '
              '"BigNAS", Yu et al. 2020, arXiv:2003.11142',
        needs=frozenset({"calibration"}),
        requires=frozenset({"module", "float-weights", "trained"}),
        provides=frozenset({"pruned"}),
        refuses=frozenset({"mixture"}),  # as prune, whose groups these are
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (shares(self.width) or self.depth or self.kernel):
            raise HyperparameterError("subnets(width=1, depth=False, kernel=False): a search space of one has nothing to choose; "
                                      "let one of them vary")

    def _check(self) -> None:
        """Refuse hyperparameters that do not go together."""
        if self.minimize != "loss" and not any(limit.what == "drop" for limit in limiting.read(self.limits)):
            raise HyperparameterError(f"subnets(minimize={self.minimize}): without a limit on drop, the smallest {self.minimize} "
                                      "comes from a useless model; add drop<=1pt to limits")

    @property
    def timed(self) -> bool:
        return True

    def plan(self, model: nn.Module, context: Context) -> Plan:
        """Search.

        Raises:
            HyperparameterError: hyperparameters that do not go together.
            OutOfReach: no subnet keeps to the limits; names the nearest.
            ThriftyError: the model cannot be exported, the engine is not installed, or a drop is limited without a workload.
        """
        self._check()
        limits = limiting.read(self.limits)
        if context.score is None and any(limit.what == "drop" for limit in limits):
            raise ThriftyError(f"subnets(limits={self.limits!r}): the drop is judged by a workload's quality, and there is "
                               "no workload here: run it as a phase of a recipe, or limit something else")
        require(self.engine, self.name, context)
        model = copy.deepcopy(model).eval()
        bake(model)
        space = elastic.Space(model, elastic.Elastic(shares(self.width), self.depth, self.kernel, self.structure, self.criterion,
                                                     self.round_to), context)
        if space.left:
            context.progress(f"these stay as they are: {told(space.left)}")
        if space.size == 1:
            why = "there are no subnets: no block can be removed, no group of channels is wide enough, no kernel can be cropped"
            context.progress(f"unchanged: {why}")
            return Plan({**AS_IT_IS.values, "unchanged": why, "chosen": [], "table": None, "left": space.left, "refused": {}})
        sampling = Sampling(space, limits, self.minimize, self.engine, self.steps, self.seconds, context)
        found = sampling.rehearsed() if context.rehearsal else sampling.search(self.sampler, self.trials)
        context.progress(note(found))
        values = {**found.made.values, "unchanged": found.unchanged, "chosen": list(found.whole.names),
                  "table": found.table.to_json(), "left": space.left, "refused": dict(found.refused)}
        return Plan(values, found.made.tensors)

    def build(self, model: nn.Module, plan: Plan) -> nn.Module:
        bake(model)
        return elastic.build(model, plan.values, plan.tensors)

    def list_layers(self, model: nn.Module, plan: Plan) -> list[dict[str, Any]]:
        return rows(model, [*((name, what, "") for name, what in elastic.changes(plan.values).items()),
                            *((name, "as it is", why) for name, why in plan.values["left"].items())])

    def claims(self, before: nn.Module, after: nn.Module) -> tuple[Claim, ...]:
        had, has = bytes_held(before), bytes_held(after)
        return () if had == has else (Claim("bytes of the model", had, has, minimum=0.5 * abs(had - has), probe=bytes_held),)
