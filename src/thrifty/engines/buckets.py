"""Several programs of fixed sizes as one engine: a request is padded to the least that holds it, its outputs are cut back."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np

from thrifty.engines.engine import Engine, EngineError

FILE = "buckets.json"

Places = Sequence[Mapping[int, int]]
"""For each tensor, which axis each of its dimensions is of, for dimensions that vary."""


@final
@dataclass(frozen=True)
class Layout:
    """What varies, and in which inputs and outputs.

    Args:
        ranges: (least, largest) size of each axis.
        inputs, outputs: {dimension: axis} of each.
        sizes: of every program, one for each axis.
    """

    ranges: tuple[tuple[int, int], ...]
    inputs: tuple[dict[int, int], ...]
    outputs: tuple[dict[int, int], ...]
    sizes: tuple[tuple[int, ...], ...]

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(vars(self), indent=1))

    @staticmethod
    def read(path: Path) -> Layout:
        """What `write` wrote: JSON has words for numbers as keys, and lists for tuples."""
        kept = json.loads(path.read_text())
        inputs, outputs = (tuple({int(d): axis for d, axis in dims.items()} for dims in kept[side])
                           for side in ("inputs", "outputs"))
        return Layout(tuple((low, high) for low, high in kept["ranges"]), inputs, outputs, tuple(map(tuple, kept["sizes"])))

    def asked(self, shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
        """The sizes of a request.

        Raises:
            EngineError: one is outside of its range, or is one thing here and another there.
        """
        if len(shapes) != len(self.inputs):
            raise EngineError(f"this engine takes {len(self.inputs)} inputs but got {len(shapes)}")
        found: list[int | None] = [None] * len(self.ranges)
        for i, (dims, shape) in enumerate(zip(self.inputs, shapes, strict=True)):
            for d, axis in dims.items():
                low, high = self.ranges[axis]
                size = shape[d] if d < len(shape) else None
                if size is None or not low <= size <= high or found[axis] not in (None, size):
                    raise EngineError(f"dimension {d} of input {i} must be {low} to {high}, the same wherever it varies, "
                                      f"but the inputs have shapes {', '.join(map(str, shapes))}")
                found[axis] = size
        return tuple(size for size in found if size is not None)

    def bucket(self, asked: Sequence[int]) -> int:
        """The program of the least padding.

        >>> Layout(((1, 8),), ({0: 0},), ({0: 0},), ((1,), (4,), (8,))).bucket((3,))
        1
        """
        session = (i for i, sizes in enumerate(self.sizes) if all(n <= size for n, size in zip(asked, sizes, strict=True)))
        return min(session, key=lambda i: math.prod(self.sizes[i]))


def padded(x: np.ndarray, dims: Mapping[int, int], sizes: Sequence[int]) -> np.ndarray:
    """Zeros behind what is there, up to the sizes of the axes.

    >>> padded(np.array([[1, 2]]), {1: 0}, (4,)).tolist()
    [[1, 2, 0, 0]]
    """
    behind = [(0, sizes[dims[d]] - n if d in dims else 0) for d, n in enumerate(x.shape)]
    return np.pad(x, behind) if any(n for _, n in behind) else x


def cut(x: np.ndarray, dims: Mapping[int, int], asked: Sequence[int]) -> np.ndarray:
    """What is in front, of the sizes that were asked for.

    >>> cut(np.array([[1, 2, 0, 0]]), {1: 0}, (2,)).tolist()
    [[1, 2]]
    """
    return x[tuple(slice(asked[dims[d]]) if d in dims else slice(None) for d in range(x.ndim))]


@final
class Buckets(Engine):
    """Args:
        layout: of the programs.
        programs: engines of fixed sizes, in the layout's order.
    """

    def __init__(self, layout: Layout, programs: Sequence[Engine]) -> None:
        self.layout, self.programs = layout, programs

    def native(self, arrays: Sequence[np.ndarray]) -> tuple[Engine, tuple[int, ...], Any]:
        asked = self.layout.asked([x.shape for x in arrays])
        index = self.layout.bucket(asked)
        filled = [padded(x, dims, self.layout.sizes[index]) for x, dims in zip(arrays, self.layout.inputs, strict=True)]
        return self.programs[index], asked, self.programs[index].native(filled)

    def run(self, native: tuple[Engine, tuple[int, ...], Any]) -> tuple[Engine, tuple[int, ...], Any]:
        program, asked, given = native
        return program, asked, program.run(given)

    def arrays(self, outputs: tuple[Engine, tuple[int, ...], Any]) -> list[np.ndarray]:
        program, asked, given = outputs
        return [cut(x, dims, asked) for x, dims in zip(program.arrays(given), self.layout.outputs, strict=True)]

    def close(self) -> None:
        for program in self.programs:
            program.close()
