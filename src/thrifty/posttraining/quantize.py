"""Post-training quantization: which numbers become integers, and on which grids."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import nn

from thrifty.engines.instructions import saturates
from thrifty.errors import NoEffect, ThriftyError
from thrifty.numerics import graph as graphs
from thrifty.numerics.linears import ready
from thrifty.numerics.modules import Float8Linear, InBfloat16
from thrifty.numerics.plain import told
from thrifty.numerics.ranges import REDUCED_BITS
from thrifty.numerics.schemes import SCHEMES
from thrifty.numerics.surroundings import UNREACHED, kept, look, slow
from thrifty.posttraining.quantization import integers, listing, mixed, rounding, weights
from thrifty.posttraining.quantization.assign import FLOAT, GROUPS, Assigned, assign
from thrifty.posttraining.quantization.probes import (
    bytes_a_weight,
    float8_layers,
    grouped_layers,
    integer_layers,
)
from thrifty.posttraining.quantization.refine import Refinement, refined
from thrifty.posttraining.quantization.rest import in_bf16
from thrifty.recipes.card import Card
from thrifty.recipes.claim import Claim
from thrifty.recipes.context import Context
from thrifty.recipes.hyperparameters import HyperparameterError, Table, choice, number, table
from thrifty.recipes.transform import Plan, Transform

AUTO: Mapping[str, str] = {"int8": "smoothquant", "float": "gptq"}
"""{activations: what ``auto`` stands for}."""
PRODUCTS: Mapping[str, str] = {"int8": "integer-products", "float8": "float8-products"}
"""{activations: the property of a model whose products are so}."""
MIXED, MAX_DROP = "mixed", 0.01
INTEGER_ALGORITHMS = ("rtn", "smoothquant", "adaround")


@final
@dataclass(frozen=True)
class Quantize(Transform):
    """Store weights, and in some schemes activations, in low precision, without training.

    Integer products, ``w8a8`` and ``w4a8``:

    - Weights: symmetric, a scale for each output channel; four bits are held in int8.
    - Convolutions: activations on static 8-bit grids, found on calibration data by least squared error; batch
      norms are folded first; residual sums and pools stay integer.
    - Linear layers: activations in 8 bits, a scale for each token, found as they come, or one grid for all; hard channels
      are smoothed into the weights by the strength that loses least on the calibration data.
    - With convolutions: channels between two of them are evened out, and biases make up for shifts of the mean; each of
      these steps stays only where it brings the model's outputs closer, on calibration data that it did not see.

    Weights alone, ``w8a16``, ``w4a16`` and ``w3a16``: dequantized where they are used; a scale and a zero for each
    ``group`` of inputs (for each output channel in eight bits). Convolutions, nn.LSTM and nn.GRU are rounded to nearest; their
    matrices that the group does not divide have eight bits.

    Float8 products, ``fp8``: weights of linear layers in e4m3, a scale for each output channel; activations in e4m3, a scale for
    each token, found as they come. Rounded to the nearest, without data. Convolutions and embeddings stay float.

    Experts that stand in tensors of three dimensions (transformers', `thrifty.architectures.moe`'s, `moe`'s) are rounded to
    nearest, each output channel of each expert by itself, whatever the algorithm; their activations stay float: int8 in
    ``w8a8``, ``w4a8`` and ``w8a16``, groups in ``w4a16`` and ``w3a16``. Routers stay float.

    Embeddings that weigh (but in ``fp8``): int8, a scale for each row. What stays float is told, with its reason, and listed
    by ``thrifty show --layers``: subclasses that compute in their own way, layers with hooks, complex weights, weights that
    other code reads, layers that calibration does not reach, layers that would grow. Parametrized weights are baked in first.

    Args:
        scheme: bits of weights (w) and activations (a); ``fp8``, ``bf16``: both are float8 or bfloat16 (no calibration is
            used); ``mixed``: of w8a8, w4a16, w3a16 and fp32 what each layer bears, the fewest bytes within ``max_drop``.
        rest: what is not quantized runs in: ``fp32`` or ``bf16``; the latter without integer convolutions only.
        algorithm: ``rtn`` rounds to the nearest number of grids from minimum to maximum; ``smoothquant`` smooths first (w8a8,
            w4a8), ``adaround`` also learns whether each weight is rounded up or down; of weights alone, ``gptq`` makes later
            columns make up for earlier ones, ``awq`` scales and clips by what the activations show, ``hqq`` fits grids without
            data; ``auto`` is smoothquant for w8a8 and w4a8, and gptq.
        activations: for linear layers with integer products: ``dynamic``, a scale for each token, or ``static``, one grid, found
            on calibration data: faster, and less exact.
        group: weights a scale, in ``w4a16`` and ``w3a16``; divides the inputs of every such linear layer.
        layers: schemes of some layers: patterns over names (a whole name, or its end after a dot), the first that
            matches decides; ``fp32`` leaves a layer as it is.
        equalize: whether channels between convolutions are evened out, where it helps.
        correct: whether biases make up for what rounding shifts, where it helps; for models with integer convolutions.
        max_drop: for ``mixed``: quality that may be lost on validation, in its own unit: 0.01 is a point of accuracy.
        reduce_range: whether weights of integer products have seven bits, for x86 processors without VNNI, whose fast products
            of eight bits saturate; ``auto`` where this processor is one.

    >>> net = nn.Sequential(nn.Linear(64, 16), nn.Linear(16, 16))
    >>> [type(x).__name__ for x in Quantize("w4a16", group=64, layers={"1": "fp32"})(net, [torch.randn(32, 64)])]
    ['GroupedLinear', 'Linear']
    """

    scheme: str = choice("w8a8", *SCHEMES, "bf16", MIXED, search=("w8a8", "bf16"))
    rest: str = choice("fp32", "fp32", "bf16")
    algorithm: str = choice("auto", "auto", "rtn", "smoothquant", "adaround", "gptq", "awq", "hqq")
    activations: str = choice("dynamic", "dynamic", "static")
    group: int = choice(128, *GROUPS)
    layers: Mapping[str, str] = table(*SCHEMES, FLOAT)
    equalize: bool = True
    correct: bool = True
    max_drop: float = number(MAX_DROP, 0)
    reduce_range: str = choice("auto", "auto", "yes", "no")

    name: ClassVar[str] = "quantize"
    version: ClassVar[int] = 5
    card: ClassVar[Card] = Card(
        family="ptq",
        benefit="inference time",
        trade_off="quality at low bits",
        paper='"GPTQ", Frantar et al. 2022, arXiv:2210.17323; "AWQ", Lin et al. 2023, arXiv:2306.00978; "SmoothQuant", '
              'Xiao et al. 2022, arXiv:2211.10438; "HQQ", Badri and Shaji 2023; "Up or down?", Nagel et al. 2020, '
              'arXiv:2004.10568; "Data-free quantization", Nagel et al. 2019, arXiv:1906.04721; "FP8 Formats", '
              'Micikevicius et al. 2022, arXiv:2209.05433; "A white paper on neural '
              'network quantization", Nagel et al. 2021, arXiv:2106.08295',
        needs=frozenset({"calibration"}),
        requires=frozenset({"module", "float-weights"}),
        provides=frozenset({"quantized"}),
        removes=frozenset({"float-weights"}),
    )

    @property
    def provides(self) -> frozenset[str]:
        schemes = {self.scheme, *self.layers.values()} & SCHEMES.keys()
        products = {PRODUCTS[kind] for s in schemes if (kind := SCHEMES[s].activations) in PRODUCTS}
        return self.card.provides | products | ({"bfloat16"} if "bf16" in (self.scheme, self.rest) else set())

    @property
    def calibrated(self) -> bool:
        schemes = {self.scheme, *self.layers.values()} & SCHEMES.keys()
        kinds = {SCHEMES[s].activations for s in schemes}
        return self.scheme == MIXED or "int8" in kinds or ("float" in kinds and self._of_weights not in weights.BLIND)

    @property
    def hardware_bound(self) -> bool:
        return self.reduce_range == "auto" and bool({"integer-products"} & self.provides or self.scheme == MIXED)

    @property
    def _reduces(self) -> bool:
        """Whether weights of integer products have seven bits."""
        return self.reduce_range == "yes" or (self.reduce_range == "auto" and saturates())

    @property
    def _of_weights(self) -> str:
        """The algorithm of layers whose weights alone are quantized."""
        return AUTO["float"] if self.algorithm in ("auto", "smoothquant", "adaround") else self.algorithm

    def plan(self, model: nn.Module, context: Context) -> Plan:
        """Decide which layers, on which grids, by which integers.

        Raises:
            CalibrationError: data is missing, constant or not finite where a layer reads it; names the layer.
            HyperparameterError: hyperparameters that do not go together, or patterns that match nothing.
            NoEffect: there is nothing to quantize.
            ThriftyError: a group does not divide a layer's inputs; names the groups that would.
        """
        self._check()
        if "bf16" in (self.scheme, self.rest):
            self._check_real(model)
        if self.scheme == "bf16":
            if not any(p.dtype == torch.float32 for p in model.parameters()):
                raise NoEffect("quantize(bf16) changed nothing: the model has no float32 parameters")
            return self._runs(model, Plan({"bf16": True}), context)
        if self.scheme == MIXED:
            if context.score is None:
                raise HyperparameterError("quantize(mixed) is judged by a workload's quality, and there is no workload here: "
                                          "run it as a phase of a recipe, or give schemes by layers={...}")
            return mixed.decide(model, self, self.max_drop, context)
        given, model = model, ready(copy.deepcopy(model).eval())
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        blind = self._of_weights in weights.BLIND
        barred = kept(model, context.example)
        barred |= self._unreached(model, self._assigned(model, barred).seeing(blind), context)
        work, marked = integers.traced(model, self._assigned(model, barred), context)
        assigned = self._assigned(work, barred)
        left = {**self._assigned(model, barred).left, **assigned.left}
        self._check_found(assigned, left)
        if left:
            context.progress(f"left float: {told(left)}")
        context.progress("calibrating")
        decided = weights.planned(weights.decide(model, assigned, self._of_weights, context), assigned)
        wanted = Refinement(self.equalize, self.algorithm == "adaround", self.correct)
        way = integers.Way(smooth=self.algorithm != "rtn", static=self.activations == "static")
        plan = refined(model, work, marked, assigned, way, wanted, context)
        alone = rounding.planned(assigned.rounded)
        found = Plan({**plan.values, **decided.values, **alone.values, "float8": list(assigned.float8), "left": left},
                     {**plan.tensors, **decided.tensors})
        return self._runs(given, found, context) if self.rest == "bf16" else found

    def of(self, scheme: str, layers: Mapping[str, str], **changes: Any) -> Quantize:
        """The same with one scheme, and others for some layers: what ``mixed`` is made of."""
        grouped = any(SCHEMES[each].grouped for each in (scheme, *layers.values()) if each in SCHEMES)
        group = self.group if grouped else GROUPS[-1]
        return dataclasses.replace(self, scheme=scheme, layers=Table(layers), group=group, max_drop=MAX_DROP, **changes)

    def _assigned(self, model: nn.Module, barred: Mapping[str, str]) -> Assigned:
        found = assign(model, self.scheme, self.layers, self.group, barred)
        return found.reduced(REDUCED_BITS) if self._reduces else found

    def _unreached(self, model: nn.Module, seeing: set[str], context: Context) -> dict[str, str]:
        """{layer: that calibration does not reach it} of those that want to see data, where there is any."""
        convolutions = any(graphs.is_convolution(model.get_submodule(name)) for name in seeing)
        batches = list(integers.rows(context, convolutions)) if seeing else []
        reached = look(model, batches, seeing).reached if batches else seeing
        return dict.fromkeys(sorted(seeing - reached), UNREACHED)

    def _runs(self, model: nn.Module, plan: Plan, context: Context) -> Plan:
        """The plan, where torch runs in bfloat16 what is built by it.

        Raises:
            ThriftyError: torch lacks an operator there, or the model's own code asks for another type.
        """
        try:
            if context.example:
                self.build(copy.deepcopy(model), plan)(*context.example)
        except (RuntimeError, NotImplementedError) as error:
            reason = str(error).splitlines()[0]
            raise ThriftyError(f"{self}: torch cannot run this model in bfloat16: {reason}") from error
        return plan

    def _check_real(self, model: nn.Module) -> None:
        name = next((name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if tensor.is_complex()), None)
        if name is not None:
            raise ThriftyError(f"quantize({self.scheme}{', rest=bf16' if self.rest == 'bf16' else ''}): {name!r} is complex, and "
                               "bfloat16 has no imaginary parts; use an integer scheme and rest=fp32")

    def _check(self) -> None:
        if self.scheme == MIXED:
            if self.algorithm not in ("auto", *INTEGER_ALGORITHMS):
                raise HyperparameterError(f"quantize(mixed, algorithm={self.algorithm}): integer layers may be among "
                                          "those chosen, and they accept smoothquant, adaround or rtn; omit algorithm")
            return
        schemes = [SCHEMES[s] for s in (self.scheme, *self.layers.values()) if s in SCHEMES]
        if self.scheme == "bf16" and self.layers:
            raise HyperparameterError("quantize(bf16, layers=...): bf16 applies to the whole model; give the integer scheme "
                                      "and rest=bf16")
        if self.algorithm not in ("auto", *INTEGER_ALGORITHMS) and all(s.activations != "float" for s in schemes):
            raise HyperparameterError(f"quantize({self.scheme}, algorithm={self.algorithm}): {self.algorithm} is for weight-only "
                                      "schemes (w8a16, w4a16, w3a16); integer schemes accept smoothquant or rtn, fp8 rtn")
        if self.algorithm in ("smoothquant", "adaround") and all(s.activations != "int8" for s in schemes):
            raise HyperparameterError(f"quantize({self.scheme}, algorithm={self.algorithm}): it is for integer schemes "
                                      "(w8a8, w4a8); weight-only schemes accept awq, gptq, hqq or rtn, fp8 rtn")
        if self.activations == "static" and all(s.activations != "int8" for s in schemes):
            raise HyperparameterError(f"quantize({self.scheme}, activations=static): activation scales are for "
                                      "integer schemes (w8a8, w4a8); omit activations")
        if self.max_drop != MAX_DROP:
            raise HyperparameterError(f"quantize({self.scheme}, max_drop={self.max_drop:g}): max_drop is for mixed; omit it")
        if self.group != 128 and not any(s.grouped for s in schemes):
            raise HyperparameterError(f"quantize({self.scheme}, group={self.group}): groups are for w4a16 and w3a16; "
                                      "omit group")

    def _check_found(self, assigned: Assigned, left: Mapping[str, str]) -> None:
        if assigned.empty and left:
            raise NoEffect(f"quantize({self.scheme}) found nothing to quantize besides what it keeps in float: {told(left)}")
        if assigned.empty:
            raise NoEffect(
                f"quantize({self.scheme}) found nothing to quantize: the model has no float nn.Linear, nn.Conv1d, nn.Conv2d, "
                "nn.LSTM or nn.GRU")
        if assigned.convolutions and self.rest == "bf16":
            raise HyperparameterError(
                f"quantize({self.scheme}, rest='bf16') is for models without convolutions: bfloat16 cannot tell apart "
                "the 256 values of their static grids; omit rest"
            )

    def build(self, model: nn.Module, plan: Plan) -> nn.Module:
        model = model.eval()
        if plan.values.get("bf16"):
            return InBfloat16(ready(model).to(torch.bfloat16))
        model = rounding.build(weights.build(integers.build(ready(model), plan), plan), plan)
        for name in plan.values.get("float8", ()):
            linear: Any = model.get_submodule(name)
            graphs.replace(model, name, Float8Linear(linear))
        slow(model)
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        return in_bf16(model) if self.rest == "bf16" else model

    def list_layers(self, model: nn.Module, plan: Plan) -> list[dict[str, Any]]:
        return [] if plan.values.get("bf16") else listing.layers(model, plan)

    def claims(self, before: nn.Module, after: nn.Module) -> tuple[Claim, ...]:
        had, has = bytes_a_weight(before), bytes_a_weight(after)
        found = [Claim("bytes a weight", had, has, minimum=0.5 * (had - has), probe=bytes_a_weight)]
        if layers := integer_layers(after):
            found.append(Claim("layers in integers", integer_layers(before), layers, minimum=layers, probe=integer_layers,
                               fact="integer_layers"))
        if layers := float8_layers(after):
            found.append(Claim("layers in float8", float8_layers(before), layers, minimum=layers, probe=float8_layers))
        if layers := grouped_layers(after):
            found.append(Claim("layers with weights of few bits", grouped_layers(before), layers, minimum=layers,
                               probe=grouped_layers))
        return tuple(found)
