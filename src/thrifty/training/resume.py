"""A training's whole state in a file, so that one that was killed goes on as if it had never been."""

from __future__ import annotations

import abc
import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch

from thrifty.errors import ThriftyError
from thrifty.training.session import TrainingSession

FORMAT = 1


class ResumeError(ThriftyError):
    """A file that is no training's state, or another training's."""


class Keeper(abc.ABC):
    """Keeps the state of a training every so often, and finds what was kept."""

    @abc.abstractmethod
    def restore(self, session: TrainingSession, identity: str) -> dict[str, Any] | None:
        """Put a fresh session, and torch's generators, where the kept one was.

        Returns:
            what the loop had counted; None where nothing was kept.

        Raises:
            ResumeError: what was kept is damaged, or of another training.
        """

    def due(self, due: bool) -> bool:
        """Whether to keep now.

        Args:
            due: whether it is time, by this process's clock.
        """
        return due

    @abc.abstractmethod
    def keep(self, session: TrainingSession, identity: str, told: dict[str, Any]) -> None:
        """Keep the state of this step."""

    def close(self) -> None:
        """Wait until what was kept is written."""


@final
@dataclass(frozen=True)
class FileKeeper(Keeper):
    """One process's training in one file; nothing where there is no path."""

    path: Path | None

    def restore(self, session: TrainingSession, identity: str) -> dict[str, Any] | None:
        found = load(self.path, identity, session.device) if self.path is not None else None
        if found is None:
            return None
        session.load_state_dict(found.session)
        return found.told

    def due(self, due: bool) -> bool:
        return due and self.path is not None

    def keep(self, session: TrainingSession, identity: str, told: dict[str, Any]) -> None:
        assert self.path is not None
        save(Progress(identity, session.state_dict(), told), self.path)


@final
@dataclass(frozen=True)
class Progress:
    """What is kept.

    Args:
        identity: of the training; only an equal one resumes from a state.
        session: `Session.state_dict`.
        told: what the loop has counted so far: history, evaluations, FLOPs, seconds.
    """

    identity: str
    session: dict[str, Any]
    told: dict[str, Any]


def save(progress: Progress, path: Path) -> None:
    """Write a state with the generators' states beside it; the file appears whole or not at all."""
    random = {"cpu": torch.get_rng_state(),
              "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []}
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with contextlib.ExitStack() as stack:
        stack.callback(partial.unlink, missing_ok=True)
        torch.save({"format": FORMAT, "identity": progress.identity, "session": progress.session, "told": progress.told,
                    "random": random}, partial)
        partial.replace(path)


def load(path: Path, identity: str, device: str) -> Progress | None:
    """Read a state, and set torch's generators to theirs; None where there is no file. Nothing is unpickled but tensors
    and plain values.

    Raises:
        ResumeError: the file is damaged, or of another training.
    """
    if not path.is_file():
        return None
    try:
        kept = torch.load(path, map_location="cpu", weights_only=True)
        found, told, session, random = (kept[name] for name in ("identity", "told", "session", "random"))
    except Exception as error:  # torch raises many kinds on a file that is none of its own
        raise ResumeError(f"{path} is not a training state that can be resumed ({type(error).__name__}): delete it to start "
                          "over") from error
    if kept.get("format") != FORMAT or found != identity:
        raise ResumeError(f"{path} is the state of another training; delete it to start over, or train with the same model, "
                          f"methods, data and settings:\n  it is of {found}\n  this one is {identity}")
    torch.set_rng_state(random["cpu"])
    if device == "cuda" and random["cuda"]:
        torch.cuda.set_rng_state_all(random["cuda"])
    return Progress(found, session, told)
