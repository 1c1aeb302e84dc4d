"""Low-rank factorization: a weight becomes a product of thinner ones, chosen by what the layer really reads."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from thrifty.errors import ThriftyError
from thrifty.numerics.graph import replace
from thrifty.numerics.lockstep import in_lockstep
from thrifty.numerics.plain import bake, told
from thrifty.numerics.surroundings import UNREACHED, slow
from thrifty.posttraining.elements import rows, weight_elements
from thrifty.posttraining.low_rank.calibration import Seen, observe, row_information
from thrifty.posttraining.low_rank.choosing import Layers, choose, options
from thrifty.posttraining.low_rank.cp import Cp
from thrifty.posttraining.low_rank.factored import absorb, candidates, factored, fits, geometry, parts, product, unread
from thrifty.posttraining.low_rank.factors import Matrix, Outputs, Ranks, Scaled, Shape, Tucker
from thrifty.recipes.card import Card
from thrifty.recipes.claim import Claim
from thrifty.recipes.context import Context
from thrifty.recipes.hyperparameters import choice, matches, number, pattern
from thrifty.recipes.transform import Plan, Transform


@final
@dataclass(frozen=True)
class LowRank(Transform):
    """Replace weights with products of smaller factors, with ranks chosen over the whole model at once.

    - ``nn.Linear`` and 1x1 ``nn.Conv2d``, W [m, n]: W' = U_k Sigma_k V_k^T S^-1 with U Sigma V^T = svd(W S) and
      S S^T = X X^T, X [n, rows] what the layer reads in calibration: the best W' of rank k for the layer's outputs.
      Two layers, n -> k -> m.
    - Wider ``nn.Conv2d``: Tucker-2 over the channels, swept (HOOI): a 1x1, the kernel, a 1x1; or CP: a 1x1, a depthwise kernel,
      a 1x1. Whitening takes the kernel's offsets for independent, which is not always a help: the better of whitened and plain
      is kept.

    A budget of parameters is spent where it keeps the largest share of a layer's output energy; or, with ``ranks=loss``, where
    the model's loss feels it least; or, with ``ranks=latency``, measured seconds are. Ranks are multiples of ``round_to``, and
    only such as need fewer parameters and fewer multiply-adds than the layer has: k < mn / (m + n) for a matrix. Where none
    pays, the layer stays. Factors are then found layer by layer, on what the layers before have become. Layers whose weight is
    tied to another's stay too, as do grouped convolutions, subclasses that compute in their own way, layers with hooks, layers
    that calibration does not reach, and those whose surroundings read their weight directly; they are told, with the reason. A
    factored model can be factored again: the product is what is factored.

    Args:
        ratio: share of the model's parameters to remove, embeddings counted; of its seconds, with ranks=latency.
        whiten: what decides what is kept: True, the second moment of a layer's inputs; outputs, that of its outputs (the same
            factors of a matrix without an inverse); fisher, the loss' gradients weigh a weight's rows; False, the weights alone.
        round_to: every rank is a multiple of it.
        ranks: energy, loss or latency.
        convolution: tucker or cp, for kernels wider than one pixel.
        keep: names of layers that stay as they are, a regular expression.

    >>> net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))
    >>> [layer.out_features for layer in LowRank(ratio=0.4)(net, [torch.randn(128, 64)])[0]]
    [16, 64]
    """

    ratio: float = number(0.2, 0, 1, open_low=True, open_high=True, search=(0.1, 0.2, 0.35))
    whiten: bool | str = choice(True, True, False, "outputs", "fisher")
    round_to: int = number(8, 1)
    ranks: str = choice("energy", "energy", "loss", "latency")
    convolution: str = choice("tucker", "tucker", "cp")
    keep: str = pattern("")

    name: ClassVar[str] = "low_rank"
    version: ClassVar[int] = 3
    card: ClassVar[Card] = Card(
        family="low-rank",
        benefit="inference time",
        trade_off="quality, partly recovered by retraining; no gain above the break-even rank",
        paper='"SVD-LLM: Truncation-aware Singular Value Decomposition for Large Language Model Compression", Wang et '
              'al. 2024, arXiv:2403.07378; "Compression of Deep Convolutional Neural Networks for Fast and Low Power '
              'Mobile Applications", Kim et al. 2015, arXiv:1511.06530; "Language Model Compression with Weighted Low-Rank '
              'Factorization", Hsu et al. 2022, arXiv:2207.00112; "Speeding-up Convolutional Neural Networks Using Fine-tuned '
              'CP-Decomposition", Lebedev et al. 2014, arXiv:1412.6553',
        needs=frozenset({"calibration"}),
        requires=frozenset({"module", "float-weights"}),
        provides=frozenset({"factorized"}),
        refuses=frozenset({"masked"}),  # a product of thinner weights has no zeros
    )

    @property
    def timed(self) -> bool:
        return self.ranks == "latency"

    @property
    def whitens(self) -> bool:
        """Whether second moments decide what is kept."""
        return self.whiten in (True, "outputs")

    def plan(self, model: nn.Module, context: Context) -> Plan:
        """Decide ranks and factors.

        Raises:
            NoEffect: there is nothing that a factorization makes smaller.
            CalibrationError: no data, or a layer reads zeros only, NaN or infinity; names the layer.
            ThriftyError: the ratio is above what can be removed.
        """
        model = copy.deepcopy(model).eval()
        bake(model)
        with torch.no_grad():
            found, left = candidates(model)
            for name in [name for name in found if self.keep and matches(self.keep, name)]:
                left[name] = "it is kept by name"
                del found[name]
            found = unread(model, found, left, context.example)
            context.progress("calibrating")
            # Without whitening the example serves to count how often each layer multiplies.
            batches = context.calibration() if self.whitens else [context.example]
            seen = observe(model, found, batches, self.whitens, context.seed)
            left |= {name: UNREACHED for name in found if name not in seen}
            if left:
                context.progress(f"left as they are: {told(left)}")
            reached = {name: found[name] for name in seen}
            information = row_information(model, reached, context) if self.whiten == "fisher" else {}
            shapes = {name: self.shape(product(found[name]), one, information.get(name)) for name, one in seen.items()}
            able = {name: ranks for name, shape in shapes.items()
                    if (ranks := options(shape, seen[name], sum(p.weight.numel() for p in parts(found[name])), self.round_to))}
            layers = Layers(model, {name: found[name] for name in able}, seen, shapes, able,
                            lambda name, ranks: _factors(shapes[name], ranks, seen[name], geometry(found[name])))
            chosen = choose(layers, context, self.ratio, self.ranks, self.round_to)
            factors = self._in_turn(layers, chosen, context) if self.whitens else {
                name: layers.factors(name, ranks) for name, ranks in chosen.items()}
        tensors = {f"{name}.{i}": factor.to(parts(found[name])[0].weight.dtype).contiguous()
                   for name, made in factors.items() for i, factor in enumerate(made)}
        return Plan({"layers": {name: list(ranks) for name, ranks in chosen.items()},
                     "factors": {name: len(made) for name, made in factors.items()}, "left": left}, tensors)

    def shape(self, weight: Tensor, seen: Seen, rows: Tensor | None) -> Shape:
        """What a layer's weight can become, by what it read."""
        scaled = weight if rows is None else weight * rows.reshape(-1, *[1] * (weight.ndim - 1))
        made: Shape
        if weight.shape[2:].numel() > 1:
            made = Cp(scaled, seen.root()) if self.convolution == "cp" else Tucker(scaled, seen.root())
        elif self.whiten == "outputs":
            made = Outputs(scaled, seen.second_moment())
        else:
            made = Matrix(scaled, seen.root())
        return made if rows is None else Scaled(made, rows)

    def _in_turn(self, layers: Layers, chosen: Mapping[str, Ranks], context: Context) -> dict[str, list[Tensor]]:
        """{layer: its factors}, each found on what the layers before it, factored already, leave it to read."""
        made: dict[str, list[Tensor]] = {}

        def visit(name: str, inputs: Sequence[Tensor]) -> tuple[str, ...]:
            layer = layers.modules[name]
            seen = Seen(name, layer, True, context.seed)
            for x in inputs:
                seen.look(x.detach())
            shape = self.shape(product(layer), seen, None)
            made[name] = _factors(shape, chosen[name], seen, geometry(layer))
            absorb(layer, made[name])
            return ()

        in_lockstep(layers.model, {name: layers.modules[name] for name in chosen}, list(context.calibration()), visit)
        return {name: made[name] for name in chosen}

    def build(self, model: nn.Module, plan: Plan) -> nn.Module:
        bake(model)
        found = dict(model.named_modules())
        for name, ranks in plan.values["layers"].items():
            count = plan.values.get("factors", {}).get(name, len(ranks) + 1)
            factors = [plan.tensors[f"{name}.{i}"] for i in range(count)]
            if name not in found or not fits(found[name], factors):
                raise ThriftyError(f"the plan factors {name}, which this model does not have in that shape: it was "
                                   "made for another model")
            replace(model, name, factored(found[name], factors))
        slow(model)
        return model

    def list_layers(self, model: nn.Module, plan: Plan) -> list[dict[str, Any]]:
        """The ranks that a layer got, or why it stays."""
        return rows(model, [*((name, f"rank {', '.join(map(str, ranks))}", "") for name, ranks in plan.values["layers"].items()),
                            *((name, "whole", why) for name, why in plan.values.get("left", {}).items())])

    def claims(self, before: nn.Module, after: nn.Module) -> tuple[Claim, ...]:
        had, has = weight_elements(before), weight_elements(after)
        return (Claim("elements of weights", had, has, minimum=max(1.0, 0.5 * (had - has)), probe=weight_elements),)


def _factors(shape: Shape, ranks: Ranks, seen: Seen, place: Any) -> list[Tensor]:
    """The factors of those ranks; a wide convolution's by the root that serves its outputs better."""
    found = shape.factors(ranks)
    if not seen.images or not isinstance(shape, Tucker | Cp):
        return found
    eye = torch.eye(seen.width, dtype=torch.float64, device=shape.weight.device)
    plain = type(shape)(shape.weight, (eye, eye)).factors(ranks)

    def error(factors: list[Tensor]) -> float:
        lost = shape.weight - product(factored(place, factors))
        return float(nn.functional.conv2d(seen.images[0].double(), lost, None, place.stride, place.padding,
                                          place.dilation).square().sum())

    return min(found, plain, key=error)
