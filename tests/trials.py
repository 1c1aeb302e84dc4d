"""Trials made up for tests: one with every figure given, and whole studies of any size, the same at every run."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from thrifty.studies.ledger import Charge, Kind, Ledger
from thrifty.studies.store import Failure, Store, Study
from thrifty.studies.trial import (
    ArtifactFigure,
    Drop,
    Effect,
    InferenceFigure,
    QualityFigure,
    Ratio,
    TrainingFigure,
    Trial,
)

HASH = "ab12" * 16
TARGET = {"device": "cpu", "threads": 1, "memory": None}
MACHINE = {"cpu": "A CPU of one kind", "cores": 2, "system": "Linux", "python": "3.11.9", "torch": "2.13.0"}
BASELINE_SECONDS = 0.0212


def trial(id: str, recipe: str = "train()", speed: float = 2.0, drop: float = 0.0, *, width: float = 0.05,
          seconds: float = 63.2, bytes: int = 1_234_567, **fields: Any) -> Trial:
    """A trial that is done; ``width`` is that of the speed's interval either way, 0 for a screened one."""
    interval = Ratio(speed, speed * (1 - width), speed * (1 + width), "faster" if speed * (1 - width) > 1 else
                     "no significant gain", 5) if width else Ratio(speed, verdict="screened", pairs=1)
    given: dict[str, Any] = {
        "workload": "digits", "workload_hash": HASH, "recipe": recipe, "seed": 0, "target": TARGET, "status": "done",
        "quality": QualityFigure("accuracy", True, 0.98 - drop, 0.98, Drop(drop, drop - 0.003, drop + 0.003)),
        "training": TrainingFigure(seconds, 1e12, None, None, None, None),
        "inference": InferenceFigure("SingleStream", BASELINE_SECONDS / speed, 1.2 * BASELINE_SECONDS / speed, interval,
                                     Ratio(None), speed / BASELINE_SECONDS, 50_000_000, 0.3, "int8", BASELINE_SECONDS),
        "artifact": ArtifactFigure("study/artifacts/x", bytes, True),
        "environment": MACHINE,
        "ledger": Ledger((Charge("training", recipe, seconds, 1e12),)),
        "created": "2026-11-24T10:00:00+00:00",
    }
    return Trial(id, **(given | fields))


def failed(id: str, recipe: str, error: str, **fields: Any) -> Trial:
    return trial(id, recipe, **({"status": "failed", "error": error, "quality": None, "inference": None,
                                 "training": None, "artifact": None} | fields))


def many(count: int, seed: int = 0) -> list[Trial]:
    """Trials as an exploration leaves them: most screened, a few measured, some failed, some with gaps."""
    chance = random.Random(seed)
    made = []
    for i in range(count):
        ratio, bits = chance.choice((0.2, 0.35, 0.5, 0.65, 0.8)), chance.choice(("w8a8", "bf16", "w8", ""))
        epochs, engine = chance.choice((1, 2, 4, 8)), chance.choice(("onnxruntime", "inductor", "openvino"))
        phases = [f"train(adamw(lr=0.001), epochs={epochs})"]
        phases += [f"prune(ratio={ratio})", f"train(distill(temperature=2), epochs={chance.choice((1, 2))})"]
        phases += [f"quantize({bits})"] if bits else []
        phases = [*phases, f"compile({engine})"][chance.choice((0, 0, 0, 1)):]
        recipe = " | ".join(phases)
        id = f"{i:04x}{chance.getrandbits(32):08x}"
        if chance.random() < 0.04:
            made.append(failed(id, recipe, chance.choice(("loss is nan at step 31", "out of memory"))))
            continue
        speed = (1 + 3 * ratio) * {"w8a8": 2.4, "bf16": 1.7, "w8": 1.2, "": 1.0}[bits] * chance.lognormvariate(0, 0.2)
        drop = 0.06 * ratio**2 / epochs**0.5 + (0.004 if "8" in bits else 0) + chance.gauss(0, 0.003)
        measured = chance.random() < 0.3
        extra = 20.0 * epochs
        even: float | str | None = extra / (BASELINE_SECONDS * (1 - 1 / speed)) if speed > 1.1 else "never"
        made.append(trial(
            id, recipe, round(speed, 4), round(drop, 5), width=chance.uniform(0.01, 0.08) if measured else 0,
            seconds=8.0 * epochs * chance.uniform(0.9, 1.2) + 30 * ratio,
            bytes=int(4e6 * (1 - ratio) / (4 if "8" in bits else 1)),
            break_even_requests=even, seed=i % 3,
            effects=(Effect("prune", "parameters", 1e6, 1e6 * (1 - ratio), "engine"),),
            ledger=Ledger((Charge("teacher", "train(adamw, epochs=8)", 60.0, 8e12),
                           Charge("training", phases[0], 8.0 * epochs, 1e12 * epochs),
                           Charge("calibration", "quantize", 0.8), Charge("compilation", engine, 3.1))),
        ))
    return made


def ledger_of(trials: Sequence[Trial]) -> Ledger:
    """What a study of them spent."""
    kinds: tuple[Kind, ...] = ("timing", "scoring", "start")
    measuring = tuple(Charge(kind, trial.id, 2.0 + i) for trial in trials for i, kind in enumerate(kinds))
    return Ledger(tuple(charge for trial in trials for charge in trial.ledger.charges) + measuring)


def keep(path: Path, trials: Sequence[Trial], failures: Sequence[Failure] = ()) -> Path:
    """A study's directory with them."""
    first = trials[0]
    with Store.open(path, "write", Study(first.workload, first.workload_hash, first.target)) as store:
        for each in trials:
            store.put_trial(each)
            for charge in each.ledger.charges:
                store.charge(each.id, charge)
        for failure in failures:
            store.put_failure(failure.trial, failure.recipe, failure.reason)
    return path
