"""An artifact verified before it is trusted with requests, without torch where its engine needs none."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final

import numpy as np

from thrifty.artifacts import artifact
from thrifty.engines import Engine, open_engine
from thrifty.engines.instructions import missing_instructions, saturates
from thrifty.engines.parity import relative_error, tolerance
from thrifty.errors import ThriftyError, in_one_line

Status = Literal["ok", "differs", "failed", "skipped"]


@final
@dataclass(frozen=True)
class Check:
    """One thing that was looked at, what came of it, and what was found or is to be done."""

    what: str
    status: Status
    detail: str


@final
@dataclass(frozen=True)
class Verification:
    """Every check of an artifact, in the order they were made."""

    directory: str
    checks: tuple[Check, ...]

    @property
    def sound(self) -> bool:
        """Whether it may serve here: no check failed, and none was left out."""
        return all(check.status in ("ok", "differs") for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        return {"artifact": self.directory, "sound": self.sound, "checks": [vars(check) for check in self.checks]}


CHECKS = ("manifest", "files", "processor", "packages", "engine", "parity")
OPENING = ("engine", "parity")
"""Of the checks, those that open the engine."""


def verify(directory: Path | str, *, threads: int = 1, trust_native_code: bool = False, dead: str = "") -> Verification:
    """Check an artifact's manifest, checksums, processor and packages, open it, and compare its answer with the stored one.

    Args:
        directory: directory of the artifact; it may be damaged or hostile.
        threads: threads for inference.
        trust_native_code: whether machine code in it (AOTInductor) may be run, which opening it does.
        dead: what became of a process that opened it; it is not opened then.

    Returns:
        a row for each of `CHECKS`; after one that failed, those that need it are skipped. Where ``sound`` is False a row
        says what to do.
    """
    opened: list[Engine] = []
    manifest: dict[str, Any] = {}
    place = Path(directory)

    def read() -> tuple[Status, str]:
        manifest.update(artifact.read(place))
        return "ok", f"{manifest['engine']}, {manifest['precision']}, {manifest.get('recipe') or 'the model as it comes'}"

    def files() -> tuple[Status, str]:
        artifact.check_files(place, manifest)
        return "ok", f"{len(manifest['files']) + 1} files, {artifact.size(place)} bytes for the engine, checksums agree"

    def processor() -> tuple[Status, str]:
        artifact.check_machine(place, manifest)
        return _processor(manifest)

    def engine() -> tuple[Status, str]:
        if dead:
            return "failed", dead
        opened.append(open_engine(place, manifest, threads=threads, device=manifest.get("device", "cpu"),
                                  trust_native_code=trust_native_code))
        return "ok", f"opened on {manifest.get('device', 'cpu')}, {threads} threads"

    steps: dict[str, Callable[[], tuple[Status, str]]] = {
        "manifest": read, "files": files, "processor": processor, "packages": lambda: _packages(manifest), "engine": engine,
        "parity": lambda: answers_example(place, manifest, opened[0]),
    }
    checks: list[Check] = []
    with contextlib.ExitStack() as stack:
        for what in CHECKS:
            # Versions and processor are told of files that are damaged, too; nothing of those is opened.
            broken = [check.what for check in checks if check.status == "failed"]
            if broken and (what in OPENING or "manifest" in broken):
                checks.append(Check(what, "skipped", f"needs: {', '.join(broken)}"))
                continue
            try:
                checks.append(Check(what, *steps[what]()))
            except ThriftyError as error:
                checks.append(Check(what, "failed", str(error)))
            if what == "engine" and opened:
                stack.callback(opened[0].close)
    return Verification(str(directory), tuple(checks))


def _processor(manifest: Mapping[str, Any]) -> tuple[Status, str]:
    wanted = manifest.get("instruction_set", "")
    if lacking := missing_instructions(wanted):
        return "failed", f"it was compiled for {wanted} and this processor lacks {', '.join(lacking)}; run its recipe here"
    if manifest.get("needs_vnni") and saturates():
        if manifest["engine"] == "onnxruntime":
            return "differs", "no VNNI: integer matrix multiplications use other instructions here, exact but slower"
        return "failed", ("its 8-bit weights need VNNI, which this processor lacks: matrix multiplications would saturate; run "
                          "its recipe here, or use compile(onnxruntime)")
    return "ok", f"compiled for {wanted}" if wanted else "portable"


# -- packages -----------------------------------------------------------------------------------------------------


def _packages(manifest: Mapping[str, Any]) -> tuple[Status, str]:
    """Those that the engine needs, and Thrifty, against those that wrote the artifact."""
    native, made = bool(manifest.get("native")), manifest.get("versions", {})
    rows = [(name, *compare(made.get(name), installed(name), native=native)) for name in manifest.get("needs", [])]
    rows.append(("thrifty", *compare(made.get("thrifty"), installed("thrifty"), native=False)))
    worst = max((status for _, status, _ in rows), key=("ok", "differs", "failed").index)
    return worst, "; ".join(f"{name} {said}" for name, _, said in rows)


def installed(package: str) -> str | None:
    """The version of an installed package; None where it is not there.

    >>> installed("no-such-package") is None
    True
    """
    try:
        return importlib.metadata.version(package)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return None


def compare(made: str | None, here: str | None, *, native: bool) -> tuple[Status, str]:
    """Whether a package that is here can open what another version of it wrote.

    Machine code goes with the release (major.minor) that it was compiled against. Files are read by the same and by later
    releases; an earlier one may not know what is in them, and one of an earlier major version is not expected to.

    >>> compare("2.13.0", "2.13.1", native=True)
    ('differs', '2.13.1 (made with 2.13.0)')
    >>> compare("2.13.0", "2.12.1", native=True)[0], compare("2.13.0", "2.12.1", native=False)[0]
    ('failed', 'differs')
    """
    if here is None:
        return "failed", f"is not installed; it was made with {made or 'an unknown version'}: install that or a later one"
    if made is None:
        return "ok", f"{here} (the original version was not recorded)"
    if made == here:
        return "ok", here
    said = f"{here} (made with {made})"
    if native and _release(made) != _release(here):
        return "failed", f"{said}: machine code depends on the release; install {made}, or run its recipe here"
    if _release(here)[:1] < _release(made)[:1]:
        return "failed", f"{said}: an earlier major version; install {made} or later"
    return "differs", said


def _release(version: str) -> tuple[int, ...]:
    """(major, minor) of a version.

    >>> _release("2.13.0+cpu"), _release("nonsense")
    ((2, 13), ())
    """
    return tuple(int(part) for part in re.findall(r"\d{1,9}", version)[:2])


# -- parity -------------------------------------------------------------------------------------------------------


def answers_example(directory: Path, manifest: Mapping[str, Any], engine: Engine) -> tuple[Status, str]:
    """Whether an engine gives the request that is kept with the artifact the answer that its model gave; and what to say."""
    inputs, expected = artifact.example(directory)
    artifact.check_inputs(manifest["inputs"], inputs)
    bound = tolerance(manifest["precision"], manifest.get("device", "cpu"))
    try:
        found = engine.arrays(engine.run(engine.native(inputs)))
    except ThriftyError:
        raise
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # each runtime raises its own kinds, some below no Exception
        return "failed", f"the engine fails on the stored example: {in_one_line(error)}; copy the artifact again"
    if [np.shape(x) for x in found] != [x.shape for x in expected]:
        return "failed", (f"its outputs have shapes {[np.shape(x) for x in found]} where {[x.shape for x in expected]} "
                          "were stored; run its recipe here")
    distance = max((relative_error(a, b) for a, b in zip(expected, found, strict=True)), default=0.0)
    said = f"the stored example's answer differs by {distance:.2g} ({manifest['precision']} explains {bound:g})"
    return ("ok", said) if distance <= bound else ("failed", f"{said}; run its recipe here")
