"""AOTInductor: the model as machine code for this processor, with its weights already in the kernels' order."""

from __future__ import annotations

import contextlib
import copy
import re
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from thrifty.artifacts.lowered import Lowered
from thrifty.compilers.capture import LoweringError, capture, precision_of, specs
from thrifty.compilers.export import write_program
from thrifty.compilers.packing import packed_for
from thrifty.compilers.placement.inductor import placed
from thrifty.compilers.refusal import refuse_bfloat16_lstm
from thrifty.compilers.requirements import NoCompiler, cpp_compiler_to_install
from thrifty.engines.instructions import instruction_set
from thrifty.errors import in_one_line
from thrifty.recipes.card import Card
from thrifty.recipes.compiler import Compiler
from thrifty.recipes.context import Context

FILE = "model.pt2"
OPTIONS: dict[str, bool | str] = {
    "freezing": True,  # decides: without it int8 is no faster than fp32 (0.9x), with it 3.6x
    "aot_inductor.use_runtime_constant_folding": False,
    "aot_inductor.compile_wrapper_opt_level": "Os",  # the wrapper only calls kernels: what counts of it is its bytes
    "aot_inductor.enable_line_tables": False,  # for profilers; without them g++ takes a quarter less
}


@final
@dataclass(frozen=True)
class Inductor(Compiler):
    """Fused C++ kernels, frozen weights, oneDNN for matrix multiplications; int8 layers run as oneDNN's integer kernels."""

    name: ClassVar[str] = "inductor"
    card: ClassVar[Card] = Card(
        family="compilers",
        benefit="inference time",
        trade_off="compile time; machine code that runs on one kind of processor",
        paper='"PyTorch 2", Ansel et al. 2024, doi:10.1145/3620665.3640366',
        provides=frozenset({"compiled"}),
        removes=frozenset({"module"}),
    )
    version: ClassVar[int] = 3

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
        self.admit(model, "cpu")
        from torch._inductor import aoti_compile_and_package

        ready = placed(copy.deepcopy(model).eval())
        with torch.no_grad(), tempfile.TemporaryDirectory() as scratch:
            program = capture(ready, example, context.shapes)
            package = Path(scratch) / FILE
            try:
                with _on(context.target.threads), packed_for(context.batch):
                    aoti_compile_and_package(program, package_path=str(package), inductor_configs=_options())
            except Exception as error:
                raise LoweringError(f"Inductor cannot compile this model: {in_one_line(error)}") from error
            source = _pack(package, directory / FILE)
        inputs, outputs = specs(program, len(example), context.shapes)
        return Lowered(
            engine="inductor", files=(FILE,), inputs=inputs, outputs=outputs, portable=False, native=True,
            needs=("torch",), precision=precision_of(model), instruction_set=instruction_set(),
            facts=kernels(source),
        )

    def admit(self, model: nn.Module, device: str) -> None:
        if device == "cpu":
            refuse_bfloat16_lstm(model, "Inductor", "export")

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
        return None if all(cls.tools().values()) else cpp_compiler_to_install(cls.name)


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


def _options() -> dict[str, bool | str]:
    """Those of `OPTIONS` that this torch has: its 2.11 writes no line tables."""
    from torch._inductor import config

    known = config.get_config_copy()
    return {name: value for name, value in OPTIONS.items() if name in known}


@contextlib.contextmanager
def _on(threads: int) -> Iterator[None]:
    """Compile for that many threads, which kernels are written and weights are packed for, not for this process's.

    ResNet-18 that was compiled on two threads took six times as long on one: oneDNN packed its weights anew at each call.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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
                _refuse_own_runtime(content)
                content = _stripped(content, destination.parent)
            root, _, rest = entry.filename.partition("/")
            new.writestr(zipfile.ZipInfo(f"model/{rest}" if rest else root), content, zipfile.ZIP_DEFLATED)
    return source


def _refuse_own_runtime(library: bytes) -> None:
    """Refuse what would crash when it is opened: locales of a C++ runtime that is linked in are not those of torch's."""
    if library.startswith(b"\x7fELF") and b"libstdc++.so" not in library and b"libc++.so" not in library:
        from torch._inductor.cpp_builder import get_cpp_compiler

        raise LoweringError(f"the C++ compiler {get_cpp_compiler()} links a C++ runtime of its own into the library that "
                            "Inductor builds, which crashes beside torch's; name a compiler that does not: CXX=/usr/bin/g++")


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
