"""ONNX for ONNX Runtime: its own operators, and quantization where its integer kernels look for it."""

from __future__ import annotations

import copy
import importlib.util
import json
import logging
import os
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from thrifty.compilers.capture import LoweringError, capture, precision_of, specs
from thrifty.compilers.refusal import cannot_express
from thrifty.errors import MissingExtra
from thrifty.method import Card, Compiler, Context, Lowered, TensorSpec
from thrifty.numerics.graph import exchange
from thrifty.numerics.grid import TINY
from thrifty.numerics.modules import QuantConv, QuantEdge, QuantLinear

FILE = "model.onnx"
OPSET = 20
INTEGER = frozenset({
    "QLinearConv", "ConvInteger", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QGemm",
    "QLinearMatMul", "NhwcQLinearConv",
})
FLOAT = frozenset({"Conv", "FusedConv", "Gemm", "NhwcFusedConv", "MatMulNBits"})
LARGEST = 2**31 - 2**20
"""Bytes: an ONNX file is one protobuf message, which ends at 2 GB."""


@final
@dataclass(frozen=True)
class OnnxRuntime(Compiler):
    """An ONNX file, portable to every machine that ONNX Runtime serves, from a browser to a server."""

    name: ClassVar[str] = "onnxruntime"
    card: ClassVar[Card] = Card(
        family="compilers",
        benefit="inference time",
        trade_off="operators that ONNX lacks; no bfloat16 on CPU",
        paper='"ONNX Runtime", Microsoft 2018-2026, https://onnxruntime.ai',
        provides=frozenset({"compiled"}),
        removes=frozenset({"module"}),
    )
    packages: ClassVar[tuple[str, ...]] = ("onnxruntime", "onnx", "onnxscript")
    precisions: ClassVar[tuple[str, ...]] = ("fp32", "int8")

    def lower(self, model: nn.Module, example: tuple[Tensor, ...], directory: Path, context: Context) -> Lowered:
        """Write ``model.onnx``, weights inside.

        Raises:
            MissingExtra: onnx, onnxscript or onnxruntime is not installed.
            LoweringError: the model cannot be captured or translated, holds bfloat16, or is over 2 GB.
        """
        for package in ("onnx", "onnxscript", "onnxruntime"):
            if importlib.util.find_spec(package) is None:
                raise MissingExtra(package, "onnxruntime")
        if any(x.dtype == torch.bfloat16 for x in (*model.parameters(), *model.buffers())):
            raise LoweringError(
                "ONNX Runtime has no bfloat16 kernels on CPU: use compile(inductor), or quantize(w8a8) with rest=fp32"
            )
        placed = _placed(copy.deepcopy(model).eval().cpu())
        if sum(x.numel() * x.element_size() for x in (*placed.parameters(), *placed.buffers())) > LARGEST:
            raise LoweringError("the weights are over 2 GB, more than one ONNX file holds: use compile(inductor)")
        example = tuple(x.cpu() for x in example)
        with torch.no_grad(), _quiet():
            with _Attention():
                program = capture(placed, example, context.shapes)
            inputs, outputs = specs(program, len(example), context.shapes)
            try:
                exported = torch.onnx.export(
                    program, dynamo=True, verbose=False, opset_version=OPSET, optimize=True,
                    input_names=[x.name for x in inputs], output_names=_apart(inputs, outputs),
                )
            except Exception as error:
                raise cannot_express("ONNX", error, "openvino", "inductor") from error
            assert exported is not None
            _rename_inner(exported.model.graph)
            exported.save(directory / FILE, external_data=False)
        _strip(directory / FILE)
        return Lowered(
            engine="onnxruntime", files=(FILE,), inputs=inputs, outputs=outputs, portable=True, native=False,
            needs=("onnxruntime",), precision=precision_of(model),
            facts=kernels(directory / FILE, [x.numpy() for x in example]),
        )

    @classmethod
    def missing(cls) -> str | None:
        lacking = [p for p in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(p) is None]
        return f"{lacking[0]} is not installed: pip install 'thrifty[onnxruntime]'" if lacking else None


def kernels(path: Path, arrays: list[np.ndarray]) -> dict[str, float]:
    """Run the file once under the runtime's own profiler and count the kernels that it executed.

    Returns:
        integer_layers: integer products; float_layers: float convolutions and products with weights.
    """
    import onnx

    graph = onnx.load(path).graph
    constants = {x.name for x in graph.initializer}
    weighted = {node.name for node in graph.node if node.op_type == "MatMul" and constants.intersection(node.input)}
    ran = _events(path, arrays)
    return {
        "integer_layers": float(sum(operator in INTEGER for _, operator in ran)),
        "float_layers": float(sum(operator in FLOAT or (operator == "MatMul" and name in weighted)
                                  for name, operator in ran)),
    }


def executed(path: Path, arrays: list[np.ndarray]) -> Counter[str]:
    """Operators that ONNX Runtime executes for one request, after its own optimisations."""
    return Counter(operator for _, operator in _events(path, arrays))


def _events(path: Path, arrays: list[np.ndarray]) -> list[tuple[str, str]]:
    """(node's name, operator) of each kernel that ran."""
    from thrifty.engines.onnxruntime import OnnxRuntimeEngine

    with tempfile.TemporaryDirectory() as scratch:
        engine = OnnxRuntimeEngine(path, 1, "cpu", profile=os.path.join(scratch, "ran"))
        engine.run(engine.native(arrays))
        events = json.loads(Path(engine.session.end_profiling()).read_text())
    return [(event["name"].removesuffix("_kernel_time"), event["args"]["op_name"]) for event in events
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")]


# -- where quantize and dequantize stand ------------------------------------------------------------------------


def _op(name: str, inputs: tuple[Tensor | None, ...], like: Any, dtype: torch.dtype, version: int = 19,
        **attributes: Any) -> Tensor:
    result: Tensor = torch.onnx.ops.symbolic(name, inputs, attributes, dtype=dtype, shape=like, version=version)
    return result


def _placed(model: nn.Module) -> nn.Module:
    """Exchange integer modules for ONNX's own operators."""
    return exchange(model, {
        QuantConv: _Conv, QuantLinear: _Linear, QuantEdge: lambda edge: _Edge(edge.scale, edge.zero),
    })


class _Edge(nn.Module):
    """QuantizeLinear, DequantizeLinear: the runtime moves them through ReLUs, sums and pools and fuses them there."""

    scale: Tensor
    zero: Tensor

    def __init__(self, scale: Tensor, zero: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale.clone())
        self.register_buffer("zero", zero.to(torch.uint8))

    def forward(self, x: Tensor) -> Tensor:
        q = _op("QuantizeLinear", (x, self.scale, self.zero), x.shape, torch.uint8)
        return _op("DequantizeLinear", (q, self.scale, self.zero), x.shape, torch.float32)


class _Conv(nn.Module):
    """Weights by channel and a bias of 32 bits at scale x_scale * w_scale, as QLinearConv wants them."""

    bias: Tensor
    bias_scale: Tensor
    bias_zero: Tensor
    zero: Tensor

    def __init__(self, conv: QuantConv) -> None:
        super().__init__()
        self.conv = conv
        self.edge: nn.Module = _Edge(conv.x_scale, conv.x_zero) if conv.rounds else nn.Identity()
        scale = conv.x_scale * conv.scale
        self.register_buffer("bias_scale", scale)
        self.register_buffer("bias", torch.round(conv.bias / scale).clamp(-(2**31) + 1, 2**31 - 129).to(torch.int32))
        self.register_buffer("bias_zero", torch.zeros_like(self.bias))
        self.register_buffer("zero", torch.zeros(len(conv.weight), dtype=torch.int8))
        del conv.bias
        self.shape = tuple(conv.weight.shape)

    def forward(self, x: Tensor) -> Tensor:
        weight = _op("DequantizeLinear", (self.conv.weight, self.conv.scale, self.zero), self.shape, torch.float32,
                     axis=0)
        bias = _op("DequantizeLinear", (self.bias, self.bias_scale, self.bias_zero), self.shape[:1], torch.float32,
                   axis=0)
        return self.conv.convolve(self.edge(x), weight, bias)


class _Linear(nn.Module):
    """Tokens are divided by their peaks, after which one fixed grid fits all of them: the fused
    MatMulIntegerToFloat, which takes a single scale, then computes per-token products.
    """

    unsmooth: Tensor | None
    weight: Tensor
    scale: Tensor
    step: Tensor
    zero: Tensor
    bias: Tensor | None

    def __init__(self, linear: QuantLinear) -> None:
        super().__init__()
        smooth = linear.smooth
        self.register_buffer("unsmooth", None if bool((smooth == 1).all()) else 1 / smooth)
        self.register_buffer("weight", linear.weight.t().contiguous())
        self.register_buffer("scale", linear.scale.clone())
        self.register_buffer("step", torch.tensor(1 / 127))
        self.register_buffer("zero", torch.tensor(128, dtype=torch.uint8))
        self.register_buffer("bias", None if linear.bias is None else linear.bias.clone())

    def forward(self, x: Tensor) -> Tensor:
        if self.unsmooth is not None:
            x = x * self.unsmooth
        peak = x.abs().amax(-1, keepdim=True).clamp_min(TINY)
        q = _op("QuantizeLinear", (x * (1 / peak), self.step, self.zero), x.shape, torch.uint8)
        shape = (*x.shape[:-1], self.weight.shape[1])
        y = _op("com.microsoft::MatMulIntegerToFloat", (q, self.weight, self.step, self.scale, self.zero), shape,
                torch.float32, version=1) * peak
        return y if self.bias is None else y + self.bias


class _Attention(TorchFunctionMode):
    """Attention as the runtime's one operator: its own fusion does not find it in what torch.onnx writes.

    Half the time of a small encoder's float part goes into the transposes and masks that this leaves out.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is nn.functional.scaled_dot_product_attention and (fused := _attention(*args, **(kwargs or {}))) is not None:
            return fused
        return func(*args, **(kwargs or {}))


def _attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
               is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False) -> Tensor | None:
    if query.dim() != 4 or enable_gqa or query.dtype != torch.float32 or (is_causal and attn_mask is not None):
        return None
    heads, bias = query.shape[1], attn_mask
    if bias is not None:
        if bias.dtype == torch.bool:  # a large negative number: with -inf, rows without any token would be NaN
            bias = torch.where(bias, 0.0, -1e30)
        if bias.dim() > 4:
            return None
        bias = bias[(None,) * (4 - bias.dim())]  # the first two dimensions may be 1, the others may not
        bias = bias.expand(-1, -1, query.shape[2], key.shape[2])
    joined = [x.transpose(1, 2).flatten(2) for x in (query, key, value)]  # [batch, tokens, heads * features]
    options: dict[str, Any] = {"num_heads": heads, "unidirectional": int(is_causal)}
    if scale is not None:
        options["scale"] = float(scale)
    shape = (*joined[0].shape[:2], heads * value.shape[-1])
    out = _op("com.microsoft::MultiHeadAttention", (*joined, None, None, bias), shape, torch.float32, version=1, **options)
    return out.unflatten(2, (heads, value.shape[-1])).transpose(1, 2)


def _apart(inputs: Iterable[TensorSpec], outputs: Iterable[TensorSpec]) -> list[str]:
    """Names of outputs that no input has: a graph's values have names of their own."""
    taken = {x.name for x in inputs}
    return [f"output_{x.name}" if x.name in taken else x.name for x in outputs]


def _rename_inner(graph: Any) -> None:
    """Give values within another name where an output has theirs: the exporter names them after operators."""
    outputs = {value.name for value in graph.outputs}
    for node in graph:
        for value in node.outputs:
            if value.name in outputs and not value.is_graph_output():
                value.name = f"{value.name}_within"


def _strip(path: Path) -> None:
    """Leave out what only a debugger reads: it names this machine's files."""
    import onnx

    model = onnx.load(path)
    model.doc_string = ""
    del model.metadata_props[:]
    graphs = [model.graph, *model.functions]
    for graph in graphs:
        graph.doc_string = ""
        del graph.metadata_props[:]
        for node in graph.node:
            node.doc_string = ""
            del node.metadata_props[:]
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output, *model.graph.initializer):
        del value.metadata_props[:]
        value.doc_string = ""
    onnx.save(model, path)


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter logs its steps and warns about its own libraries."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
