"""From readings to figures: pure functions between what was measured and what a trial says."""

from __future__ import annotations

from typing import Literal

from thrifty.measure.comparison import Comparison
from thrifty.measure.statistics import Interval, paired_drop, standard_error, verdict
from thrifty.studies.ledger import Charge, Ledger
from thrifty.studies.trial import Drop, InferenceFigure, QualityFigure, Ratio, TrainingFigure
from thrifty.workloads.quality import Quality, Scores, Split


def quality_figure(quality: Quality, reference: Scores, scores: Scores, split: Split) -> QualityFigure:
    """Quality, and what is lost against the reference on the same examples."""
    drop = paired_drop(reference, scores, quality.higher_is_better)
    return QualityFigure(quality.name, quality.higher_is_better, scores.value, reference.value,
                         Drop(drop.value, _known(drop.low), _known(drop.high)), split)


def inference_figure(comparison: Comparison, precision: str | None, compiled_by: str | None = None) -> InferenceFigure:
    """Latency, speed and memory of the side "engine", against "eager" and, where it ran, "compiled" (by which compiler)."""
    engine, eager = comparison.figures["engine"], comparison.figures["eager"]
    over = comparison.ratio("engine", "compiled") if "compiled" in comparison.figures else None
    return InferenceFigure(
        scenario=comparison.scenario,
        latency_p50=engine.p50,
        latency_p90=engine.p90,
        speedup=ratio_figure(comparison.ratios["engine"]),
        speedup_over_compiled=ratio_figure(over),
        throughput_per_second=engine.throughput_per_second,
        peak_memory_bytes=engine.peak_memory_bytes,
        first_inference_seconds=engine.first_inference_seconds,
        precision=precision,
        baseline_seconds=eager.p50,
        compiled_by=compiled_by,
    )


def training_figure(cost: Ledger, speedup: float | None = None) -> TrainingFigure:
    """All that was paid before serving."""
    return TrainingFigure(cost.seconds, cost.flops, cost.peak_memory_bytes, cost.joules, cost.dollars, speedup,
                          cost.uncounted)


def ratio_figure(interval: Interval | None) -> Ratio:
    if interval is None:
        return Ratio(None)
    return Ratio(interval.value, interval.low, interval.high, verdict(interval), interval.n)


def training_speedup(reference: Ledger, charges: tuple[Charge, ...], curve: tuple[tuple[float, float], ...],
                     quality: QualityFigure) -> float | None:
    """The reference's seconds over this recipe's, to the reference's quality.

    Args:
        reference: what the reference cost.
        charges: what this recipe cost.
        curve: (seconds so far, quality on validation) of its training.
        quality: at its end.

    Returns:
        None where its end is significantly worse than the reference, or where nothing is trained. Otherwise the time
        from which on no evaluation falls below the reference; the end counts where its drop is not significant.
        Compilation is no part of it.
    """
    def reaches(value: float) -> bool:
        return value >= quality.baseline if quality.higher_is_better else value <= quality.baseline

    if not reaches(quality.value) and quality.drop.low > 0:
        return None
    reached = Ledger(charges).only("teacher", "search", "calibration", "training").seconds
    for seconds, value in reversed(curve):
        if not reaches(value):
            break
        reached = seconds
    return reference.seconds / reached if reached and reference.seconds else None


def break_even(extra: float, saving: float, speedup: Ratio) -> float | Literal["never"] | None:
    """Requests after which the extra seconds before serving are paid back.

    Args:
        extra: seconds that the trial cost above the reference.
        saving: seconds a request.
        speedup: with its verdict; without a significant gain there is no saving.

    Returns:
        a number of requests (of a screened speed, an estimate), "never", or None where no speed was measured.

    >>> break_even(10.0, 0.5, Ratio(2.0, 1.9, 2.1, "faster", 5)), break_even(10.0, 0.5, Ratio(2.0, verdict="screened"))
    (20.0, 20.0)
    """
    if speedup.value is None:
        return None
    gains = speedup.verdict == "faster" or (speedup.verdict == "screened" and speedup.value > 1)
    return max(0.0, extra / saving) if gains and saving > 0 else "never"


def _known(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def no_better(quality: Quality, scores: Scores, constant: float) -> str | None:
    """What to say where a model is no better, by more than noise, than an answer that does not look at its input.

    Args:
        quality: that judged.
        scores: of the model.
        constant: value of that answer, by the same quality on the same examples.

    Returns:
        None where it is better by more than a standard error, and where a drop to that answer could be told from none.
    """
    gain = (scores.value - constant) * (1 if quality.higher_is_better else -1)
    if gain <= standard_error(scores):
        return (f"the reference is no better than a constant answer ({scores.value:.2f} against {constant:.2f}): nothing "
                "can be concluded from it")
    resolution = paired_drop(scores, scores, quality.higher_is_better).high
    if resolution is not None and resolution >= gain:
        return (f"{len(scores.numerator)} validation examples cannot tell a drop of {resolution:.3f} from none, and "
                f"the reference beats a constant answer by only {gain:.3f}: nothing can be concluded from it")
    return None
