"""A command that is killed at a point of its course, and how long it lived."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from thrifty.studies.store import Store


@dataclass(frozen=True)
class Lived:
    """Wall-clock seconds of a command, and its exit code; None where it was killed."""

    seconds: float
    code: int | None


@dataclass(frozen=True)
class Command:
    """A thrifty command with a cache of its own.

    Args:
        place: a directory for the study and the cache.
        arguments: "STUDY" stands for the study's directory.
    """

    place: Path
    arguments: tuple[str, ...]

    @property
    def study(self) -> Path:
        return self.place / "study"

    def begin(self) -> subprocess.Popen[str]:
        words = [str(self.study) if word == "STUDY" else word for word in self.arguments]
        return subprocess.Popen([sys.executable, "-m", "thrifty", *words], text=True, stdout=subprocess.DEVNULL,
                                stderr=subprocess.PIPE, env={**os.environ, "THRIFTY_CACHE": str(self.place / "cache")})

    def run(self) -> Lived:
        """To its end."""
        began, process = time.monotonic(), self.begin()
        told = process.communicate(timeout=550)[1]
        assert process.returncode in (0, 3), told
        return Lived(time.monotonic() - began, process.returncode)

    def killed(self, pattern: str, after: float = 0.0) -> Lived:
        """Killed so many seconds after it first said what matches the pattern; run to its end where it never does."""
        began, process = time.monotonic(), self.begin()
        assert process.stderr is not None
        for line in process.stderr:
            if re.search(pattern, line):
                time.sleep(after)
                process.send_signal(signal.SIGKILL)
                break
        process.communicate(timeout=550)
        return Lived(time.monotonic() - began, None if process.returncode == -signal.SIGKILL else process.returncode)

    def left(self) -> dict[str, object]:
        """What must not depend on kills: the recipes, their scores example by example, and every checkpoint's weights."""
        with Store.open(self.study) as store:
            found: dict[str, object] = {trial.recipe: (trial.status, trial.seed) for trial in store.trials()}
            for trial in store.trials():
                for split in ("validation", "validation[1000]", "test"):
                    if (scores := store.scores(trial.id, split)) is not None:
                        found[f"{trial.recipe} {split}"] = scores.numerator.tobytes()
        for path in sorted((self.place / "cache" / "checkpoints").glob("*/model.safetensors")):
            found[path.parent.name] = hashlib.sha256(path.read_bytes()).hexdigest()
        return found

    def unlike(self, other: Command) -> list[str]:
        """What differs from what another command left: nothing may.

        Which trials are scored on test follows from the front, and the front from timings: of these, what both have is compared.
        """
        mine, others = self.left(), other.left()
        scored = [{key for key in found if key.endswith(" test")} for found in (mine, others)]
        assert bool(scored[0]) == bool(scored[1])
        one_sided = scored[0] ^ scored[1]
        return sorted(key for key in (mine.keys() | others.keys()) - one_sided if mine.get(key) != others.get(key))

    def spent(self) -> float:
        with Store.open(self.study) as store:
            return store.spent().seconds
