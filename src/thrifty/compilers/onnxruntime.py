"""ONNX for ONNX Runtime: its own operators, and quantization where its integer kernels look for it."""

from __future__ import annotations

import copy
import functools
import json
import logging
import os
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, final

import numpy as np
import torch
from torch import Tensor, nn

from thrifty.artifacts.lowered import Lowered, TensorSpec
from thrifty.compilers.capture import LoweringError, capture, precision_of, specs
from thrifty.compilers.placement.onnxruntime import Attention, placed
from thrifty.compilers.refusal import cannot_express, refuse_projections
from thrifty.compilers.requirements import require, to_install
from thrifty.numerics.ranges import full_range
from thrifty.recipes.card import Card
from thrifty.recipes.compiler import Compiler
from thrifty.recipes.context import Context

FILE = "model.onnx"
OPSET = 20
PACKAGES = ("onnx", "onnxscript", "onnxruntime")
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
    """An ONNX file, portable to every machine that ONNX Runtime supports, from a browser to a server."""

    name: ClassVar[str] = "onnxruntime"
    card: ClassVar[Card] = Card(
        family="compilers",
        benefit="inference time",
        trade_off="operators that ONNX lacks; no bfloat16 on CPU",
        paper='"ONNX Runtime", Microsoft 2018-2026, https://onnxruntime.ai',
        provides=frozenset({"compiled"}),
        removes=frozenset({"module"}),
        refuses=frozenset({"float8-products"}),
    )
    packages: ClassVar[tuple[str, ...]] = ("onnxruntime", "onnx", "onnxscript")
    precisions: ClassVar[tuple[str, ...]] = ("fp32", "int8")
    version: ClassVar[int] = 2

    def lower(self, model: nn.Module, example: tuple[Tensor, ...], directory: Path, context: Context) -> Lowered:
        """Write ``model.onnx``, weights inside.

        Raises:
            MissingExtra: onnx, onnxscript or onnxruntime is not installed.
            LoweringError: the model cannot be captured or translated, holds bfloat16, or is over 2 GB.
        """
        require("onnxruntime", *PACKAGES)
        self.admit(model, "cpu")
        if any(x.dtype == torch.bfloat16 for x in (*model.parameters(), *model.buffers())):
            raise LoweringError(
                "ONNX Runtime has no bfloat16 kernels on CPU: use compile(inductor), or quantize(w8a8) with rest=fp32"
            )
        ready = placed(copy.deepcopy(model).eval().cpu())
        if sum(x.numel() * x.element_size() for x in (*ready.parameters(), *ready.buffers())) > LARGEST:
            raise LoweringError("the weights are over 2 GB, more than one ONNX file holds: use compile(inductor)")
        example = tuple(x.cpu() for x in example)
        _parse_once()
        with torch.no_grad(), _quiet():
            with Attention():
                program = capture(ready, example, context.shapes)
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
            needs=("onnxruntime",), precision=precision_of(model), needs_vnni=full_range(model),
            facts=kernels(directory / FILE, [x.numpy() for x in example]),
        )

    def admit(self, model: nn.Module, device: str) -> None:
        refuse_projections(model, "ONNX Runtime", "openvino", "inductor")

    @classmethod
    def missing(cls) -> str | None:
        return to_install("onnxruntime", *PACKAGES)


def kernels(path: Path, arrays: list[np.ndarray]) -> dict[str, float]:
    """Run the file once under the runtime's own profiler and count the kernels that it executed.

    Returns:
        integer_layers: integer products; float_layers: float convolutions and products with weights; few_bit_layers: of
        these, with weights that stay integers until they are multiplied.
    """
    import onnx

    graph = onnx.load(path).graph
    constants = {x.name for x in graph.initializer}
    weighted = {node.name for node in graph.node if node.op_type == "MatMul" and constants.intersection(node.input)}
    ran = _events(path, arrays)
    dequantized = {x.name for x in graph.node if x.op_type == "DequantizeLinear" and x.input[0] in constants}
    return {
        "integer_layers": float(sum(operator in INTEGER for _, operator in ran)),
        "float_layers": float(sum(operator in FLOAT or (operator == "MatMul" and name in weighted)
                                  for name, operator in ran)),
        "few_bit_layers": float(sum(operator == "MatMulNBits" or (operator == "DequantizeLinear" and name in dequantized)
                                    for name, operator in ran)),
    }


def executed(path: Path, arrays: list[np.ndarray]) -> Counter[str]:
    """Operators that ONNX Runtime executes for one request, after its own optimizations."""
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
    _once(model.graph)
    _own_zeros(model.graph)
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output, *model.graph.initializer):
        del value.metadata_props[:]
        value.doc_string = ""
    onnx.save(model, path)


def _once(graph: Any) -> None:
    """Keep one of equal weights: a table that is looked up and multiplied by."""
    first: dict[tuple[int, tuple[int, ...], bytes], str] = {}
    names = {x.name: first.setdefault((x.data_type, tuple(x.dims), x.raw_data), x.name)
             for x in graph.initializer if x.raw_data}
    for node in graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = names.get(name, name)
    kept = [x for x in graph.initializer if names.get(x.name, x.name) == x.name]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _own_zeros(graph: Any) -> None:
    """Give every int8 weight zeros of its own: to multiply unsigned bytes, the runtime shifts a weight and its zeros, and fails
    at zeros that it shifted before (1.32)."""
    import onnx

    held = {x.name: x for x in graph.initializer if x.data_type == onnx.TensorProto.INT8}
    taken: set[str] = set()
    for node in graph.node:
        if node.op_type != "DequantizeLinear" or (name := node.input[2]) not in held:
            continue
        if name in taken:
            own = graph.initializer.add()
            own.CopyFrom(held[name])
            own.name = node.input[2] = f"{node.output[0]}_zeros"
        taken.add(name)


@functools.cache
def _parse_once() -> None:
    """Keep the exporter's translations in this process: it parses the sources of all of them at each export."""
    with suppress(ImportError, AttributeError):  # they are torch's own, of some versions
        from torch.onnx._internal.exporter import _registration

        apis: Any = _registration.onnxscript_apis
        apis.get_torchlib_ops = functools.cache(apis.get_torchlib_ops)


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
