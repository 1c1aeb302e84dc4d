"""Low-rank factorization: a weight becomes a product of thinner ones, chosen by what the layer really reads."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

import numpy as np
import torch
from torch import Tensor, nn

from thrifty.errors import NoEffect, ThriftyError
from thrifty.numerics.graph import replace
from thrifty.numerics.observers import CalibrationError
from thrifty.numerics.plain import bake, told
from thrifty.numerics.surroundings import UNREACHED, slow
from thrifty.posttraining.factored import candidates, factored, fits, geometry, parts, product, unread
from thrifty.posttraining.factors import Ranks, Shape, Tucker, shape_of, square_root
from thrifty.posttraining.prune import parameters, weight_elements
from thrifty.posttraining.ranks import Choices, allocate
from thrifty.recipes.card import Card
from thrifty.recipes.claim import Claim
from thrifty.recipes.context import Context
from thrifty.recipes.hyperparameters import number
from thrifty.recipes.transform import Plan, Transform

KEPT_ROWS = 2048
"""Rows of a layer's input that enter its second moment, drawn at random, at most this many a batch."""
KEPT_IMAGES = 4
"""Inputs of a convolution on which its whitened factorization is compared with the plain one."""


@final
@dataclass(frozen=True)
class LowRank(Transform):
    """Replace weights by products of thinner ones, the ranks chosen over the whole model at once.

    - ``nn.Linear`` and 1x1 ``nn.Conv2d``, W [m, n]: W' = U_k Sigma_k V_k^T S^-1 with U Sigma V^T = svd(W S) and
      S S^T = X X^T, X [n, rows] what the layer reads in calibration: the best W' of rank k for the layer's outputs.
      Two layers, n -> k -> m.
    - Wider ``nn.Conv2d``: Tucker-2 over the channels, swept (HOOI); a 1x1, the kernel, a 1x1. Whitening takes the
      kernel's offsets for independent, which is not always a help: the better of whitened and plain is kept.

    A budget of parameters is spent where it keeps the largest share of a layer's output energy. Ranks are multiples
    of ``round_to``, and only such as need fewer parameters and fewer multiply-adds than the layer has: k < mn / (m + n)
    for a matrix. Where none pays, the layer stays. Layers whose weight is tied to another's stay too, as do grouped
    convolutions, subclasses that compute in their own way, layers with hooks, layers that calibration does not reach, and
    those whose surroundings read their weight directly; they are told, with the reason. A factored model can be factored
    again: the product is what is factored.

    Args:
        ratio: share of the model's parameters to remove, embeddings counted.
        whiten: whether calibration data decides what is kept; else the weights alone do.
        round_to: every rank is a multiple of it.

    >>> net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))
    >>> [layer.out_features for layer in LowRank(ratio=0.4)(net, [torch.randn(128, 64)])[0]]
    [16, 64]
    """

    ratio: float = number(0.2, 0, 1, open_low=True, open_high=True, search=(0.1, 0.2, 0.35))
    whiten: bool = True
    round_to: int = number(8, 1)

    name: ClassVar[str] = "low_rank"
    card: ClassVar[Card] = Card(
        family="low-rank",
        benefit="inference time",
        trade_off="quality, in part won back by training again; nothing is gained above the break-even rank",
        paper='"SVD-LLM: Truncation-aware Singular Value Decomposition for Large Language Model Compression", Wang et '
              'al. 2024, arXiv:2403.07378; "Compression of Deep Convolutional Neural Networks for Fast and Low Power '
              'Mobile Applications", Kim et al. 2015, arXiv:1511.06530',
        needs=frozenset({"calibration"}),
        requires=frozenset({"module", "float-weights"}),
        provides=frozenset({"factorized"}),
    )

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
            layers, left = candidates(model)
            layers = unread(model, layers, left, context.example)
            context.progress("calibrating")
            # Without whitening the example serves to count how often each layer multiplies.
            batches = context.calibration() if self.whiten else [context.example]
            seen = observe(model, layers, batches, self.whiten, context.seed)
            left |= {name: UNREACHED for name in layers if name not in seen}
            if left:
                context.progress(f"left as they are: {told(left)}")
            shapes = {name: shape_of(product(layers[name]), one.root()) for name, one in seen.items()}
            ranks = self.ranks(model, layers, seen, shapes)
            tensors = {}
            for name, chosen in ranks.items():
                dtype = parts(layers[name])[0].weight.dtype
                for i, factor in enumerate(_factors(shapes[name], chosen, seen[name], geometry(layers[name]))):
                    tensors[f"{name}.{i}"] = factor.to(dtype).contiguous()
        return Plan({"layers": {name: list(chosen) for name, chosen in ranks.items()}, "left": left}, tensors)

    def ranks(self, model: nn.Module, layers: Mapping[str, nn.Module], seen: Mapping[str, Seen],
              shapes: Mapping[str, Shape]) -> dict[str, Ranks]:
        """{layer: its ranks} of those that are factored."""
        options: dict[str, list[Ranks]] = {}
        for name, shape in shapes.items():
            now = sum(part.weight.numel() for part in parts(layers[name]))
            options[name] = [r for r in shape.ranks(self.round_to) if shape.parameters(r) < now
                             and shape.operations(r, seen[name].reads, seen[name].writes) < seen[name].operations]
        names = [name for name, found in options.items() if found]
        if not names:
            raise NoEffect("low_rank finds nothing to factorize: no nn.Linear or nn.Conv2d with a weight of its own "
                           f"becomes smaller by a rank of {self.round_to} or a multiple of it; lower round_to, or "
                           "leave low_rank out")
        choices = []
        for name in names:
            shape, now = shapes[name], sum(part.weight.numel() for part in parts(layers[name]))
            choices.append(Choices(np.array([now, *map(shape.parameters, options[name])]),
                                   np.array([1.0, *map(shape.kept, options[name])])))
        total = int(parameters(model))
        held = sum(int(c.parameters[0]) for c in choices)
        most, goal = held - sum(int(c.parameters.min()) for c in choices), int(np.ceil(self.ratio * total - 1e-6))
        if most < goal:
            raise ThriftyError(f"low_rank(ratio={self.ratio:g}): at most {most / total:.3f} of this model's parameters "
                               f"can be removed with ranks of {self.round_to} (the rest belongs to embeddings, norms, tied "
                               "weights, or to layers that no rank makes smaller); choose a ratio up to "
                               f"{np.floor(100 * most / total) / 100:g}, or lower round_to")
        chosen = allocate(choices, held - goal)
        return {name: options[name][i - 1] for name, i in zip(names, chosen, strict=True) if i > 0}

    def build(self, model: nn.Module, plan: Plan) -> nn.Module:
        bake(model)
        found = dict(model.named_modules())
        for name, ranks in plan.values["layers"].items():
            factors = [plan.tensors[f"{name}.{i}"] for i in range(len(ranks) + 1)]
            if name not in found or not fits(found[name], factors):
                raise ThriftyError(f"the plan factors {name}, which this model does not have in that shape: it was "
                                   "made for another model")
            replace(model, name, factored(found[name], factors))
        slow(model)
        return model

    def claims(self, before: nn.Module, after: nn.Module) -> tuple[Claim, ...]:
        had, has = weight_elements(before), weight_elements(after)
        return (Claim("elements of weights", had, has, minimum=max(1.0, 0.5 * (had - has)), probe=weight_elements),)


# -- calibration ------------------------------------------------------------------------------------------------


@final
class Seen:
    """What one layer read: its second moment, how often it multiplied, and a few inputs.

    Args:
        name: the layer's, for errors.
        layer: itself.
        whiten: whether to keep the second moment.
        seed: of the rows that are drawn for it.
    """

    def __init__(self, name: str, layer: nn.Module, whiten: bool, seed: int) -> None:
        self.name, self.whiten, self.place = name, whiten, geometry(layer)
        self.width = parts(layer)[0].weight.shape[1]
        self.weights = [part.weight for part in parts(layer)]
        if not all(weight.isfinite().all() for weight in self.weights):
            raise CalibrationError(f"layer {name!r} has NaN or infinity in its weight: it cannot be factorized")
        self.moment, self.rows = torch.zeros(()), 0
        self.reads = self.writes = 0
        self.images: list[Tensor] = []
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        x: Tensor = inputs[0].detach()
        image = isinstance(self.place, nn.Conv2d)
        self.reads += x.numel() // self.width
        self.writes += output.numel() // output.shape[-3 if image else -1]
        if not self.whiten:
            return
        if image:
            x = x if x.ndim == 4 else x[None]
            if self.place.weight.shape[2:].numel() > 1:
                self.images += [x[:KEPT_IMAGES].clone()] if not self.images else []
            else:
                x = x[..., ::self.place.stride[0], ::self.place.stride[1]]
            x = x.movedim(1, -1)
        rows = x.reshape(-1, self.width)
        rows = rows[torch.randperm(len(rows), generator=self.generator)[:KEPT_ROWS].to(rows.device)].double()
        self.moment = self.moment.to(rows.device) + rows.T @ rows
        self.rows += len(rows)
        if not self.moment.isfinite().all():
            raise CalibrationError(f"layer {self.name!r} saw NaN or infinity in the calibration data: check the inputs "
                                   "and the model's weights, then factorize again")

    @property
    def operations(self) -> int:
        """Multiply-adds of the layer as it is."""
        before = (len(self.weights) - 1) // 2  # what comes before the part that strides
        return sum(weight.numel() * (self.reads if i < before else self.writes) for i, weight in enumerate(self.weights))

    def root(self) -> tuple[Tensor, Tensor]:
        """S and S^-1 of what was read; the identity for both without whitening."""
        if not self.whiten:
            eye = torch.eye(self.width, dtype=torch.float64, device=self.weights[0].device)
            return eye, eye
        if not self.moment.any():
            raise CalibrationError(f"layer {self.name!r} saw the constant 0 only: calibrate with real inputs, or "
                                   "factorize with whiten=False")
        return square_root(self.moment / self.rows)


def observe(model: nn.Module, layers: Mapping[str, nn.Module], batches: Iterable[tuple[Tensor, ...]],
            whiten: bool, seed: int) -> dict[str, Seen]:
    """Run the model, and keep what its layers read; those that nothing reached are left out.

    Raises:
        CalibrationError: there is no batch, or a layer saw NaN or infinity.
    """
    seen = {name: Seen(name, layer, whiten, seed) for name, layer in layers.items()}
    handles = [layer.register_forward_hook(seen[name]) for name, layer in layers.items()]
    ran = 0
    try:
        for batch in batches:
            model(*batch)
            ran += 1
    finally:
        for handle in handles:
            handle.remove()
    if not ran:
        raise CalibrationError("low_rank had no calibration data: give batches of inputs, or factorize with whiten=False")
    return {name: one for name, one in seen.items() if one.reads}


def _factors(shape: Shape, ranks: Ranks, seen: Seen, place: Any) -> list[Tensor]:
    """The factors of those ranks; a wide convolution's by the root that serves its outputs better."""
    found = shape.factors(ranks)
    if not seen.images:
        return found
    eye = torch.eye(seen.width, dtype=torch.float64, device=shape.weight.device)
    plain = Tucker(shape.weight, (eye, eye)).factors(ranks)

    def error(factors: list[Tensor]) -> float:
        first, core, last = factors
        lost = shape.weight - torch.einsum("mb,bahw,an->mnhw", last[..., 0, 0], core, first[..., 0, 0])
        return float(nn.functional.conv2d(seen.images[0].double(), lost, None, place.stride, place.padding,
                                          place.dilation).square().sum())

    return min(found, plain, key=error)
