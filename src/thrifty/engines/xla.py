"""Opens a StableHLO program in XLA, which compiles it for this processor or GPU; imports jax, never torch."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import jax
import numpy as np
from jax.extend.backend import clear_backends
from safetensors.flax import load_file

from thrifty.engines.engine import Engine, EngineError
from thrifty.errors import in_one_line

# Otherwise a call is handed to another thread than the one that waits for it. Read when XLA starts.
jax.config.update("jax_cpu_enable_async_dispatch", False)
# Otherwise XLA takes three quarters of a GPU's memory when it starts. Read then.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

BOUND = 2**28
"""Bytes of weights up to which they are constants of what XLA compiles for a processor: it then turns them once into the
order that its kernels read, which as arguments it would at every call (a linear layer of one row took four times as long)."""


def start(threads: int) -> None:
    """Have XLA use that many threads, whatever it used in this process before.

    XLA reads their number once, when it starts, and takes all processors where it is told nothing.
    """
    if os.environ.get("PJRT_NPROC") != str(threads):
        os.environ["PJRT_NPROC"] = str(threads)
        clear_backends()


@final
class XlaEngine(Engine):
    """Args:
        program, weights: paths of what `compile(xla)` wrote.
        threads: of inference.
        outputs: NumPy's name of each output's dtype: XLA computes integers in 32 bits.
        device: "cpu" or "cuda".
    """

    def __init__(self, program: Path, weights: Path, threads: int, outputs: Sequence[str], device: str = "cpu") -> None:
        start(threads)
        self.outputs = outputs
        try:
            self.device = jax.devices(device)[0]
        except RuntimeError as error:
            raise EngineError(f"jax {jax.__version__} has no {device} device here: {in_one_line(error)}") from error
        try:
            self.program = jax.export.deserialize(bytearray(program.read_bytes()))
            kept = load_file(weights)
        except Exception as error:  # flatbuffers, MLIR and safetensors each raise their own kinds
            raise EngineError(f"jax {jax.__version__} cannot open {program}: {in_one_line(error)}") from error
        self.inputs = self.program.in_avals[len(kept):]
        self.bound = device == "cpu" and sum(x.nbytes for x in kept.values()) <= BOUND
        place = np.asarray if self.bound else functools.partial(jax.device_put, device=self.device)
        self.weights = [place(kept[str(i)]) for i in range(len(kept))]
        self.compiled: dict[tuple[tuple[int, ...], ...], Any] = {}

    def native(self, arrays: Sequence[np.ndarray]) -> tuple[Any, tuple[jax.Array, ...]]:
        cast = tuple(_cast(x, spec.dtype) for x, spec in zip(arrays, self.inputs, strict=True))
        placed = tuple(jax.device_put(x, self.device) for x in cast)
        shapes = tuple(x.shape for x in cast)
        if shapes not in self.compiled:  # here, since this is not timed
            try:
                self.compiled[shapes] = self._compile(placed)
            except ValueError as error:
                raise EngineError(
                    f"inputs must be {', '.join(x.str_short() for x in self.inputs)}, within the ranges that the "
                    f"program was made for, but have shapes {', '.join(map(str, shapes))}"
                ) from error
        return self.compiled[shapes], placed

    def _compile(self, inputs: tuple[jax.Array, ...]) -> Any:
        """What is called with inputs alone."""
        if self.bound:
            return jax.jit(lambda *given: self.program.call(self.weights, *given)).lower(*inputs).compile()
        return functools.partial(jax.jit(self.program.call).lower(self.weights, *inputs).compile(), self.weights)

    def run(self, native: tuple[Any, tuple[jax.Array, ...]]) -> Any:
        call, inputs = native
        return jax.block_until_ready(call(*inputs))

    def arrays(self, outputs: Any) -> list[np.ndarray]:
        return [np.asarray(x).astype(dtype) for x, dtype in zip(outputs, self.outputs, strict=True)]


def _cast(x: np.ndarray, dtype: Any) -> np.ndarray:
    """To the program's dtype, which holds 32 bits of a whole number's 64.

    Raises:
        EngineError: a number that they cannot hold.
    """
    cast: np.ndarray = np.ascontiguousarray(x).astype(dtype)
    if x.dtype.kind in "iu" and not np.array_equal(cast, x):
        raise EngineError(f"XLA computes integers in {dtype}, which cannot hold {x.min()} to {x.max()}")
    return cast


def open(directory: Path, manifest: Mapping[str, Any], threads: int, device: str) -> Engine:
    program, weights = (next(directory / name for name in manifest["files"] if name.endswith(end))
                        for end in (".stablehlo", ".safetensors"))
    return XlaEngine(program, weights, threads, [spec["dtype"] for spec in manifest["outputs"]], device)
