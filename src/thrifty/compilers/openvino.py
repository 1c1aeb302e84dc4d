"""OpenVINO IR: integer layers as its low-precision transformations find them, floats in the precision they were given."""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from thrifty.artifacts.lowered import Lowered
from thrifty.compilers.capture import LoweringError, Shapes, capture, precision_of, specs
from thrifty.compilers.placement.openvino import placed
from thrifty.compilers.refusal import cannot_express
from thrifty.compilers.requirements import require, require_processor, to_install
from thrifty.numerics.packing import pack
from thrifty.numerics.ranges import full_range
from thrifty.recipes.card import Card
from thrifty.recipes.compiler import Compiler
from thrifty.recipes.context import Context

FILES = ("model.xml", "model.bin")
WEIGHTED = ("Convolution", "GroupConvolution", "FullyConnected")
"""How the names of its operators with weights begin, after its transformations."""


@final
@dataclass(frozen=True)
class OpenVino(Compiler):
    """OpenVINO's intermediate representation, portable to every processor that OpenVINO supports."""

    name: ClassVar[str] = "openvino"
    card: ClassVar[Card] = Card(
        family="compilers",
        benefit="inference time",
        trade_off="operators that OpenVINO lacks; processors only",
        paper='"OpenVINO deep learning workbench", Gorbachev et al. 2019, ICCV Workshops; https://docs.openvino.ai',
        provides=frozenset({"compiled"}),
        removes=frozenset({"module"}),
        refuses=frozenset({"float8-products"}),
        devices=frozenset({"cpu"}),
    )
    packages: ClassVar[tuple[str, ...]] = ("openvino",)
    precisions: ClassVar[tuple[str, ...]] = ("fp32", "bf16", "int8")

    def lower(self, model: nn.Module, example: tuple[Tensor, ...], directory: Path, context: Context) -> Lowered:
        """Write ``model.xml``, the graph, and ``model.bin``, its weights.

        Raises:
            MissingExtra: openvino is not installed.
            LoweringError: the target is no processor, the model cannot be captured or translated, or its precision is
                none that this processor runs.
        """
        require("openvino", *self.packages)
        require_processor(self.name, context.target.device)
        precision = precision_of(model)
        example = tuple(x.cpu() for x in example)
        with torch.no_grad():
            program = capture(placed(copy.deepcopy(model).eval().cpu()), example, context.shapes)
            inputs, outputs = specs(program, len(example), context.shapes)
            _write(program, example, context.shapes, directory)
        return Lowered(
            engine="openvino", files=FILES, inputs=inputs, outputs=outputs, portable=True, native=False,
            needs=("openvino",), precision=precision, needs_vnni=full_range(model),
            facts=kernels(directory / FILES[0], [x.numpy() for x in example], precision),
        )

    @classmethod
    def missing(cls) -> str | None:
        return to_install("openvino", *cls.packages)


def _write(program: ExportedProgram, example: tuple[Tensor, ...], shapes: Shapes, directory: Path) -> None:
    from thrifty.engines.openvino import openvino  # which silences its telemetry first

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _copy_repeated(program)
            converted = openvino.convert_model(program)
        converted.reshape({
            i: openvino.PartialShape([openvino.Dimension(*shapes.get(i, {}).get(d, (size, size)))
                                      for d, size in enumerate(x.shape)])
            for i, x in enumerate(example)
        })
    except Exception as error:
        raise cannot_express("OpenVINO", error, "onnxruntime", "inductor") from error
    converted = _of_one_type(converted)
    _pack_halves(converted)
    openvino.save_model(converted, directory / FILES[0], compress_to_fp16=False)


def _copy_repeated(program: ExportedProgram) -> None:
    """Give a copy where one value is an output twice: OpenVINO's frontend refuses a value of two names."""
    output = program.graph.output_node()
    given: list[Any] = []
    with program.graph.inserting_before(output):
        for value in output.args[0]:
            if value in given:
                dtype = value.meta["val"].dtype  # not clone, which the frontend sees through
                copied = program.graph.call_function(torch.ops.aten._to_copy.default, (value,), {"dtype": dtype})
                copied.meta = dict(value.meta)
                value = copied
            given.append(value)
    output.args = (tuple(given),)
    for spec, value in zip(program.graph_signature.output_specs, given, strict=True):
        spec.arg.name = value.name
    program.graph_module.recompile()


def _of_one_type(model: Any) -> Any:
    """The graph without conversions between float32 and bfloat16, which would be executed each for itself.

    The runtime is told which of the two it computes in; constants stay as they are in the file.
    """
    from thrifty.engines.openvino import openvino

    f32, bf16 = openvino.Type.f32, openvino.Type.bf16
    changed = model.clone()
    for node in changed.get_ordered_ops():
        kind, out = node.get_type_name(), node.output(0) if node.get_output_size() else None
        if out is None or out.get_element_type() not in (f32, bf16):
            continue
        if kind == "Convert" and node.input_value(0).get_element_type() in (f32, bf16):
            instead = node.input_value(0)
            if instead.get_node().get_type_name() == "Constant":
                continue
        elif kind in ("Convert", "Constant") and out.get_element_type() == bf16:
            instead = openvino.opset13.convert(node if kind == "Constant" else node.input_value(0), "f32").output(0)
        else:
            continue
        for reader in out.get_target_inputs():
            if reader.get_node().get_type_name() != "Convert" or kind == "Convert":
                reader.replace_source_output(instead)
    try:
        changed.validate_nodes_and_infer_types()
    except RuntimeError:  # an operator that names its own type
        return model
    return changed


def _pack_halves(model: Any) -> None:
    """Hold weights of up to four bits as u4, two in a byte; torch has no such type to export.

    They, and their zeros, are known by what dequantizes them: converted, then one less the other.
    """
    from thrifty.engines.openvino import openvino

    for node in model.get_ordered_ops():
        if node.get_type_name() != "Constant" or node.get_element_type() != openvino.Type.u8:
            continue
        readers = [reader.get_node() for reader in node.output(0).get_target_inputs()]
        after = [x.get_node().get_type_name() for reader in readers for x in reader.output(0).get_target_inputs()]
        if {x.get_type_name() for x in readers} != {"Convert"} or set(after) != {"Subtract"} or node.data.max() > 15:
            continue
        q = torch.tensor(node.data).flatten()
        packed = pack(nn.functional.pad(q, (0, len(q) % 2)), 4).numpy()
        # Copied: the array is gone before the file is written.
        halves = openvino.op.Constant(openvino.Tensor(packed, node.shape, openvino.Type.u4), shared_memory=False)
        for reader in node.output(0).get_target_inputs():
            reader.replace_source_output(halves.output(0))
    model.validate_nodes_and_infer_types()


def executed(path: Path, arrays: list[np.ndarray], precision: str = "fp32") -> list[tuple[str, str]]:
    """(operator, kernel) of all that OpenVINO executes for one request, after its own transformations."""
    from thrifty.engines.openvino import OpenVinoEngine

    engine = OpenVinoEngine(path, 1, precision, profile=True)
    engine.run(engine.native(arrays))
    return engine.executed()


def kernels(path: Path, arrays: list[np.ndarray], precision: str) -> dict[str, float]:
    """Run the file once under the runtime's own profiler and count the weighted layers that it executed.

    Returns:
        integer_layers: convolutions and products that read bytes; float_layers: those that read floats; bf16_layers:
        of these, in bfloat16; few_bit_layers: of these, with weights that stay integers until they are multiplied.

    Raises:
        LoweringError: a float32 model ran in bfloat16, or nothing of a bfloat16 model did.
    """
    half = "bf16" in precision.split("+")
    operators = executed(path, arrays, precision)
    ran = Counter(kernel.rpartition("_")[2].lower() for operator, kernel in operators if operator.startswith(WEIGHTED))
    integers = ran.pop("i8", 0) + ran.pop("u8", 0)
    if ran and half != bool(ran["bf16"]):
        raise LoweringError(
            f"OpenVINO runs this {precision} model's float layers in {', '.join(sorted(ran))}: this processor has no "
            "kernels for the requested precision; use another quantize scheme, or compile(inductor)"
        )
    return {
        "integer_layers": float(integers), "float_layers": float(ran.total()), "bf16_layers": float(ran["bf16"]),
        "few_bit_layers": float(sum(operator == "FullyConnectedCompressed" for operator, _ in operators)),
    }
