"""``artifact.json``: read without trust, and checked once, so that nobody who reads it checks it again."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from thrifty.errors import ThriftyError

FORMAT = 1
MANIFEST = "artifact.json"
LARGEST_MANIFEST = 16 * 2**20


class ArtifactError(ThriftyError):
    """An artifact that must not be opened: damaged, hostile, or made for something else."""


def read(directory: Path | str) -> dict[str, Any]:
    """Read and check ``artifact.json``; opens nothing else.

    Raises:
        ArtifactError: there is none, it is damaged, of another version, or names files outside the directory.
    """
    path = Path(directory) / MANIFEST
    if path.is_symlink() or not path.is_file():
        raise ArtifactError(f"{directory} is no artifact: it holds no {MANIFEST}; it may not have been written to its end")
    if path.stat().st_size > LARGEST_MANIFEST:
        raise ArtifactError(f"{path} has {path.stat().st_size} bytes; a manifest has at most {LARGEST_MANIFEST}")
    try:
        manifest = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is damaged: {error}; copy the artifact again") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else None
        raise ArtifactError(f"{path} is of format {found}; this version of Thrifty reads {FORMAT}")
    for key, well_formed in _REQUIRED.items():
        if not well_formed(manifest.get(key)):
            raise ArtifactError(f"{path} is damaged: {key} is missing or of the wrong kind; copy the artifact again")
    for key, well_formed in _OPTIONAL.items():
        if key in manifest and not well_formed(manifest[key]):
            raise ArtifactError(f"{path} is damaged: {key} is of the wrong kind; copy the artifact again")
    for name in manifest["files"]:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\\" in name:
            raise ArtifactError(f"{path} names the file {name!r}, outside the artifact; it is not opened")
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
        case {"name": str(), "dtype": str(), "shape": [*sizes]}:
            varies = value.get("varies", [])
            return (all(type(size) is int and size >= -1 for size in sizes) and isinstance(varies, list)
                    and all(_range(entry, len(sizes)) for entry in varies))
    return False


def _range(value: Any, dimensions: int) -> bool:
    match value:
        case [int(dimension), str(), int(low), int(high)]:
            return 0 <= dimension < dimensions and low <= high
    return False


def _specs(value: Any) -> bool:
    return isinstance(value, list) and all(map(_spec, value))


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
    "instruction_set": _text, "device": _text, "recipe": _text, "workload": _text, "needs": _texts, "versions": _versions,
    "layers": _layers,
    "needs_vnni": lambda value: isinstance(value, bool),
    "threads": lambda value: type(value) is int and value > 0,
}
