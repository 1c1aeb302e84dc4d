"""The answer of a study in one sentence: what is gained, what is lost, when it pays; or that the model stays as it is."""

from __future__ import annotations

from typing import Any

from thrifty.report.words import in_points, significant, times
from thrifty.studies.as_it_is import AsItIs
from thrifty.studies.constraints import Bars, Choice, choose
from thrifty.studies.findings import Findings
from thrifty.studies.trial import QualityFigure, Trial


def answer(found: Findings) -> dict[str, Any]:
    """The answer: its sentence, the trial that it is about, and the constraints that it keeps to.

    Where no exploration asked for any, they are those that the page begins with: a drop of one point, or one per cent.

    >>> answer(Findings.of([]))["sentence"]
    'Nothing was measured yet.'
    """
    bars = found.bars or Bars.read(max_drop="1pt" if _points(found) else "1%")
    choice = found.choice if found.bars is not None else choose(found.trials, bars, found.as_it_is)
    return {"sentence": sentence(choice, bars, found.as_it_is), "trial": choice.trial and choice.trial.id,
            "bars": bars.to_json()}


def sentence(choice: Choice, bars: Bars, model: AsItIs = AsItIs()) -> str:
    """What a choice says to whoever reads nothing else.

    Args:
        choice: by the constraints.
        bars: the constraints.
        model: what is known of the model as it is.
    """
    if choice.trial is not None:
        return f"{_gain(choice.trial, bars, model)} {_loss(choice.trial.quality)}; {_pays(choice.trial)}."
    if choice.keep is not None and choice.nearest is not None and [miss.bar for miss in choice.misses] == ["max_drop"] and (
            model.doubt is None):
        (miss,), quality = choice.misses, choice.nearest.quality
        return (f"Keep the model as it is: no trial is shown to lose at most {_amount(miss.limit, quality)}; the nearest may "
                f"lose {_amount(miss.figure, quality)}.")
    if choice.keep is not None:
        return f"Keep the model as it is: {choice.keep}."
    if choice.nearest is None:
        return "Nothing was measured yet."
    missed = " and ".join(miss.bar.replace("_", " ") for miss in choice.misses)
    return f"No trial meets the constraints: the nearest misses {missed}." if missed else (
        "No trial is recommended: none is significantly better than the model as it is.")


def _points(found: Findings) -> bool:
    return next((in_points(trial.quality) for trial in found.trials if trial.quality), True)


def _gain(trial: Trial, bars: Bars, model: AsItIs) -> str:
    own = model.figure(bars.objective, trial)
    if bars.objective == "bytes" and own is not None and trial.artifact:
        return f"{times(own.value / trial.artifact.bytes)}x smaller"
    if bars.objective == "memory" and own is not None and trial.inference and trial.inference.peak_memory_bytes:
        return f"{times(own.value / trial.inference.peak_memory_bytes)}x less memory"
    if bars.objective == "training" and own is not None and trial.training and trial.training.seconds:
        return f"{times(own.value / trial.training.seconds)}x cheaper to train"
    speed = trial.inference and trial.inference.speedup.value
    return f"{times(speed)}x {'faster' if speed > 1 else 'as fast'}" if speed else "Better than the model as it is"


def _loss(quality: QualityFigure | None) -> str:
    """Told from the interval: one that holds 0 shows no loss."""
    if quality is None:
        return "at a loss that was not measured"
    if quality.drop.low <= 0 <= quality.drop.high:
        return "at no measurable loss"
    amount = _amount(abs(quality.drop.value), quality)
    return f"at a loss of {amount}" if quality.drop.value > 0 else f"at a gain of {amount}"


def _amount(size: float, quality: QualityFigure | None) -> str:
    if quality is None or not in_points(quality):
        return f"{significant(size)} {quality.name}" if quality else significant(size)
    points = f"{100 * size:.2f}".rstrip("0").rstrip(".")
    return f"{points} point{'' if points == '1' else 's'} of {quality.name}"


def _pays(trial: Trial) -> str:
    match trial.break_even_requests:
        case "never":
            return "never pays back its cost"
        case int() | float() as requests if requests <= 0:
            return "pays back at once"
        case int() | float() as requests:
            return f"pays back after {_rounded(requests):,} requests"
    return "its payback was not measured"


def _rounded(value: float) -> int:
    """Two digits say all that an estimate of requests has.

    >>> _rounded(2134.2), _rounded(7.4)
    (2100, 7)
    """
    return int(float(f"{value:.2g}")) if value >= 100 else round(value)
