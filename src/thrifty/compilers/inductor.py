"""AOTInductor: the model as machine code for this processor, with its weights already in the kernels' order."""

from __future__ import annotations

import contextlib
import copy
import math
import re
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from thrifty.artifacts.lowered import Lowered
from thrifty.compilers.capture import LoweringError, capture, precision_of, specs
from thrifty.compilers.export import write_program
from thrifty.compilers.halves import Halves
from thrifty.compilers.rows import Rows
from thrifty.engines.instructions import instruction_set
from thrifty.errors import ThriftyError
from thrifty.numerics.graph import exchange
from thrifty.numerics.grid import INT8_MAX, TINY, UINT8_MAX
from thrifty.numerics.modules import GroupedEmbedding, GroupedLinear, QuantConv, QuantEdge, QuantLinear
from thrifty.numerics.packed import PackedWeight
from thrifty.recipes.card import Card
from thrifty.recipes.compiler import Compiler
from thrifty.recipes.context import Context

FILE = "model.pt2"
FEW_ROWS = 4
"""Rows up to which a product with weights of few bits dequantizes them for every row, in registers."""
OPTIONS = {
    "freezing": True,  # decides: without it int8 is no faster than fp32 (0.9x), with it 3.6x
    "aot_inductor.use_runtime_constant_folding": False,
    "aot_inductor.compile_wrapper_opt_level": "Os",  # the wrapper only calls kernels: what counts of it is its bytes
}


class NoCompiler(ThriftyError):
    """There is no C++ compiler."""


@final
@dataclass(frozen=True)
class Inductor(Compiler):
    """Fused C++ kernels, frozen weights, oneDNN for products; int8 layers run as oneDNN's integer kernels."""

    name: ClassVar[str] = "inductor"
    card: ClassVar[Card] = Card(
        family="compilers",
        benefit="inference time",
        trade_off="compile time; machine code that serves one kind of processor",
        paper='"PyTorch 2", Ansel et al. 2024, doi:10.1145/3620665.3640366',
        provides=frozenset({"compiled"}),
        removes=frozenset({"module"}),
    )

    def lower(self, model: nn.Module, example: tuple[Tensor, ...], directory: Path, context: Context) -> Lowered:
        """Write ``model.pt2``, an AOTInductor package.

        Raises:
            NoCompiler: no C++ compiler is installed.
            LoweringError: the model cannot be captured or compiled.
        """
        if lacks := self.missing():
            raise NoCompiler(lacks)
        if context.target.device != "cpu":
            return self._program(model, example, directory, context)
        from torch._inductor import aoti_compile_and_package

        placed = _placed(copy.deepcopy(model).eval())
        with _patterns(), torch.no_grad(), tempfile.TemporaryDirectory() as scratch:
            program = capture(placed, example, context.shapes)
            package = Path(scratch) / FILE
            try:
                aoti_compile_and_package(program, package_path=str(package), inductor_configs=dict(OPTIONS))
            except Exception as error:
                raise LoweringError(f"Inductor cannot compile this model: {str(error).strip()[:500]}") from error
            source = _pack(package, directory / FILE)
        inputs, outputs = specs(program, len(example), context.shapes)
        return Lowered(
            engine="inductor", files=(FILE,), inputs=inputs, outputs=outputs, portable=False, native=True,
            needs=("torch",), precision=precision_of(model), instruction_set=instruction_set(),
            facts=kernels(source),
        )

    def _program(self, model: nn.Module, example: tuple[Tensor, ...], directory: Path, context: Context) -> Lowered:
        """For CUDA: the program, compiled where it is opened. There, torch's loader of packages is not to be relied on
        (2.11 segfaults in it), and a CUDA graph, which a small batch needs most, belongs to a process anyway."""
        precision = precision_of(model)
        if "int8" in precision:
            raise LoweringError("compile(inductor) has no integer kernels for CUDA: use quantize(bf16) there")
        program = capture(copy.deepcopy(model).eval().to(context.target.device),
                          tuple(x.to(context.target.device) for x in example), context.shapes)
        inputs, outputs = specs(program, len(example), context.shapes)
        write_program(program, directory / FILE)
        return Lowered(engine="compiled", files=(FILE,), inputs=inputs, outputs=outputs, portable=True, native=False,
                       needs=("torch",), precision=precision)

    @classmethod
    def tools(cls) -> Mapping[str, str | None]:
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            return {"C++ compiler": shutil.which(get_cpp_compiler())}
        except (InvalidCxxCompiler, RuntimeError, OSError):
            return {"C++ compiler": None}

    @classmethod
    def missing(cls) -> str | None:
        return None if all(cls.tools().values()) else (
            "compile(inductor) needs a C++ compiler and found none: install one (Debian, Ubuntu: apt-get install g++; "
            "Fedora: dnf install gcc-c++), or set CXX to yours"
        )


INTEGER_KERNEL = re.compile(r"aoti_torch_\w*?(?:qlinear|qconv|_int_mm)\w*\(|kernels?\.\w*(?:qlinear|qconv)\w*\(")
FLOAT_KERNEL = re.compile(
    r"aoti_torch_\w*(?:(?<!q)linear_pointwise|_mkl_linear|convolution|(?<!b)(?<!int_)mm_out)\w*\("
)
FEW_BITS = re.compile(r"constants_info_\[(\d+)\]\.dtype = cached_torch_dtype_uint8;.*?"
                      r"constants_info_\[\1\]\.original_fqn = \"(?:\w+\.)*few_bits\"", re.DOTALL)


def kernels(source: str) -> dict[str, float]:
    """Count, in the generated call sequence, the integer and the float kernels of weighted layers.

    Returns:
        integer_layers: calls of integer kernels; float_layers: of float ones; few_bit_layers: products whose weights are kept
        as bytes, in a loop that is generated for them or before a float kernel.
    """
    body = "\n".join(line for line in source.splitlines() if not line.lstrip().startswith("//"))
    return {
        "integer_layers": float(len(INTEGER_KERNEL.findall(body))),
        "float_layers": float(len(FLOAT_KERNEL.findall(body))),
        "few_bit_layers": float(len(FEW_BITS.findall(body))),
    }


def _pack(package: Path, destination: Path) -> str:
    """Copy a package compressed, without the C++ that it was compiled from; return that C++."""
    source = ""
    with zipfile.ZipFile(package) as old, zipfile.ZipFile(destination, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as new:
        for entry in old.infolist():
            content = old.read(entry)
            if entry.filename.endswith(".cpp"):
                if ".wrapper" not in entry.filename:
                    continue
                source += content.decode()
                content = b""  # torch 2.11 finds the metadata by this file's name
            if entry.filename.endswith(".so"):
                content = _stripped(content, destination.parent)
            root, _, rest = entry.filename.partition("/")
            new.writestr(zipfile.ZipInfo(f"model/{rest}" if rest else root), content, zipfile.ZIP_DEFLATED)
    return source


def _stripped(library: bytes, scratch: Path) -> bytes:
    """The library without debugging symbols, half of its bytes on a small model, where ``strip`` is installed."""
    if (strip := shutil.which("strip")) is None:
        return library
    with tempfile.NamedTemporaryFile(dir=scratch, suffix=".so") as file:
        file.write(library)
        file.flush()
        subprocess.run([strip, "--strip-unneeded", "-o", f"{file.name}.out", file.name], check=True)
        smaller = Path(f"{file.name}.out")
        content = smaller.read_bytes()
        smaller.unlink()
    return content


# -- where quantize and dequantize stand ------------------------------------------------------------------------


def _placed(model: nn.Module) -> nn.Module:
    """Exchange integer modules for what Inductor's patterns find."""
    return exchange(model, {
        QuantConv: _Conv, QuantLinear: _linear, QuantEdge: lambda edge: _Edge(float(edge.scale), int(edge.zero)),
        GroupedLinear: _Grouped, GroupedEmbedding: Rows, PackedWeight: Halves,
    })


@contextlib.contextmanager
def _patterns() -> Iterator[None]:
    """Register ``quantized_decomposed``, whose operators Inductor fuses into integer convolutions."""
    import torch.ao.quantization.fx._decomposed  # noqa: F401

    yield


class _Edge(nn.Module):
    def __init__(self, scale: float, zero: int) -> None:
        super().__init__()
        self.scale, self.zero = scale, zero

    def forward(self, x: Tensor) -> Tensor:
        ops: Any = torch.ops.quantized_decomposed
        q = ops.quantize_per_tensor.default(x, self.scale, self.zero, 0, 255, torch.uint8)
        return ops.dequantize_per_tensor.default(q, self.scale, self.zero, 0, 255, torch.uint8)


class _Conv(nn.Module):
    def __init__(self, conv: QuantConv) -> None:
        super().__init__()
        self.conv = conv
        # Under free dimensions oneDNN's wrapper misreads the layout of a single input channel (errors of 0.8 of the
        # output's norm, torch 2.13): a second one, of zeros, costs nothing that can be measured.
        self.padded = conv.weight.dim() == 4 and conv.groups == 1 and conv.weight.shape[1] == 1
        if self.padded:
            conv.weight = nn.functional.pad(conv.weight, (0, 0, 0, 0, 0, 1))
        self.edge = _Edge(float(conv.x_scale), int(conv.x_zero)) if conv.rounds else nn.Identity()
        # What is padded was rounded before: rounding again on the same grid changes nothing and is what is matched.
        self.again = _Edge(float(conv.x_scale), int(conv.x_zero)) if self.padded and not conv.rounds else nn.Identity()
        self.register_buffer("zeros", torch.zeros(len(conv.weight), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        ops: Any = torch.ops.quantized_decomposed
        weight = ops.dequantize_per_channel.default(self.conv.weight, self.conv.scale, self.zeros, 0, -127, 127,
                                                    torch.int8)
        if self.padded:
            x = nn.functional.pad(x, (0, 0, 0, 0, 0, 1))
            x = self.again(x)
        return self.conv.convolve(self.edge(x), weight, self.conv.bias)


class _Linear(nn.Module):
    """q = round(x / smooth / t); t * s_w * int_mm(q, q_w^T) + b: Inductor prepacks it for oneDNN."""

    unsmooth: Tensor

    def __init__(self, linear: QuantLinear) -> None:
        super().__init__()
        self.linear = linear
        self.register_buffer("unsmooth", 1 / linear.smooth)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1]).float() * self.unsmooth
        token = flat.abs().amax(1, keepdim=True).clamp_min(TINY) / INT8_MAX
        q = torch.round(flat * (1 / token)).to(torch.int8)
        y = torch._int_mm(q, self.linear.weight.t()).to(torch.float32) * token * self.linear.scale
        if self.linear.bias is not None:
            y = y + self.linear.bias
        return y.reshape(*x.shape[:-1], self.linear.out_features).to(x.dtype)


def _linear(linear: QuantLinear) -> nn.Module:
    return _Linear(linear) if linear.x_scale is None else _StaticLinear(linear)


class _StaticLinear(nn.Module):
    unsmooth: Tensor | None

    def __init__(self, linear: QuantLinear) -> None:
        super().__init__()
        assert linear.x_scale is not None and linear.x_zero is not None
        self.linear, self.edge = linear, _Edge(float(linear.x_scale), int(linear.x_zero))
        self.register_buffer("unsmooth", None if bool((linear.smooth == 1).all()) else 1 / linear.smooth)
        self.register_buffer("zeros", torch.zeros(len(linear.weight), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        ops: Any = torch.ops.quantized_decomposed
        flat = x.float() if self.unsmooth is None else x.float() * self.unsmooth
        weight = ops.dequantize_per_channel.default(self.linear.weight, self.linear.scale, self.zeros, 0, -127, 127, torch.int8)
        return nn.functional.linear(self.edge(flat), weight, self.linear.bias).to(x.dtype)


def _number(x: Tensor) -> Tensor:
    """Bytes as the floats that they are. Freezing would fold any other conversion, and keep what it gives in the file."""
    ops: Any = torch.ops.quantized_decomposed
    result: Tensor = ops.dequantize_per_tensor.default(x, 1.0, 0, 0, UINT8_MAX, torch.uint8)
    return result


class _Grouped(nn.Module):
    """Weights of few bits in one generated loop where there are few rows; else dequantized, all at once, before the product.

    Up to four bits, a byte holds weights j and j + group / 2 of a group: b = q_j + 16 q_(j + group / 2). All is computed in
    floats, which vectorise where shifts do not: q_(j + group / 2) = floor(b / 16).
    """

    few_bits: Tensor
    scale: Tensor
    zero: Tensor
    bias: Tensor | None
    unsmooth: Tensor | None

    def __init__(self, linear: GroupedLinear) -> None:
        super().__init__()
        q = linear.integers().reshape(*linear.scale.shape, linear.group)
        self.halves = linear.bits <= 4 and linear.group % 2 == 0
        if self.halves:
            low, high = q.chunk(2, 2)
            q = low + 16 * high
        self.register_buffer("few_bits", q)
        self.register_buffer("scale", linear.scale.unsqueeze(2))
        self.register_buffer("zero", linear.zero.unsqueeze(2))
        self.register_buffer("bias", linear.bias)
        self.register_buffer("unsmooth", None if linear.smooth is None else 1 / linear.smooth)
        self.outputs = linear.out_features

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.unsmooth is None else x * self.unsmooth.to(x.dtype)
        rows = math.prod(x.shape[:-1])
        y = self.fused(y) if isinstance(rows, int) and rows <= FEW_ROWS else nn.functional.linear(y, self.weight().to(x.dtype))
        return y if self.bias is None else y + self.bias.to(x.dtype)

    def parts(self) -> tuple[Tensor, ...]:
        """The whole numbers of every group as floats: all of them, or its two halves."""
        q = _number(self.few_bits)
        if not self.halves:
            return (q,)
        high = torch.floor(q * (1 / 16))
        return q - 16 * high, high

    def weight(self) -> Tensor:
        zero = _number(self.zero)
        return torch.cat([(q - zero) * self.scale for q in self.parts()], 2).flatten(1)

    def fused(self, x: Tensor) -> Tensor:
        """sum_g s_g (sum_j x_j q_j - z_g sum_j x_j), for each row."""
        groups = x.float().reshape(-1, 1, self.scale.shape[1], x.shape[-1] // self.scale.shape[1])
        parts = self.parts()
        product = sum(x * q for x, q in zip(groups.chunk(len(parts), 3), parts, strict=True))
        y = (product * self.scale).sum((2, 3)) - (_number(self.zero) * self.scale * groups.sum(3, keepdim=True)).sum((2, 3))
        return y.reshape(*x.shape[:-1], self.outputs).to(x.dtype)
