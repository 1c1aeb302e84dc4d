"""TVM: loops that Thrifty orders itself, compiled by LLVM to machine code for this processor."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, final

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from thrifty.artifacts.lowered import Lowered, TensorSpec
from thrifty.compilers import buckets as padding
from thrifty.compilers.capture import LoweringError, capture, precision_of, specs
from thrifty.compilers.requirements import NoCompiler, cpp_compiler_to_install, require, require_processor, to_install
from thrifty.engines.buckets import FILE
from thrifty.engines.instructions import instruction_set
from thrifty.recipes.card import Card
from thrifty.recipes.compiler import Compiler
from thrifty.recipes.context import Context
from thrifty.recipes.hyperparameters import sizes

LIBRARY, WEIGHTS = "model.so", "weights.safetensors"
REFUSED = 3
"""Exit code of the writing process that says why on its stdout."""
Input = tuple[str, list[tuple[int, int]]]
"""dtype of an input, and the least and the largest extent of each of its dimensions."""
ELSEWHERE = "try compile(inductor) or compile(onnxruntime)"


@final
@dataclass(frozen=True)
class Tvm(Compiler):
    """A shared library of fused loops, and its weights; float32 only, no tuning needed.

    Where sizes vary and the model or TVM cannot leave them open, there is a library for each of several sizes, and requests
    are padded to the next.

    Args:
        buckets: those sizes, for each dimension that varies the ones within its range, to be used even where sizes could be
            left open; () for powers of two, and those only where they cannot.
    """

    buckets: tuple[int, ...] = sizes()

    name: ClassVar[str] = "tvm"
    card: ClassVar[Card] = Card(
        family="compilers",
        benefit="inference time",
        trade_off="compile time; machine code that runs on one kind of processor; no int8 or bfloat16",
        paper='"TVM: an automated end-to-end optimizing compiler for deep learning", Chen et al. 2018, arXiv:1802.04799; '
              '"Relax", Lai et al. 2023, arXiv:2311.02103',
        provides=frozenset({"compiled"}),
        removes=frozenset({"module"}),
        refuses=frozenset({"integer-products", "float8-products", "bfloat16"}),
        devices=frozenset({"cpu"}),
    )
    packages: ClassVar[tuple[str, ...]] = ("apache-tvm", "apache-tvm-ffi")
    precisions: ClassVar[tuple[str, ...]] = ("fp32",)
    pads: ClassVar[bool] = True
    version: ClassVar[int] = 2

    def lower(self, model: nn.Module, example: tuple[Tensor, ...], directory: Path, context: Context) -> Lowered:
        """Write ``model.so`` and ``weights.safetensors``; or a library a bucket and ``buckets.json``.

        Raises:
            MissingExtra: apache-tvm is not installed.
            NoCompiler: there is none, to link with.
            LoweringError: the target is no processor, the model cannot be captured, holds other
                numbers than float32, has an operator that TVM lacks, or answers otherwise where it is padded.
        """
        require("tvm", "tvm")
        if lacks := self.missing():
            raise NoCompiler(lacks)
        require_processor(self.name, context.target.device)
        example = tuple(x.cpu() for x in example)
        for x in (*model.parameters(), *model.buffers(), *example):
            if x.is_floating_point() and x.dtype != torch.float32:
                raise LoweringError(f"compile(tvm) computes in float32 but the model holds {x.dtype}: convert it with "
                                    ".float() first, or use compile(inductor)")
        model, varies = model.cpu(), any(low < high for dims in context.shapes.values() for low, high in dims.values())
        if varies and self.buckets:
            files, inputs, outputs = self._padded(model, example, directory, context)
        else:
            try:
                files, inputs, outputs = _open(model, example, directory, context)
            except LoweringError as error:
                if not varies:
                    raise
                (directory / LIBRARY).unlink(missing_ok=True)
                context.progress(f"sizes that vary become buckets: {error}")
                files, inputs, outputs = self._padded(model, example, directory, context)
        return Lowered(
            engine="tvm", files=files, inputs=inputs, outputs=outputs, portable=False, native=True,
            needs=("apache-tvm", "safetensors"), precision=precision_of(model), instruction_set=instruction_set(),
        )

    def _padded(self, model: nn.Module, example: tuple[Tensor, ...], directory: Path, context: Context) -> Written:
        """A library for each bucket, over weights of which each is written once."""
        made = padding.layout(model, example, context.shapes, self.buckets)
        requests = [padding.resized(example, made.inputs, bucket) for bucket in made.sizes]
        with torch.no_grad():
            programs = [capture(model, request, {}) for request in requests]
        inputs, outputs = specs(programs[0], len(example))
        libraries = [library(i) for i in range(len(programs))]
        _write_apart(programs, [_fixed(request) for request in requests], directory, libraries)
        made.write(directory / FILE)
        return ((*libraries, WEIGHTS, FILE), padding.varying(inputs, made.inputs, made.ranges),
                padding.varying(outputs, made.outputs))

    @classmethod
    def missing(cls) -> str | None:
        return to_install("tvm", "tvm") or (
            cpp_compiler_to_install(cls.name, " to link what it wrote") if linker() is None else None)


def linker() -> str | None:
    """The C++ or C compiler that links, as TVM looks for it."""
    chosen = os.environ.get("CXX") or os.environ.get("CC")
    names = [chosen] if chosen else ["g++", "gcc", "clang++", "clang", "c++", "cc"]
    return next((found for name in names if (found := shutil.which(name))), None)


def library(bucket: int) -> str:
    """Name of a bucket's library."""
    return f"model-{bucket}.so"


Written = tuple[tuple[str, ...], tuple[TensorSpec, ...], tuple[TensorSpec, ...]]
"""Names of files, and what goes into the engine and comes out of it."""


def _open(model: nn.Module, example: tuple[Tensor, ...], directory: Path, context: Context) -> Written:
    """One library, its varying sizes left open."""
    with torch.no_grad():
        program = capture(model, example, context.shapes)
    inputs, outputs = specs(program, len(example), context.shapes)
    taken = [(spec.dtype, [context.shapes.get(i, {}).get(d, (n, n)) for d, n in enumerate(spec.shape)])
             for i, spec in enumerate(inputs)]
    _write_apart([program], [taken], directory, [LIBRARY])
    return (LIBRARY, WEIGHTS), inputs, outputs


def _fixed(request: tuple[Tensor, ...]) -> list[Input]:
    return [(str(x.dtype).removeprefix("torch."), [(n, n) for n in x.shape]) for x in request]


def _write_apart(programs: Sequence[ExportedProgram], taken: Sequence[list[Input]], directory: Path,
                 libraries: Sequence[str]) -> None:
    """Write the files in a process of its own: where TVM meets what it cannot do, it may end with a signal."""
    with tempfile.TemporaryDirectory() as place:
        sources = [str(Path(place) / f"{i}.pt2") for i in range(len(programs))]
        for program, source in zip(programs, sources, strict=True):
            torch.export.save(program, source)
        told = json.dumps({"sources": sources, "libraries": [str(directory / name) for name in libraries],
                           "weights": str(directory / WEIGHTS), "inputs": taken})
        done = subprocess.run([sys.executable, "-m", "thrifty.compilers.tvm.lowering"], input=told, capture_output=True,
                              text=True, check=False)
    varies = any(low < high for inputs in taken for _, dims in inputs for low, high in dims)
    instead = f"{'fix the sizes that vary, or ' if varies else ''}{ELSEWHERE}"
    if done.returncode == REFUSED:
        raise LoweringError(f"TVM cannot express this model: {' '.join(done.stdout.split())[-500:]}; {instead}")
    if done.returncode < 0:
        raise LoweringError(f"TVM's process ended with {signal.Signals(-done.returncode).name}; {instead}")
    if done.returncode:
        said = " ".join(done.stderr.split())[-500:]
        raise LoweringError(f"TVM's process exited with {done.returncode} and said: {said}; {instead}")
