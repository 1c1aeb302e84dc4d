"""Post-training quantization: which numbers become integers, and on which grids."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from thrifty.errors import NoEffect
from thrifty.method import Card, Claim, Context, HyperparameterError, Plan, Transform, choice
from thrifty.numerics import graph as graphs
from thrifty.numerics.grid import Affine
from thrifty.numerics.modules import InBfloat16, QuantConv, QuantEdge, QuantEmbedding, QuantLinear
from thrifty.numerics.observers import Observer
from thrifty.numerics.smooth import Tokens, smoothing

EMBEDDING_SHARE = 0.02
"""An embedding with at least this share of the model's parameters is held in int8: it decides the bytes."""
CALIBRATION_ROWS = {True: 512, False: 64}
"""Examples to calibrate on, with and without convolutions: static grids want more than the peaks that smoothing
needs, and what has no convolutions mostly reads a hundred tokens an example."""


@final
@dataclass(frozen=True)
class Quantize(Transform):
    """Weights and activations in eight bits, without training.

    - Weights: int8, symmetric, a scale for each output channel.
    - Convolutions: activations on static 8-bit grids, found on calibration data by least squared error; batch
      norms are folded first; residual sums and pools stay integer.
    - Linear layers: activations in int8, a scale for each token, found as they come; hard channels are smoothed
      into the weights by the strength that loses least on the calibration data.
    - Embeddings that weigh: int8, a scale for each row.

    Args:
        scheme: ``w8a8``, or ``bf16``, where weights and activations are bfloat16 (no calibration is used).
        rest: what is not int8 under ``w8a8`` runs in: ``fp32`` or ``bf16``; the latter without convolutions only.

    >>> net = nn.Sequential(nn.Linear(16, 8))
    >>> type(Quantize()(net, [torch.randn(32, 16)])[0]).__name__
    'QuantLinear'
    """

    scheme: str = choice("w8a8", "w8a8", "bf16", search=("w8a8", "bf16"))
    rest: str = choice("fp32", "fp32", "bf16")

    name: ClassVar[str] = "quantize"
    card: ClassVar[Card] = Card(
        family="ptq",
        benefit="inference time",
        trade_off="quality at low bits",
        paper='"SmoothQuant", Xiao et al. 2022, arXiv:2211.10438; "A white paper on neural network quantization", '
              "Nagel et al. 2021, arXiv:2106.08295",
        needs=frozenset({"calibration"}),
        requires=frozenset({"module", "float-weights"}),
        provides=frozenset({"quantized"}),
        removes=frozenset({"float-weights"}),
    )

    def plan(self, model: nn.Module, context: Context) -> Plan:
        """Find grids and smoothing on calibration data.

        Raises:
            CalibrationError: data is missing, constant or not finite where a layer reads it; names the layer.
            NoEffect: there is nothing to quantize.
        """
        if self.scheme == "bf16":
            if not any(p.dtype == torch.float32 for p in model.parameters()):
                raise NoEffect("quantize(bf16) changed nothing: the model has no float32 parameters")
            return Plan({"bf16": True})
        model = copy.deepcopy(model).eval()
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        work, marked = _graph(model)
        layers = _layers(work)
        if not layers["convolutions"] and not layers["linears"]:
            raise NoEffect(
                "quantize(w8a8) found nothing to quantize: the model has no float nn.Linear, nn.Conv1d or nn.Conv2d "
                "(those with a padding mode or words for padding stay float)"
            )
        if layers["convolutions"] and self.rest == "bf16":
            raise HyperparameterError(
                "quantize(w8a8, rest='bf16') is for models without convolutions: bfloat16 cannot hold the 256 values "
                "of their static grids apart; leave rest out"
            )
        same = graphs.same_grid(work, marked) if marked else {}
        fed = graphs.input_edges(work, marked) if marked else {}
        alone = [name for name in layers["convolutions"] if name not in fed]

        observers: dict[str, Observer] = {}
        outputs: dict[str, Observer] = {}
        handles = []
        for name in alone:
            seen = observers[name] = Observer(name)
            after = outputs[name] = Observer(name)
            handles.append(work.get_submodule(name).register_forward_pre_hook(lambda _, x, seen=seen: _see(seen, x[0])))
            handles.append(work.get_submodule(name).register_forward_hook(lambda _, x, y, seen=after: _see(seen, y)))
        tokens = Tokens()
        handles += [work.get_submodule(name).register_forward_pre_hook(tokens.hook(name)) for name in layers["linears"]]
        at_edges: dict[str, Observer] = {}
        if marked:
            graphs.insert(work, marked, lambda name: at_edges.setdefault(name, Observer(_told(work, name))))
        context.progress("calibrating")
        with torch.no_grad():
            for batch in _rows(context, CALIBRATION_ROWS[bool(layers["convolutions"])]):
                work(*batch)
                tokens.forget_groups()
        for handle in handles:
            handle.remove()

        grids = {name: observer.affine() for name, observer in at_edges.items() if name not in same}
        for name in marked:
            if name in same:
                grids[name] = grids[same[name]]
        own = {name: [*_pair(observers[name]), *_pair(outputs[name])] for name in alone}
        smooth = smoothing(tokens, {name: work.get_submodule(name) for name in layers["linears"]})
        tables = [work.get_submodule(name).weight for name in layers["embeddings"]]
        for name in smooth:
            if any(work.get_submodule(name).weight is table for table in tables):
                smooth[name] = torch.ones_like(smooth[name])  # tied: the table's rows must stay as they are
        return Plan(
            {
                "traced": bool(marked),
                "edges": {name: [grid.scale, grid.zero] for name, grid in grids.items()},
                # Scale and zero of the input; for a convolution off the graph's edges, of its output too.
                "convolutions": {name: [grids[fed[name]].scale, grids[fed[name]].zero] if name in fed else own[name]
                                 for name in layers["convolutions"]},
                "linears": layers["linears"],
                "embeddings": layers["embeddings"],
            },
            {f"smooth.{name}": vector for name, vector in smooth.items()},
        )

    def build(self, model: nn.Module, plan: Plan) -> nn.Module:
        model = model.eval()
        if plan.values.get("bf16"):
            return InBfloat16(model.to(torch.bfloat16))
        if plan.values["traced"]:
            traced = graphs.trace(model)
            if traced is None:
                raise ValueError("the plan was made for a model that could be traced; this one cannot")
            graphs.fold(traced)
            graphs.insert(traced, plan.values["edges"], lambda name: QuantEdge(Affine(*plan.values["edges"][name])))
            model = traced
        shared: dict[Tensor, QuantLinear] = {}
        for name, (scale, zero, *output) in plan.values["convolutions"].items():
            conv: Any = model.get_submodule(name)
            integer_conv = QuantConv(conv, Affine(scale, zero), rounds=bool(output))
            graphs.replace(model, name, nn.Sequential(integer_conv, QuantEdge(Affine(*output))) if output else integer_conv)
        for name in plan.values["linears"]:
            linear: Any = model.get_submodule(name)
            integer = QuantLinear(linear, plan.tensors[f"smooth.{name}"])
            shared[linear.weight] = integer
            graphs.replace(model, name, integer)
        for name in plan.values["embeddings"]:
            embedding: Any = model.get_submodule(name)
            table = QuantEmbedding(embedding)
            if embedding.weight in shared:  # tied: one table serves both, as before
                table.weight, table.scale = shared[embedding.weight].weight, shared[embedding.weight].scale
            graphs.replace(model, name, table)
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        return _rest_in_bf16(model) if self.rest == "bf16" else model

    def claims(self, before: nn.Module, after: nn.Module) -> tuple[Claim, ...]:
        bytes_ = Claim("bytes a weight", bytes_a_weight(before), bytes_a_weight(after),
                       minimum=0.4 * bytes_a_weight(before), probe=bytes_a_weight)
        if self.scheme == "bf16":
            return (bytes_,)
        layers = integer_layers(after)
        return (
            bytes_,
            Claim("layers in integers", integer_layers(before), layers, minimum=max(1.0, layers),
                  probe=integer_layers, fact="integer_layers"),
        )


def bytes_a_weight(model: nn.Module) -> float:
    """Mean bytes of what multiplies: the weights of linear layers, convolutions and embeddings."""
    tensors = [m.weight for m in model.modules() if hasattr(m, "weight") and isinstance(m.weight, Tensor)
               and m.weight.dim() > 1]
    count = sum(x.numel() for x in tensors)
    return sum(x.numel() * x.element_size() for x in tensors) / count if count else 4.0


def integer_layers(model: nn.Module) -> float:
    """Linear layers and convolutions that hold integers."""
    return float(sum(isinstance(m, QuantConv | QuantLinear) for m in model.modules()))


def _graph(model: nn.Module) -> tuple[Any, list[str]]:
    """The model to calibrate and its marked edges; without convolutions, or untraceable, the model itself and none."""
    if not any(graphs.is_convolution(m) for m in model.modules()):
        return model, []
    traced = graphs.trace(copy.deepcopy(model))
    if traced is None:
        return model, []
    graphs.fold(traced)
    return (traced, marked) if (marked := graphs.edges(traced)) else (model, [])


def _layers(model: nn.Module) -> dict[str, list[str]]:
    # Without duplicates: a module that stands in two places is one module.
    found = dict(model.named_modules())
    total = max(1, sum(p.numel() for p in model.parameters()))
    return {
        "convolutions": [name for name, m in found.items() if graphs.is_convolution(m)],
        # Subclasses may do more than multiply, so exact types only.
        "linears": [name for name, m in found.items() if type(m) is nn.Linear],
        "embeddings": [name for name, m in found.items() if type(m) is nn.Embedding and m.max_norm is None
                       and m.weight.numel() >= EMBEDDING_SHARE * total],
    }


def _rows(context: Context, most: int) -> Iterator[tuple[Tensor, ...]]:
    seen = 0
    for batch in context.calibration():
        yield batch
        seen += len(batch[0])
        if seen >= most:
            return


def _pair(observer: Observer) -> list[float]:
    grid = observer.affine()
    return [grid.scale, grid.zero]


def _see(observer: Observer, x: Tensor) -> None:
    observer(x)


def _told(work: Any, node_name: str) -> str:
    """What a user calls the node: the module's dotted name, or the operation's."""
    for node in work.graph.nodes:
        if node.name == node_name and node.op == "call_module":
            return str(node.target)
    return node_name


def _rest_in_bf16(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, QuantEmbedding):
            module.dtype = torch.bfloat16
        elif not isinstance(module, QuantConv | QuantLinear | QuantEdge):
            for name, parameter in module.named_parameters(recurse=False):
                setattr(module, name, nn.Parameter(parameter.to(torch.bfloat16), requires_grad=False))
            for name, buffer in module.named_buffers(recurse=False):
                if buffer.is_floating_point():
                    setattr(module, name, buffer.to(torch.bfloat16))
    return InBfloat16(model)
