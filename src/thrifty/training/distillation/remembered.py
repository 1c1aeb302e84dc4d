"""What a teacher gave for an example, kept on disk, so that it is asked once however often the example comes by."""

from __future__ import annotations

import hashlib
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import final

import numpy as np
import torch
from torch import Tensor, nn

from thrifty.training.distillation.losses import draw


@final
class Memory:
    """Tensors by example in one file, which goes with the memory.

    >>> memory = Memory()
    >>> memory.keep([b"a", b"b"], torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    >>> memory.recalled([b"b", b"a"]).tolist(), memory.recalled([b"b", b"c"])
    ([[3.0, 4.0], [1.0, 2.0]], None)
    """

    def __init__(self) -> None:
        self._place = tempfile.TemporaryDirectory(prefix="thrifty-teacher-")
        self._path = Path(self._place.name) / "outputs"
        self._path.touch()
        self._where: dict[bytes, tuple[int, tuple[int, ...], np.dtype]] = {}

    def keep(self, keys: Sequence[bytes], rows: Tensor) -> None:
        """Write one row for each key, but for keys that are known."""
        with self._path.open("ab") as file:
            for key, row in zip(keys, rows.detach().cpu(), strict=True):
                if key not in self._where:
                    array = row.contiguous().numpy()
                    self._where[key] = (file.tell(), array.shape, array.dtype)
                    file.write(array.tobytes())

    def recalled(self, keys: Sequence[bytes]) -> Tensor | None:
        """The rows of all keys, in their order; None where one is not known."""
        if not all(key in self._where for key in keys):
            return None
        rows = []
        with self._path.open("rb") as file:
            for key in keys:
                at, shape, kind = self._where[key]
                file.seek(at)
                count = int(np.prod(shape)) * kind.itemsize
                rows.append(np.frombuffer(file.read(count), dtype=kind).reshape(shape))
        return torch.from_numpy(np.stack(rows))


_MEMORIES: weakref.WeakKeyDictionary[nn.Module, dict[object, Memory]] = weakref.WeakKeyDictionary()


def memory_of(teacher: nn.Module, kind: object) -> Memory:
    """A teacher's memory of one kind, the same for all trainings of this process that have the very teacher."""
    return _MEMORIES.setdefault(teacher, {}).setdefault(kind, Memory())


def keys_of(inputs: Sequence[Tensor]) -> list[bytes]:
    """A hash of each example's inputs."""
    arrays = [x.detach().cpu().contiguous() for x in inputs]
    keys = []
    for i in range(len(arrays[0])):
        digest = hashlib.blake2b(digest_size=16)
        for x in arrays:
            digest.update(str((x.dtype, tuple(x.shape[1:]))).encode() + x[i].reshape(-1).view(torch.uint8).numpy().tobytes())
        keys.append(digest.digest())
    return keys


def drawn_by_key(logits: Tensor, keys: Sequence[bytes], count: int, temperature: float) -> Tensor:
    """Draws from each example's distributions, the same ones whenever the example comes: [batch, ..., count] int32.

    Args:
        logits: [batch, ..., classes].
        keys: of the examples.
        count: draws a distribution.
        temperature: of the softmax.
    """
    found = []
    for key, row in zip(keys, logits, strict=True):
        generator = torch.Generator(device=row.device).manual_seed(int.from_bytes(key[:8], "big") >> 1)
        found.append(draw(row.reshape(-1, row.shape[-1]), count, temperature, generator).reshape(*row.shape[:-1], count))
    return torch.stack(found)
