"""Opens a ``torch.export`` program and compiles it with Inductor here; on CUDA a call replays one graph. Needs torch alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
import torch

from thrifty.engines import pt2
from thrifty.engines.engine import Engine, EngineError
from thrifty.engines.tensors import to_arrays, to_tensors
from thrifty.errors import in_one_line


@final
class CompiledEngine(Engine):
    """Args:
        path: of the program.
        device: "cuda"; processors are served by machine code that was compiled beforehand.
    """

    def __init__(self, path: Path, device: str) -> None:
        from torch._inductor import config

        pt2.refuse_code(path)
        self.device = device
        module = torch.export.load(str(path)).module().to(device)
        # Frozen weights let batch norms fold into convolutions; a CUDA graph takes the launches out of a small batch.
        self.patched = config.patch(freezing=True)
        self.call = torch.compile(module, mode="reduce-overhead", dynamic=False)
        self.seen: set[tuple[torch.Size, ...]] = set()

    def native(self, arrays: Sequence[np.ndarray]) -> tuple[torch.Tensor, ...]:
        inputs = tuple(to_tensors(arrays, self.device))
        shapes = tuple(x.shape for x in inputs)
        if shapes not in self.seen:  # here, since this is not timed: it compiles, records, and replays once
            try:
                for _ in range(3):
                    self.run(inputs)
            except Exception as error:  # the compiler raises its own kinds
                raise EngineError(f"Inductor cannot compile the program for {list(map(list, shapes))}: "
                                  f"{in_one_line(error)}") from error
            self.seen.add(shapes)
        return inputs

    def run(self, native: tuple[torch.Tensor, ...]) -> Any:
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        with torch.no_grad(), self.patched:
            outputs = self.call(*native)
        torch.cuda.synchronize()
        return outputs

    def arrays(self, outputs: Any) -> list[np.ndarray]:
        return to_arrays(outputs)


def open(directory: Path, manifest: Mapping[str, Any], threads: int, device: str) -> Engine:
    if device == "cpu":
        raise EngineError(f"{directory} was made for CUDA but opened on cpu; run its recipe for cpu")
    torch.set_num_threads(threads)
    return CompiledEngine(directory / next(iter(manifest["files"])), device)
