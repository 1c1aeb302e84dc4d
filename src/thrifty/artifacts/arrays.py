"""Arrays read from files and bodies that nobody vouches for: bounded before anything is unpacked, and never unpickled."""

from __future__ import annotations

import io
import math
import zipfile
from pathlib import Path

import numpy as np

from thrifty.errors import ThriftyError

KINDS = "biufc"
"""Of dtypes that are plain numbers: booleans, integers, floats, complex."""
LONGEST_HEADER = 2**16
"""Bytes before the numbers of a ``.npy`` file; NumPy itself reads no header of more than 10,000 characters."""
MOST_ENTRIES = 1000
"""Arrays of a ``.npz`` file."""


class ArraysError(ThriftyError):
    """Bytes that are no arrays, hold objects, or would unpack to more than is allowed."""


def from_npy(content: bytes | bytearray) -> np.ndarray:
    """The array of a ``.npy`` file.

    Raises:
        ArraysError: it is damaged, or holds anything but numbers.

    >>> file = io.BytesIO(); np.save(file, np.arange(3))
    >>> from_npy(file.getvalue())
    array([0, 1, 2])
    """
    stream = io.BytesIO(content[:LONGEST_HEADER])
    try:
        version = np.lib.format.read_magic(stream)
        read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, fortran, dtype = read_header(stream)
    except Exception as error:  # NumPy reads the header as Python's syntax, and the tokenizer has errors of its own
        raise ArraysError(f"this is not a .npy file of numbers: {str(error)[:200]}") from error
    if dtype.kind not in KINDS:
        raise ArraysError(f"a .npy file of {dtype} is not accepted, only numbers are: objects would be unpickled")
    # Before NumPy allocates what the header asks for. Negative sizes are a header's too.
    body = bytearray(memoryview(content)[stream.tell():])  # of which NumPy makes an array that can be written to
    if any(size < 0 for size in shape) or math.prod(shape) * dtype.itemsize != len(body):
        raise ArraysError(f"this .npy file is damaged: {len(body)} bytes follow a header of {dtype} {list(shape)}")
    return np.frombuffer(body, dtype).reshape(shape, order="F" if fortran else "C")


def from_npz(source: bytes | bytearray | Path, limit: int) -> dict[str, np.ndarray]:
    """The arrays of a ``.npz`` file by name.

    Args:
        source: the file's bytes, or where it is.
        limit: bytes that all of its arrays together may unpack to.

    Raises:
        ArraysError: it is damaged, holds anything but numbers, or unpacks to more than the limit.
    """
    try:
        content = source.read_bytes() if isinstance(source, Path) else source
        if content.count(b"PK\x01\x02") > MOST_ENTRIES:  # before each becomes an object; each entry of a table begins so
            raise ArraysError(f"this .npz file has over {MOST_ENTRIES} entries")
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = archive.infolist()
            # An entry is never read past the size that it states here.
            if (total := sum(entry.file_size for entry in entries)) > limit:
                raise ArraysError(f"this .npz file would unpack to {total} bytes; {limit} are allowed")
            return {entry.filename.removesuffix(".npy"): from_npy(archive.read(entry)) for entry in entries}
    except ArraysError:
        raise
    except Exception as error:  # damaged archives raise half a dozen kinds, zlib's and struct's among them
        raise ArraysError(f"this is not a .npz file: {str(error)[:200]}") from error


def to_npy(array: np.ndarray) -> bytes:
    """The bytes of a ``.npy`` file."""
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


def to_npz(arrays: dict[str, np.ndarray]) -> bytes:
    """The bytes of a ``.npz`` file, uncompressed."""
    stream = io.BytesIO()
    np.savez(stream, **arrays)  # type: ignore[arg-type]  # arrays, never objects: nothing is pickled
    return stream.getvalue()
