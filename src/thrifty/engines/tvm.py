"""Opens a library that TVM compiled: machine code, only where the user trusts it; imports TVM's runtime, never torch."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

import numpy as np
from safetensors import safe_open

from thrifty.engines.buckets import FILE, Buckets, Layout
from thrifty.engines.engine import Engine, EngineError
from thrifty.errors import in_one_line

ALIGNMENT = 64
"""Bytes, to which the compiled loops take every tensor to be aligned."""
CPU, POOLED, ALL_CORES = 1, 2, 1
"""TVM's numbers of the device, of the allocator that keeps memory for the next call, and of the kind of cores."""


@contextmanager
def _without_torch() -> Iterator[None]:
    """TVM's bindings import torch where they find it, seconds that this engine has no use for."""
    absent = "torch" not in sys.modules
    if absent:
        sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if absent:
            del sys.modules["torch"]


with _without_torch():
    os.environ.setdefault("TVM_FFI_DISABLE_TORCH_C_DLPACK", "1")  # or they compile an extension for torch
    import tvm_ffi

# A thread that is bound to a core stays there when others take it.
os.environ.setdefault("TVM_BIND_THREADS", "0")


def _load_runtime() -> None:
    """The runtime alone: importing the package tvm would load the compiler, 260 MB."""
    found = importlib.util.find_spec("tvm")
    places = [] if found is None else found.submodule_search_locations or []
    libraries = [path for place in places for path in Path(place).glob("lib/libtvm_runtime.*")]
    if not libraries:
        raise EngineError("apache-tvm is not installed correctly: libtvm_runtime is missing. Run "
                          "pip install --force-reinstall 'thrifty[tvm]'")
    ctypes.CDLL(str(libraries[0]), ctypes.RTLD_GLOBAL)


_load_runtime()


@final
class TvmEngine(Engine):
    """Args:
        library: path of what `compile(tvm)` wrote.
        inputs: that it takes.
        weights: that it takes after them.
    """

    def __init__(self, library: Path, inputs: Sequence[Input], weights: Sequence[Any]) -> None:
        machine = tvm_ffi.load_module(str(library))["vm_load_executable"]()
        machine["vm_initialization"](CPU, 0, POOLED)
        self.machine, self.main = machine, machine["main"]
        self.inputs, self.weights = inputs, weights

    def native(self, arrays: Sequence[np.ndarray]) -> list[Any]:
        if len(arrays) != len(self.inputs) or not all(map(_fits, arrays, self.inputs)):
            raise EngineError(
                f"inputs must be {', '.join(map(_said, self.inputs))} but are "
                f"{', '.join(f'{x.dtype}{list(x.shape)}' for x in arrays) or 'none'}"
            )
        return [*map(_tensor, arrays), *self.weights]

    def run(self, native: list[Any]) -> Any:
        return self.main(*native)

    def arrays(self, outputs: Any) -> list[np.ndarray]:
        return [np.from_dlpack(x).copy() for x in outputs]  # copied: the next call takes their memory again


Input = tuple[str, tuple[tuple[int, int], ...]]
"""dtype, and the least and the largest extent of each dimension."""


def _fits(x: np.ndarray, wanted: Input) -> bool:
    dtype, dims = wanted
    return (str(x.dtype) == dtype and x.ndim == len(dims)
            and all(low <= n <= high for n, (low, high) in zip(x.shape, dims, strict=True)))


def _said(wanted: Input) -> str:
    dtype, dims = wanted
    return f"{dtype}[{', '.join(str(low) if low == high else f'{low} to {high}' for low, high in dims)}]"


def _tensor(x: np.ndarray) -> Any:
    """A copy on an aligned address, as TVM's tensor."""
    room = np.empty(x.nbytes + ALIGNMENT, np.uint8)
    start = -room.ctypes.data % ALIGNMENT
    aligned = room[start:start + x.nbytes].view(x.dtype).reshape(x.shape)
    aligned[...] = x
    return tvm_ffi.from_dlpack(aligned)


def open(directory: Path, manifest: Mapping[str, Any], threads: int, device: str) -> Engine:
    if device != "cpu":
        raise EngineError(f"{directory} runs on cpu but was opened on {device}: compile(tvm) supports CPUs only")
    libraries, (weights,) = ([directory / name for name in manifest["files"] if name.endswith(end)]
                             for end in (".so", ".safetensors"))
    _use(threads)
    try:
        programs = _programs(libraries, weights)
        return Buckets(Layout.read(directory / FILE), programs) if FILE in manifest["files"] else programs[0]
    except Exception as error:  # the loader, TVM and safetensors each raise their own kinds
        raise EngineError(f"TVM cannot open {', '.join(map(str, libraries))}: {in_one_line(error)}") from error


def _use(threads: int) -> None:
    """TVM has one number of threads for each thread that calls."""
    os.environ["TVM_NUM_THREADS"] = str(threads)  # of threads that call later
    tvm_ffi.get_global_func("runtime.config_threadpool")(ALL_CORES, threads)


def _programs(libraries: Sequence[Path], weights: Path) -> list[TvmEngine]:
    """An engine for every library; weights that they share are in memory once."""
    with safe_open(weights, "numpy") as kept:
        values = [_tensor(kept.get_tensor(str(i))) for i in range(len(kept.keys()))]
        inputs, taken = (json.loads(kept.metadata()[name]) for name in ("inputs", "weights"))
    return [TvmEngine(library, [(dtype, tuple(map(tuple, dims))) for dtype, dims in own], [values[i] for i in order])
            for library, own, order in zip(libraries, inputs, taken, strict=True)]
