"""The passes from a torch.export program to a shared library, run in a process of their own."""

from __future__ import annotations

import hashlib
import json
import platform
import sys
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
import tvm
from safetensors.numpy import save_file
from torch.export import ExportedProgram
from tvm import relax, tirx
from tvm.target import Target

from thrifty.compilers.tvm import REFUSED, products, rows
from thrifty.compilers.tvm.constants import BYTES, folded, lifted
from thrifty.compilers.tvm.frontend import translated
from thrifty.compilers.tvm.products import Registers
from thrifty.compilers.tvm.schedules import schedule
from thrifty.engines.instructions import instructions


def host() -> tuple[Target, Registers]:
    """This processor as LLVM knows it, less what it names and a hypervisor hides."""
    cpu = str(tvm.get_global_func("target.llvm_get_system_cpu")())
    if "avx512f" in instructions():
        return Target({"kind": "llvm", "mcpu": cpu}), Registers(lanes=16, sums=28)
    hidden = {"mattr": ["-avx512f"]} if platform.machine() == "x86_64" else {}
    return Target({"kind": "llvm", "mcpu": cpu, **hidden}), Registers(lanes=8, sums=12)


def compiled(program: ExportedProgram, target: Target, registers: Registers) -> tuple[Any, list[np.ndarray]]:
    """The executable, whose ``main`` takes the program's inputs and then the weights, and the weights."""
    module, integers = lifted(translated(program), BYTES)
    module, weights = lifted(optimized(module, target, registers))
    with target:
        return tvm.compile(module, target), integers + weights


def optimized(module: tvm.IRModule, target: Target, registers: Registers) -> tvm.IRModule:
    """Relax operators as scheduled loops: batch norms folded, channels last, products in panels, the rest fused."""
    passes = relax.transform
    with target:
        if _is_fixed(module):  # with sizes that vary, TVM 0.27 ends in a segmentation fault here
            module = passes.FoldBatchnormToConv2D()(module)
        module = folded(passes.DecomposeOpsForInference()(module))
        module = folded(passes.ConvertLayout({"relax.nn.conv2d": ["NHWC", "OHWI"]})(module))
        loops = rows.legalizations(registers.lanes) | products.legalizations(registers)
        module = tvm.transform.Sequential([
            passes.LegalizeOps(loops), passes.AnnotateTIROpPattern(), passes.FoldConstant(), passes.FuseOps(),
            passes.FuseTIR(), passes.DeadCodeElimination()])(module)
    for name, function in list(module.functions_items()):
        if isinstance(function, tirx.PrimFunc):
            done = schedule(function.with_attr("global_symbol", "main"), registers)
            module[name] = done.with_attr("global_symbol", name.name_hint)
    return module


def _is_fixed(module: tvm.IRModule) -> bool:
    return all(isinstance(d, tirx.IntImm) for x in module["main"].params for d in x.ty.shape)


def write(programs: Iterable[ExportedProgram], libraries: Sequence[str], weights: str, inputs: Sequence[Any]) -> None:
    """Compile for this processor and write the libraries, and the weights: each once, with what every library takes before
    them and which of them it takes."""
    kept: dict[tuple[str, tuple[int, ...], bytes], int] = {}
    values: list[np.ndarray] = []
    taken = []
    for program, library in zip(programs, libraries, strict=True):
        executable, own = compiled(program, *host())
        executable.export_library(library)
        order = []
        for x in map(np.ascontiguousarray, own):
            place = kept.setdefault((str(x.dtype), x.shape, hashlib.sha256(x.data).digest()), len(values))
            if place == len(values):
                values.append(x)
            order.append(place)
        taken.append(order)
    save_file({str(i): x for i, x in enumerate(values)}, weights,
              {"inputs": json.dumps(inputs), "weights": json.dumps(taken)})


def main() -> int:
    """Read from stdin where programs are and where the files go; say on stdout what TVM cannot do."""
    told = json.load(sys.stdin)
    programs = map(torch.export.load, told["sources"])
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            write(programs, told["libraries"], told["weights"], told["inputs"])
    except Exception as error:
        print(f"{type(error).__name__}: {error}")  # noqa: T201  # for the parent
        return REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main())
