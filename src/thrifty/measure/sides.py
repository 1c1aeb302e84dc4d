"""What a worker can hold and time: an artifact, an eager module, any callable. Values that travel as JSON."""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import importlib
import importlib.util
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, final

import numpy as np

_ARTIFACT = "artifact.json"


class Runner(Protocol):
    """A loaded model, as `thrifty.engines.Engine` offers it: conversions stand outside the timed call."""

    def native(self, arrays: Sequence[np.ndarray]) -> Any:
        """Arrays as the runtime takes them; not timed."""

    def run(self, native: Any) -> Any:
        """One inference; timed."""

    def arrays(self, outputs: Any) -> list[np.ndarray]:
        """Outputs as arrays; not timed."""

    def close(self) -> None:
        """Give back what is held outside of Python."""


class Side(abc.ABC):
    """One side of a comparison. A subclass is a frozen dataclass of JSON values, listed in `SIDES`."""

    @abc.abstractmethod
    def runtime(self) -> None:
        """Import all that does not belong to the model: what is resident after it is the empty runtime."""

    @abc.abstractmethod
    def open(self, threads: int, device: str) -> Runner:
        """Load the model."""


@final
@dataclass(frozen=True)
class ArtifactSide(Side):
    """An artifact's directory, opened as a server would open it.

    Args:
        directory: holds ``artifact.json``.
        trust_native_code: needed by engines that load machine code.
    """

    directory: str
    trust_native_code: bool = False

    # By name, here and below: artifacts, workloads and checkpoints stand above measuring in the house, and
    # only the worker that holds one needs them.
    def runtime(self) -> None:
        # Checked here, before the clock of loading starts.
        engine = resolve("thrifty.artifacts.artifact:verify")(self.directory)["engine"]
        if engine in resolve("thrifty.engines:RUNTIMES"):  # never a name that the artifact chooses
            with contextlib.suppress(ModuleNotFoundError):  # `open` says which extra brings it
                importlib.import_module(f"thrifty.engines.{engine}")

    def open(self, threads: int, device: str) -> Runner:
        open_engine: Callable[..., Runner] = resolve("thrifty.engines:open_engine")
        return open_engine(
            Path(self.directory),
            json.loads((Path(self.directory) / _ARTIFACT).read_text()),
            threads=threads,
            device=device,
            trust_native_code=self.trust_native_code,
        )


@final
@dataclass(frozen=True)
class ModuleSide(Side):
    """A workload's eager fp32 module.

    Args:
        workload: its source, "file.py:workload" or "package.module:workload".
        checkpoint: a checkpoint's directory; None for the module as the workload makes it.
    """

    workload: str
    checkpoint: str | None = None

    def _workload(self) -> Any:
        return resolve("thrifty.workloads.loading:load_workload")(self.workload)

    def runtime(self) -> None:
        importlib.import_module("torch")
        self._workload()  # its data sets are no part of serving

    def open(self, threads: int, device: str) -> Runner:
        import torch

        from thrifty.measure.eager import ModuleRunner

        torch.set_num_threads(threads)
        module = resolve("thrifty.runs.checkpoint:load_module")(self.workload, self.checkpoint)
        return ModuleRunner(module.eval().to(device), self._workload().forward, device)


@final
@dataclass(frozen=True)
class CallableSide(Side):
    """Any Python callable: (list of arrays) -> sequence of arrays.

    Args:
        factory: "package.module:name" or "file.py:name" of a function () -> callable.
    """

    factory: str

    def runtime(self) -> None:
        resolve(self.factory)

    def open(self, threads: int, device: str) -> Runner:
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(threads)
        return CallableRunner(resolve(self.factory)())


@final
@dataclass(frozen=True)
class CallableRunner:
    """Calls a function of arrays."""

    function: Callable[[list[np.ndarray]], Sequence[np.ndarray]]

    def native(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        return list(arrays)

    def run(self, native: list[np.ndarray]) -> Sequence[np.ndarray]:
        return self.function(native)

    def arrays(self, outputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [np.asarray(output) for output in outputs]

    def close(self) -> None:
        """Nothing is held."""


SIDES: Mapping[str, type[Side]] = {side.__name__: side for side in (ArtifactSide, ModuleSide, CallableSide)}


def to_json(side: Side) -> dict[str, Any]:
    """The side as JSON.

    >>> from_json(to_json(ArtifactSide("model"))) == ArtifactSide("model")
    True
    """
    return {"side": type(side).__name__, **{f.name: getattr(side, f.name) for f in dataclasses.fields(side)}}  # type: ignore[arg-type]


def from_json(value: Mapping[str, Any]) -> Side:
    """The side that `to_json` wrote."""
    fields = dict(value)
    return SIDES[fields.pop("side")](**fields)


def resolve(reference: str) -> Any:
    """What "package.module:name" or "file.py:name" names."""
    place, _, name = reference.rpartition(":")
    if not place:
        raise ValueError(f"a reference is 'package.module:name' or 'file.py:name' but is {reference!r}")
    if not place.endswith(".py"):
        return getattr(importlib.import_module(place), name)
    spec = importlib.util.spec_from_file_location(f"thrifty_side_{Path(place).stem}", place)
    if spec is None or spec.loader is None:
        raise ValueError(f"{place} cannot be loaded as a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)
