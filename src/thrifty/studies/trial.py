"""One recipe, one seed, one target: all that was measured of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, final

from thrifty.studies.ledger import Ledger

Verdict = Literal["faster", "slower", "no significant gain", "screened", "not measured"]


@final
@dataclass(frozen=True)
class Ratio:
    """A ratio to a baseline, with the 95% interval over process pairs; no interval where one pair ran."""

    value: float | None
    low: float | None = None
    high: float | None = None
    verdict: Verdict = "not measured"
    pairs: int = 0


@final
@dataclass(frozen=True)
class Drop:
    """Quality lost against the reference, positive = worse, with the 95% interval over clusters of examples."""

    value: float
    low: float
    high: float


@final
@dataclass(frozen=True)
class QualityFigure:
    name: str
    higher_is_better: bool
    value: float
    baseline: float
    drop: Drop
    split: str = "validation"


@final
@dataclass(frozen=True)
class TrainingFigure:
    """What it took before serving. ``speedup`` is the reference's seconds over this trial's, to the reference's
    quality; None where the trial does not reach it."""

    seconds: float
    flops: float | None
    peak_memory_bytes: int | None
    joules: float | None
    dollars: float | None
    speedup: float | None
    uncounted_operators: tuple[str, ...] = ()


@final
@dataclass(frozen=True)
class InferenceFigure:
    scenario: str
    latency_p50: float
    latency_p90: float
    speedup: Ratio
    speedup_over_compiled: Ratio
    throughput_per_second: float | None
    peak_memory_bytes: int | None
    first_inference_seconds: float | None
    precision: str | None = None
    baseline_seconds: float | None = None
    compiled_by: str | None = None
    """The compiler of the compiled baseline, which is made for claims."""


@final
@dataclass(frozen=True)
class ArtifactFigure:
    path: str
    bytes: int
    portable: bool


@final
@dataclass(frozen=True)
class Effect:
    """A claim as it was probed: by which method, of what, before and after, and where it was read last."""

    method: str
    what: str
    before: float
    after: float
    read_from: str = "model"


@final
@dataclass(frozen=True)
class Trial:
    """One recipe run with one seed on one target, and everything measured of it.

    ``status`` is "done" or "failed"; a failed trial keeps its ledger and says why in ``error``.
    """

    id: str
    workload: str
    workload_hash: str
    recipe: str
    seed: int
    target: Mapping[str, Any]
    status: Literal["done", "failed"]
    error: str | None = None
    quality: QualityFigure | None = None
    test: QualityFigure | None = None
    """Quality on the test split, which only the final front is scored on."""
    training: TrainingFigure | None = None
    inference: InferenceFigure | None = None
    artifact: ArtifactFigure | None = None
    break_even_requests: float | Literal["never"] | None = None
    saved_seconds_per_request: float | None = None
    """The baseline's seconds less this engine's, each at its own batch; below 0 where it is slower."""
    effects: tuple[Effect, ...] = ()
    environment: Mapping[str, Any] = field(default_factory=dict)
    ledger: Ledger = Ledger()
    raw: Mapping[str, Any] = field(default_factory=dict)
    """Block values of every process pair, so that figures can be computed again."""
    created: str = ""

    def to_json(self) -> dict[str, Any]:
        """The object that ``--json`` prints; null means not measured."""
        training, inference = self.training, self.inference
        return {
            "id": self.id,
            "recipe": self.recipe,
            "workload": self.workload,
            "target": dict(self.target),
            "seed": self.seed,
            "status": self.status,
            "error": self.error,
            "quality": self.quality and dataclasses.asdict(self.quality),
            "test_quality": self.test and dataclasses.asdict(self.test),
            "training": training and dataclasses.asdict(training),
            "inference": inference and {
                "scenario": inference.scenario,
                "latency_seconds": {"p50": inference.latency_p50, "p90": inference.latency_p90},
                "speedup": dataclasses.asdict(inference.speedup),
                "speedup_over_compiled": dataclasses.asdict(inference.speedup_over_compiled),
                "throughput_per_second": inference.throughput_per_second,
                "peak_memory_bytes": inference.peak_memory_bytes,
                "first_inference_seconds": inference.first_inference_seconds,
                "precision": inference.precision,
                "baseline_seconds": inference.baseline_seconds,
                "compiled_by": inference.compiled_by,
            },
            "artifact": self.artifact and dataclasses.asdict(self.artifact),
            "break_even_requests": self.break_even_requests,
            "saved_seconds_per_request": self.saved_seconds_per_request,
            "effects": [dataclasses.asdict(effect) for effect in self.effects],
            "environment": dict(self.environment),
            "ledger": self.ledger.to_json(),
            "created": self.created,
        }
