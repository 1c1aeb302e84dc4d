"""An artifact: a directory that serves, checked before it is opened. Importing this file imports no torch."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np

from thrifty.artifacts.arrays import ArraysError, from_npz
from thrifty.artifacts.manifest import FORMAT, MANIFEST
from thrifty.artifacts.manifest import ArtifactError as ArtifactError
from thrifty.artifacts.manifest import read as read

if TYPE_CHECKING:
    from thrifty.artifacts.lowered import Lowered
    from thrifty.engines.engine import Engine

EXAMPLE = "example.npz"


class InputError(ArtifactError):
    """Inputs that an artifact does not take; the message says which it does."""


def write(directory: Path, lowered: Lowered, description: Mapping[str, Any],
          inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]) -> None:
    """Write ``artifact.json`` beside the engine's files, with their sizes and checksums, and one example.

    Args:
        directory: holds the files that ``lowered`` names.
        lowered: what the compiler left.
        description: recipe, workload, versions: whatever says where the artifact comes from.
        inputs, outputs: of one request through the model that was lowered.
    """
    arrays = {f"input{i}": x for i, x in enumerate(inputs)} | {f"output{i}": x for i, x in enumerate(outputs)}
    np.savez(directory / EXAMPLE, **arrays)  # type: ignore[arg-type]  # arrays, never objects: nothing is pickled
    document = {
        "format": FORMAT,
        **description,
        "engine": lowered.engine,
        "files": {name: _digest(directory / name) for name in lowered.files},
        "example": _digest(directory / EXAMPLE),
        "inputs": [dataclasses.asdict(spec) for spec in lowered.inputs],
        "outputs": [dataclasses.asdict(spec) for spec in lowered.outputs],
        "portable": lowered.portable,
        "native": lowered.native,
        "needs": list(lowered.needs),
        "precision": lowered.precision,
        "instruction_set": lowered.instruction_set,
        "needs_vnni": lowered.needs_vnni,
        "machine": platform.machine(),
        "facts": dict(lowered.facts),
    }
    (directory / MANIFEST).write_text(json.dumps(document, indent=1))


def _digest(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "bytes": path.stat().st_size}


def verify(directory: Path | str) -> dict[str, Any]:
    """Read the manifest and check every file against its checksum.

    Raises:
        ArtifactError: a file is missing, a link, or differs by so much as a byte; or the artifact is for another machine.
    """
    manifest = read(directory)
    check_files(directory, manifest)
    check_machine(directory, manifest)
    return manifest


def check_files(directory: Path | str, manifest: Mapping[str, Any]) -> None:
    """Check every file, the example too, against its checksum.

    Raises:
        ArtifactError: one is missing, a link, outside of the directory, or differs by so much as a byte.
    """
    root = Path(directory).resolve()
    for name, expected in [*manifest["files"].items(), (EXAMPLE, manifest["example"])]:
        path = Path(directory) / name
        try:
            if path.is_symlink() or not path.is_file() or path.resolve() != root / name:
                raise ArtifactError(f"{path} is missing or not a regular file; copy the artifact again")
            # The size first: a wrong file may be far larger than what would be hashed.
            sound = path.stat().st_size == expected["bytes"] and _digest(path)["sha256"] == expected["sha256"]
        except OSError as error:
            raise ArtifactError(f"{path} cannot be read: {error.strerror or error}") from error
        if not sound:
            raise ArtifactError(f"{path} is damaged: its checksum is not the one in {MANIFEST}; copy it again")


def check_machine(directory: Path | str, manifest: Mapping[str, Any]) -> None:
    """Check that the artifact was made for processors of this kind.

    Raises:
        ArtifactError: it is for others.
    """
    if manifest["machine"] != platform.machine() and not manifest.get("portable"):
        raise ArtifactError(
            f"{directory} was made for {manifest['machine']} processors but this one is {platform.machine()}; "
            "run its recipe here"
        )


def open_verified(directory: Path | str, *, threads: int = 1, device: str = "cpu",
                  trust_native_code: bool = False) -> Engine:
    """Verify an artifact and open its engine, importing nothing but that engine's runtime."""
    from thrifty.engines import open_engine

    manifest = verify(directory)
    return open_engine(Path(directory), manifest, threads=threads, device=device,
                       trust_native_code=trust_native_code)


@final
@dataclass(frozen=True)
class Loaded:
    """An artifact's engine, callable on tensors or arrays like the model that it came from."""

    engine: Engine
    manifest: Mapping[str, Any]

    def close(self) -> None:
        """Give back what the engine holds outside of Python: for example an unpacked package."""
        self.engine.close()

    def __call__(self, *given: Any, **named: Any) -> Any:
        """Run the engine.

        Args:
            given: tensors or arrays, of the shapes and dtypes that the manifest names, in its order.
            named: those that are not given in order, by the manifest's names.

        Returns:
            a tensor, a tuple where the model gives several, a dictionary where it gives them by names; arrays where arrays
            came in.

        Raises:
            InputError: an input differs from what the engine takes.
        """
        inputs = _ordered([spec["name"] for spec in self.manifest["inputs"]], given, named)
        tensors = not all(isinstance(x, np.ndarray) for x in inputs)
        arrays = [x.detach().cpu().numpy() if hasattr(x, "detach") else np.asarray(x) for x in inputs]
        check_inputs(self.manifest["inputs"], arrays)
        outputs: list[Any] = list(self.engine.arrays(self.engine.run(self.engine.native(arrays))))
        if tensors:
            import torch

            outputs = [torch.from_numpy(np.array(x)) for x in outputs]
        names = [spec["name"] for spec in self.manifest["outputs"]]
        if names != [f"output{i}" for i in range(len(names))]:
            return dict(zip(names, outputs, strict=True))
        return outputs[0] if len(outputs) == 1 else tuple(outputs)


def _ordered(names: Sequence[str], given: Sequence[Any], named: Mapping[str, Any]) -> tuple[Any, ...]:
    """The inputs in the manifest's order."""
    behind = names[len(given):]
    if len(given) > len(names) or set(behind) != set(named):
        got = ", ".join([f"{len(given)} in order", *named]) if named else str(len(given))
        raise InputError(f"this artifact takes {len(names)} inputs ({', '.join(names)}) but got {got}")
    return (*given, *(named[name] for name in behind))


def load(directory: Path | str, *, threads: int = 1, device: str = "cpu", trust_native_code: bool = False) -> Loaded:
    """Open an artifact; neither the workload nor the training code need be importable.

    Args:
        directory: that `thrifty run` or `Compiler.lower` wrote.
        threads: threads for inference.
        device: "cpu" or "cuda".
        trust_native_code: machine code in the artifact (AOTInductor) runs only where this is True.

    Raises:
        ArtifactError: it is damaged or for another machine.
        EngineError: its runtime is missing, or it holds native code that is not trusted.
    """
    engine = open_verified(directory, threads=threads, device=device, trust_native_code=trust_native_code)
    return Loaded(engine, read(directory))


def check_inputs(specs: Sequence[Mapping[str, Any]], arrays: Sequence[np.ndarray]) -> None:
    """Compare a request with a manifest's ``inputs``.

    Raises:
        InputError: there are more or fewer of them, or one has another shape or dtype.
    """
    if len(arrays) != len(specs):
        raise InputError(f"this artifact takes {len(specs)} inputs but got {len(arrays)}")
    for spec, array in zip(specs, arrays, strict=True):
        same = len(spec["shape"]) == array.ndim and all(
            want in (-1, got) for want, got in zip(spec["shape"], array.shape, strict=True)
        )
        if not same or str(array.dtype) != spec["dtype"]:
            varies = " (-1: any)" if -1 in spec["shape"] else ""
            raise InputError(
                f"input {spec['name']} must be {spec['dtype']} of shape {spec['shape']}{varies} but is "
                f"{array.dtype} of shape {list(array.shape)}"
            )
    _check_sizes(specs, [array.shape for array in arrays])


def _check_sizes(specs: Sequence[Mapping[str, Any]], shapes: Sequence[tuple[int, ...]]) -> None:
    """Refuse what lies outside of the range that an engine was made for: some would compute nonsense, others compile."""
    seen: dict[str, tuple[int, str]] = {}
    for spec, shape in zip(specs, shapes, strict=True):
        for dimension, name, low, high in spec.get("varies", ()):
            size, here = shape[dimension], f"dimension {dimension} of {spec['name']}"
            if not low <= size <= high:
                raise InputError(f"{here} must be {low} to {high} but is {size}: split or pad the request, or widen "
                                    "the workload's `shapes` and compile again")
            other, where = seen.setdefault(name, (size, here))
            if other != size:
                raise InputError(f"{here} must equal {where}, which is {other}, but is {size}")


def example(directory: Path | str) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The stored request and the outputs of the model that was lowered.

    Raises:
        ArtifactError: it is damaged, holds objects, or is packed: `write` stores, so that nothing in it expands.
    """
    path = Path(directory) / EXAMPLE
    try:
        kept = from_npz(path, limit=path.stat().st_size)
    except (ArraysError, OSError) as error:
        raise ArtifactError(f"{path} is damaged: {error}; copy the artifact again") from error
    return [kept[name] for name in kept if name.startswith("input")], [kept[name] for name in kept if name.startswith("output")]


def size(directory: Path | str) -> int:
    """Bytes of the engine's files."""
    return sum(int(entry["bytes"]) for entry in read(directory)["files"].values())


def copy(source: Path, destination: Path) -> None:
    """Copy an artifact; the destination appears whole or not at all."""
    partial = destination.with_name(f".{destination.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source, partial)
    shutil.rmtree(destination, ignore_errors=True)
    partial.rename(destination)
