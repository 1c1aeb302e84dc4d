"""A plain model gets choices: its layers become one of several, not yet decided; and choices that were decided are built."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from thrifty.errors import NoEffect
from thrifty.numerics.graph import replace
from thrifty.numerics.plain import is_one_of
from thrifty.posttraining.quantization.sensitivity import held
from thrifty.recipes.card import Card
from thrifty.recipes.claim import Claim
from thrifty.recipes.context import Context
from thrifty.recipes.hyperparameters import choice, matches, pattern
from thrifty.recipes.transform import Plan, Transform
from thrifty.training.nas.choice import SKIP, Choice, decide, places

AS_IT_IS = "as it is"


@final
@dataclass(frozen=True)
class Choices(Transform):
    """Replace each layer with a choice, for ``darts`` to decide.

    - A convolution of 3x3 or wider: as it is, of 1x1, separable (one kernel a channel, then 1x1), or, where it changes no
      shape, nothing.
    - A linear layer: as it is, of a quarter of its rank, or, where it is square, nothing.

    The weights of what is there stay; the others are drawn. A model that has `Choice` modules already keeps those alone. With an
    engine every option is timed on the target, for ``darts(latency=...)``.

    Args:
        layers: that get one, a pattern over names; all where empty.
        engine: that options are timed in; ``none`` times nothing.

    >>> net = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
    >>> Choices()(net)[0].names
    ('as it is', '1x1', 'separable', 'skip')
    """

    layers: str = pattern("")
    engine: str = choice("none", "none", "eager", "onnxruntime", "openvino", "inductor")

    name: ClassVar[str] = "choices"
    card: ClassVar[Card] = Card(
        family="gradient-nas",
        benefit="inference time",
        trade_off="a model with many options, to be chosen by darts",
        paper='"DARTS: Differentiable Architecture Search", Liu, Simonyan and Yang 2019, arXiv:1806.09055; "ProxylessNAS", Cai, '
              'Zhu and Han 2019, arXiv:1812.00332 (measured latency)',
        requires=frozenset({"module", "float-weights"}),
    )

    @property
    def timed(self) -> bool:
        return self.engine != "none"

    @property
    def calibrated(self) -> bool:
        return self.timed

    def plan(self, model: nn.Module, context: Context) -> Plan:
        """Decide where choices stand, and time their options.

        Raises:
            NoEffect: there is no layer to choose for.
        """
        opened = self.opened(model, context.seed)
        if not self.timed or context.time is None:
            return opened
        built = self.build(model, opened).eval()
        inputs = read(built, context.example)
        seconds: dict[str, dict[str, float]] = {}
        known: dict[str, float] = {}
        for name, place in places(built).items():
            seconds[name] = {}
            for option in place.names:
                module = place.decided(option).eval()
                if isinstance(module, nn.Identity):
                    seconds[name][option] = 0.0
                    continue
                kind = repr((str(module), [tuple(x.shape) for x in inputs[name]]))
                if kind not in known:
                    context.progress(f"timing {option} of {name}")
                    known[kind] = context.time(module, inputs[name], engine=self.engine, key=kind)
                seconds[name][option] = known[kind]
        return Plan({**opened.values, "seconds": seconds})

    def opened(self, model: nn.Module, seed: int) -> Plan:
        """Where choices stand.

        Args:
            model: not changed.
            seed: seed of the weights of new options.

        Raises:
            NoEffect: there is no layer to choose for.
        """
        if places(model):
            return Plan({"opened": [], "seed": seed})
        found = [name for name, layer in model.named_modules()
                 if name and options(layer) and (not self.layers or matches(self.layers, name))]
        if not found:
            raise NoEffect("choices finds no layer to choose for: a search space of one has nothing to search; it supports "
                           "nn.Linear, and nn.Conv2d of 3x3 or "
                           f"wider{f', whose name matches {self.layers!r}' if self.layers else ''}; or give the model Choice "
                           "modules of your own")
        return Plan({"opened": found, "seed": seed})

    def build(self, model: nn.Module, plan: Plan) -> nn.Module:
        if "decided" in plan.values:
            return decide(model, plan.values["decided"])
        devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(plan.values["seed"])
            for name in plan.values["opened"]:
                layer = model.get_submodule(name)
                replace(model, name, Choice({AS_IT_IS: layer} | {key: make() for key, make in options(layer).items()}))
        for name, place in places(model).items():
            place.seconds = dict(plan.values.get("seconds", {}).get(name, {}))
        return model

    def list_layers(self, model: nn.Module, plan: Plan) -> list[dict[str, Any]]:
        known = dict(model.named_modules())  # a later transform may have made other modules of them
        return [{"layer": name, "scheme": option, "bytes": held(known[name]), "error": None}
                for decision, option in plan.values.get("decided", {}).items() for name in plan.values["places"][decision]
                if name in known]

    def claims(self, before: nn.Module, after: nn.Module) -> tuple[Claim, ...]:
        had, has = open_decisions(before), open_decisions(after)
        return () if had == has else (Claim("choices that are open", had, has, minimum=has - had),)


def choices(model: nn.Module, layers: str = "", seed: int = 0) -> nn.Module:
    """A copy of a plain model with a choice in place of each layer: a search space for ``darts``.

    Args:
        model: nn.Conv2d and nn.Linear in it get choices; see `Choices`.
        layers: which, a pattern over their names; all where empty.
        seed: seed of the weights of new options.

    Raises:
        NoEffect: there is nothing to choose for.

    >>> space = choices(nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2)), layers="0")
    >>> space[0].names
    ('as it is', 'low rank', 'skip')
    """
    return Choices(layers=layers)(model, seed=seed)


def open_decisions(model: nn.Module) -> float:
    """Choices that are not decided."""
    return float(len(places(model)))


def read(model: nn.Module, example: tuple[Tensor, ...]) -> dict[str, tuple[Tensor, ...]]:
    """{choice: the tensors that its options read} in one pass."""
    found: dict[str, tuple[Tensor, ...]] = {}

    def heard(name: str, place: nn.Module, args: tuple[Any, ...]) -> None:
        assert isinstance(place, Choice)
        x = args[0]
        found[name] = (x.detach().clone(), *(extra.detach().clone() for extra in args[1:] if isinstance(extra, Tensor)))

    handles = [place.register_forward_pre_hook(functools.partial(heard, name)) for name, place in places(model).items()]
    try:
        with torch.no_grad():
            model(*example)
    finally:
        for handle in handles:
            handle.remove()
    return found


# -- what a layer can be ------------------------------------------------------------------------------------------


def options(layer: Any) -> Mapping[str, Any]:
    """{name: () -> module} beside the layer as it is; none where there is no choice."""
    found: dict[str, Any] = {}
    if is_one_of(layer, (nn.Conv2d,)) and layer.groups == 1 and min(layer.kernel_size) >= 3 and isinstance(layer.padding, tuple):
        settings: dict[str, Any] = {"device": layer.weight.device, "dtype": layer.weight.dtype}
        biased = layer.bias is not None
        if all(2 * p == d * (k - 1) for p, d, k in zip(layer.padding, layer.dilation, layer.kernel_size, strict=True)):
            found["1x1"] = lambda: nn.Conv2d(layer.in_channels, layer.out_channels, 1, layer.stride, bias=biased, **settings)
            if layer.in_channels == layer.out_channels and set(layer.stride) == {1}:
                found[SKIP] = nn.Identity
        found = {"separable": lambda: nn.Sequential(
            nn.Conv2d(layer.in_channels, layer.in_channels, layer.kernel_size, layer.stride, layer.padding, layer.dilation,
                      groups=layer.in_channels, bias=False, **settings),
            nn.Conv2d(layer.in_channels, layer.out_channels, 1, bias=biased, **settings))} | found
        found = {key: found[key] for key in ("1x1", "separable", SKIP) if key in found}
    elif is_one_of(layer, (nn.Linear,)) and type(layer).__name__ != "NonDynamicallyQuantizableLinear":
        settings = {"device": layer.weight.device, "dtype": layer.weight.dtype}
        rank = min(layer.in_features, layer.out_features) // 4
        if rank and rank * (layer.in_features + layer.out_features) < layer.in_features * layer.out_features:
            biased = layer.bias is not None
            found["low rank"] = lambda: nn.Sequential(nn.Linear(layer.in_features, rank, bias=False, **settings),
                                                      nn.Linear(rank, layer.out_features, bias=biased, **settings))
        if layer.in_features == layer.out_features:
            found[SKIP] = nn.Identity
    return found
