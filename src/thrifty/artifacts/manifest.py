"""``artifact.json``: read without trust, and checked once, so that nobody who reads it checks it again."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from thrifty.errors import ThriftyError, in_one_line

FORMAT = 1
MANIFEST = "artifact.json"
LARGEST_MANIFEST = 16 * 2**20
LONGEST_NAME = 255
MOST_DIMENSIONS = 64
"""Of an array, as NumPy has it."""


class ArtifactError(ThriftyError):
    """An artifact that must not be opened: damaged, hostile, or made for something else."""


def read(directory: Path | str) -> dict[str, Any]:
    """Read and check ``artifact.json``; opens nothing else.

    Raises:
        ArtifactError: there is none, it is damaged, of another version, or names files outside the directory.
    """
    path = Path(directory) / MANIFEST
    try:
        if path.is_symlink() or not path.is_file():
            raise ArtifactError(f"{directory} is not an artifact: it has no {MANIFEST}; it may not have been fully written")
        if path.stat().st_size > LARGEST_MANIFEST:
            raise ArtifactError(f"{path} has {path.stat().st_size} bytes; a manifest has at most {LARGEST_MANIFEST}")
        manifest = json.loads(path.read_bytes().decode())
    except OSError as error:
        raise ArtifactError(f"{str(path)[:200]} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is damaged: {in_one_line(error)}; copy the artifact again") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else None
        raise ArtifactError(f"{path} has format {str(found)[:100]}; this version of Thrifty reads {FORMAT}")
    for key, well_formed in _REQUIRED.items():
        if not well_formed(manifest.get(key)):
            raise ArtifactError(f"{path} is damaged: {key} is missing or has the wrong type; copy the artifact again")
    for key, well_formed in _OPTIONAL.items():
        if key in manifest and not well_formed(manifest[key]):
            raise ArtifactError(f"{path} is damaged: {key} has the wrong type; copy the artifact again")
    for name in manifest["files"]:
        parts = PurePosixPath(name).parts
        if not parts or PurePosixPath(name).is_absolute() or ".." in parts or "\\" in name or name == MANIFEST:
            raise ArtifactError(f"{path} names the file {name[:200]!r}, outside the artifact; it was not opened")
        if not name.isprintable() or max(map(len, parts)) > LONGEST_NAME:
            raise ArtifactError(f"{path} names the file {name[:200]!r}, which is not a file name; copy the artifact again")
    return manifest


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _digest(value: Any) -> bool:
    match value:
        case {"sha256": str(), "bytes": int()}:
            return True
    return False


def _files(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(map(_digest, value.values()))


def _spec(value: Any) -> bool:
    match value:
        case {"name": str(name), "dtype": str(dtype), "shape": [*sizes]}:
            varies = value.get("varies", [])
            return (len(name) <= LONGEST_NAME and re.fullmatch(r"[a-z][a-z0-9_]{0,30}", dtype) is not None
                    and len(sizes) <= MOST_DIMENSIONS and all(type(size) is int and size >= -1 for size in sizes)
                    and isinstance(varies, list)
                    and all(_range(entry, len(sizes)) for entry in varies))
    return False


def _range(value: Any, dimensions: int) -> bool:
    match value:
        case [int(dimension), str(), int(low), int(high)]:
            return 0 <= dimension < dimensions and low <= high
    return False


def _specs(value: Any) -> bool:
    return isinstance(value, list) and all(map(_spec, value)) and len({spec["name"] for spec in value}) == len(value)


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_text, value))


def _versions(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_text, value.values()))


def _layers(value: Any) -> bool:
    return isinstance(value, list) and all(map(_layer, value))


def _layer(value: Any) -> bool:
    match value:
        case {"layer": str(), "scheme": str(), "bytes": int(), "error": float() | None}:
            return True
    return False


_REQUIRED: Mapping[str, Callable[[Any], bool]] = {
    "engine": _text, "machine": _text, "precision": _text, "files": _files, "example": _digest, "inputs": _specs,
    "outputs": _specs,
}
_OPTIONAL: Mapping[str, Callable[[Any], bool]] = {
    "instruction_set": _text, "recipe": _text, "workload": _text, "needs": _texts, "versions": _versions,
    "layers": _layers,
    "device": lambda value: value in ("cpu", "cuda"),
    "needs_vnni": lambda value: isinstance(value, bool),
    "threads": lambda value: type(value) is int and value > 0,
}
