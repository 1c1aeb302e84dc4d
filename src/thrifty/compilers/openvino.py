"""OpenVINO IR: integer layers as its low-precision transformations find them, floats in the precision they were given."""

from __future__ import annotations

import copy
import importlib.util
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
from thrifty.compilers.halves import Halves
from thrifty.compilers.refusal import cannot_express
from thrifty.compilers.rows import Rows
from thrifty.errors import MissingExtra
from thrifty.numerics.graph import exchange
from thrifty.numerics.grid import INT8_MAX, TINY, UINT8_MAX, rows
from thrifty.numerics.modules import GroupedEmbedding, GroupedLinear, QuantConv, QuantEdge, QuantLinear
from thrifty.numerics.packed import PackedWeight
from thrifty.numerics.packing import pack
from thrifty.recipes.card import Card
from thrifty.recipes.compiler import Compiler
from thrifty.recipes.context import Context

FILES = ("model.xml", "model.bin")
WEIGHTED = ("Convolution", "GroupConvolution", "FullyConnected")
"""How the names of its operators with weights begin, after its transformations."""
MIDDLE = 128
"""Of unsigned bytes: where zero lies."""


@final
@dataclass(frozen=True)
class OpenVino(Compiler):
    """OpenVINO's intermediate representation, portable to every processor that OpenVINO serves."""

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
        if importlib.util.find_spec("openvino") is None:
            raise MissingExtra("openvino", "openvino")
        if context.target.device != "cpu":
            raise LoweringError(f"compile(openvino) serves processors, not {context.target.device}: use compile(inductor)")
        precision = precision_of(model)
        example = tuple(x.cpu() for x in example)
        with torch.no_grad():
            program = capture(_placed(copy.deepcopy(model).eval().cpu()), example, context.shapes)
            inputs, outputs = specs(program, len(example), context.shapes)
            _write(program, example, context.shapes, directory)
        return Lowered(
            engine="openvino", files=FILES, inputs=inputs, outputs=outputs, portable=True, native=False,
            needs=("openvino",), precision=precision,
            facts=kernels(directory / FILES[0], [x.numpy() for x in example], precision),
        )

    @classmethod
    def missing(cls) -> str | None:
        if importlib.util.find_spec("openvino") is None:
            return "openvino is not installed: pip install 'thrifty[openvino]'"
        return None


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
            "kernels for what was asked; use another scheme of quantize, or compile(inductor)"
        )
    return {
        "integer_layers": float(integers), "float_layers": float(ran.total()), "bf16_layers": float(ran["bf16"]),
        "few_bit_layers": float(sum(operator == "FullyConnectedCompressed" for operator, _ in operators)),
    }


# -- where quantize and dequantize stand ------------------------------------------------------------------------


def _placed(model: nn.Module) -> nn.Module:
    """Exchange integer modules for what the low-precision transformations look for."""
    return exchange(model, {
        QuantConv: _Conv, QuantLinear: _linear, QuantEdge: lambda edge: _Edge(edge.scale, edge.zero),
        GroupedLinear: _Grouped, GroupedEmbedding: Rows, PackedWeight: Halves,
    })


def _rounded(x: Tensor, scale: float, zero: int, low: int, high: int, dtype: torch.dtype) -> Tensor:
    """A FakeQuantize: scale * (clamp(round(x / scale) + zero, low, high) - zero)."""
    import torch.ao.quantization.fx._decomposed  # registers the operators

    ops: Any = torch.ops.quantized_decomposed
    q = ops.quantize_per_tensor.default(x, scale, zero, low, high, dtype)
    result: Tensor = ops.dequantize_per_tensor.default(q, scale, zero, low, high, dtype)
    return result


class _Edge(nn.Module):
    """A FakeQuantize of 256 levels; the weights beside it are int8, times a scale, and stay int8 in the file."""

    def __init__(self, scale: Tensor, zero: Tensor) -> None:
        super().__init__()
        self.scale, self.zero = float(scale), int(zero)

    def forward(self, x: Tensor) -> Tensor:
        return _rounded(x, self.scale, self.zero, 0, UINT8_MAX, torch.uint8)


class _Conv(nn.Module):
    def __init__(self, conv: QuantConv) -> None:
        super().__init__()
        self.conv = conv
        self.edge = _Edge(conv.x_scale, conv.x_zero) if conv.rounds else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.conv.convolve(self.edge(x), rows(self.conv.weight, self.conv.scale), self.conv.bias)


class _Linear(nn.Module):
    """t * ((s_w q_w) (u - 128)) + b, u = 128 + round(x / smooth / t), t the token's step.

    The rounding is a FakeQuantize whose grid, the whole numbers, is static; so the product runs in the integer kernel of
    static activations. OpenVINO's own dynamic quantization is slower, and groups tokens' features by a rule of its own.
    Where several layers read one tensor, OpenVINO finds that they round it alike and does it once. The kernel takes unsigned
    bytes as they are and shifts signed ones itself; what 128 adds to every output is a bias, which costs nothing.
    """

    unsmooth: Tensor | None
    shift: Tensor

    def __init__(self, linear: QuantLinear) -> None:
        super().__init__()
        self.linear = linear
        self.register_buffer("unsmooth", None if bool((linear.smooth == 1).all()) else 1 / linear.smooth)
        self.register_buffer("shift", -MIDDLE * linear.weight.sum(1) * linear.scale)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.float() if self.unsmooth is None else x.float() * self.unsmooth
        peak = flat.abs().amax(-1, keepdim=True).clamp_min(TINY)
        u = _rounded(flat * (INT8_MAX / peak) + MIDDLE, 1.0, 0, 0, UINT8_MAX, torch.uint8)
        y = (nn.functional.linear(u, rows(self.linear.weight, self.linear.scale)) + self.shift) * (peak / INT8_MAX)
        return (y if self.linear.bias is None else y + self.linear.bias).to(x.dtype)


def _linear(linear: QuantLinear) -> nn.Module:
    return _Linear(linear) if linear.x_scale is None else _StaticLinear(linear)


class _StaticLinear(nn.Module):
    unsmooth: Tensor | None

    def __init__(self, linear: QuantLinear) -> None:
        super().__init__()
        assert linear.x_scale is not None and linear.x_zero is not None
        self.linear, self.edge = linear, _Edge(linear.x_scale, linear.x_zero)
        self.register_buffer("unsmooth", None if bool((linear.smooth == 1).all()) else 1 / linear.smooth)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.float() if self.unsmooth is None else x.float() * self.unsmooth
        return nn.functional.linear(self.edge(flat), rows(self.linear.weight, self.linear.scale), self.linear.bias).to(x.dtype)


class _Grouped(nn.Module):
    """Integers less their zeros, times a scale, reshaped: what the runtime's compressed products are recognised by.

    Under bfloat16 the product, written in float32, still runs in bfloat16. There it forgets the last of an odd number of
    inputs (2026.4): rows of one group are given one more, whose weight is 0.
    """

    q: Tensor
    scale: Tensor
    zero: Tensor
    bias: Tensor | None
    unsmooth: Tensor | None

    def __init__(self, linear: GroupedLinear) -> None:
        super().__init__()
        q = linear.integers().reshape(*linear.scale.shape, -1)
        self.odd = linear.in_features % 2 == 1 == linear.scale.shape[1]
        if self.odd:
            q = torch.cat([q, linear.zero.unsqueeze(2)], 2)
        self.shape = (linear.out_features, -1)
        self.register_buffer("q", q)
        self.register_buffer("scale", linear.scale.unsqueeze(2))
        self.register_buffer("zero", linear.zero.unsqueeze(2))
        self.register_buffer("bias", linear.bias)
        self.register_buffer("unsmooth", None if linear.smooth is None else 1 / linear.smooth)

    def forward(self, x: Tensor) -> Tensor:
        weight = ((self.q.float() - self.zero.float()) * self.scale).reshape(self.shape)
        y = x.float() if self.unsmooth is None else x.float() * self.unsmooth
        y = nn.functional.pad(y, (0, 1)) if self.odd else y
        return nn.functional.linear(y, weight, self.bias).to(x.dtype)
