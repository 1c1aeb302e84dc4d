"""Token files: text that is larger than memory, read from disk window by window."""

from __future__ import annotations

import functools
import itertools
import os
import weakref
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.utils.data import Dataset

from thrifty.errors import WorkloadError

_HEADER = 128
"""Bytes before the tokens: `numpy.save`'s own for one dimension."""


def write_tokens(path: str | Path, pieces: Iterable[ArrayLike], *, dtype: str = "uint16") -> int:
    """Write tokens to a file, a piece at a time: a `.npy` file that `numpy.load` reads too.

    The file appears whole or not at all.

    Args:
        path: of the file.
        pieces: arrays or lists of token ids, in order.
        dtype: an integer type that holds every id: "uint16" up to 65,535.

    Returns:
        the number of tokens.

    Raises:
        WorkloadError: an id that the type does not hold, or that is no integer.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as place:
    ...     count = write_tokens(f"{place}/text.npy", [[7, 8, 9], [10]])
    ...     (count, np.load(f"{place}/text.npy").tolist())
    (4, [7, 8, 9, 10])
    """
    kind, count, place = np.dtype(dtype), 0, Path(path)
    partial = place.with_name(f".{place.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(bytes(_HEADER))
            for piece in pieces:
                ids = np.asarray(piece)
                if not ids.size:
                    continue
                if not np.issubdtype(ids.dtype, np.integer):
                    raise WorkloadError(f"token ids are integers, but a piece has {ids.dtype}: convert it")
                least, most = int(ids.min()), int(ids.max())
                if least < np.iinfo(kind).min or most > np.iinfo(kind).max:
                    raise WorkloadError(f"{kind} does not hold the token id {least if least < 0 else most}: give dtype=, such as "
                                        '"int32"')
                file.write(np.ascontiguousarray(ids, kind).tobytes())
                count += ids.size
            file.seek(0)
            file.write(_header(kind, count))
        partial.replace(place)
    finally:
        partial.unlink(missing_ok=True)
    return count


def _header(kind: np.dtype[Any], count: int) -> bytes:
    text = f"{{'descr': {kind.str!r}, 'fortran_order': False, 'shape': ({count},), }}"
    return b"\x93NUMPY\x01\x00" + (_HEADER - 10).to_bytes(2, "little") + text.ljust(_HEADER - 11).encode() + b"\n"


@final
class TokenFiles(Dataset[tuple[Tensor, Tensor]]):
    """Windows of token files, each read from disk when it is asked for.

    Item i is (ids [length], the ids that follow each [length]), int64. Windows follow one another and share one token; none
    goes over the end of a file, where fewer tokens than a window's are left out. Nothing of the files stays in memory: a process
    reads the windows that it is asked for, and each rank of a training asks for its own.

    Args:
        paths: `.npy` files of integers in one dimension, as `write_tokens` or `numpy.save` writes them; one or several.
        length: tokens of a window.

    Raises:
        WorkloadError: a file that is not there, no such array, or shorter than it says; or no whole window.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as place:
    ...     _ = write_tokens(f"{place}/text.npy", [range(10)])
    ...     windows = TokenFiles(f"{place}/text.npy", 4)
    ...     len(windows), windows[1]
    (2, (tensor([4, 5, 6, 7]), tensor([5, 6, 7, 8])))
    """

    def __init__(self, paths: str | Path | Sequence[str | Path], length: int) -> None:
        if length < 1:
            raise WorkloadError(f"a window has one token or more, but length={length}")
        self.paths = tuple(Path(p).absolute() for p in ([paths] if isinstance(paths, str | Path) else paths))
        self.length = length
        self._files = [_File(path) for path in self.paths]
        self._ends = list(itertools.accumulate(max(0, (file.count - 1) // length) for file in self._files))
        if not len(self):
            named = ", ".join(map(str, self.paths[:3])) or "no file"
            raise WorkloadError(f"{named} has no window of {length} tokens and the one after them: give longer files, or a "
                                "smaller length")

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        number = int(np.searchsorted(self._ends, index, side="right"))
        first = index - (self._ends[number - 1] if number else 0)
        ids = torch.from_numpy(self._files[number].read(first * self.length, self.length + 1))
        return ids[:-1], ids[1:]


@final
class _File:
    """One file; it is opened when it is first read, by each process for itself."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
                shape, _, self.kind = readers[np.lib.format.read_magic(file)](file)
                self.start = file.tell()
        except OSError as error:
            raise WorkloadError(f"{path} cannot be read: {error.strerror}") from error
        except (ValueError, KeyError) as error:
            raise WorkloadError(f"{path} is not a .npy file: write it by write_tokens or numpy.save") from error
        if len(shape) != 1 or not np.issubdtype(self.kind, np.integer):
            raise WorkloadError(f"{path} holds {self.kind} of shape {shape}, but token files hold integers in one dimension")
        self.count = int(shape[0])
        if path.stat().st_size < self.start + self.count * self.kind.itemsize:
            raise WorkloadError(f"{path} is shorter than the {self.count} tokens that its header says: write it again")

    @functools.cached_property
    def _open(self) -> int:
        found = os.open(self.path, os.O_RDONLY)
        weakref.finalize(self, os.close, found)
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_open"}

    def read(self, first: int, count: int) -> np.ndarray:
        """Some tokens, int64."""
        data = os.pread(self._open, count * self.kind.itemsize, self.start + first * self.kind.itemsize)
        if len(data) < count * self.kind.itemsize:
            raise WorkloadError(f"{self.path} became shorter while it was read: leave it as it is, and start again")
        return np.frombuffer(data, self.kind).astype(np.int64)
