"""Tables for the terminal: a study's trials and frontier, one trial, where the time went."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TextIO

from rich.console import Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from thrifty.report.console import cell, pairs, show, table, width_of
from thrifty.report.listing import cache_json, method_json, print_cache, print_method, print_methods, print_workloads
from thrifty.report.picture import Point, scatter
from thrifty.report.progress import Progress
from thrifty.report.verbosity import Verbosity
from thrifty.report.words import NOT_MEASURED, drop, in_points, literal, ratio, scaled, seconds, significant, times
from thrifty.studies.frontier import Frontier, Standing
from thrifty.studies.ledger import Kind, Ledger
from thrifty.studies.remarks import Remarks
from thrifty.studies.searches import nets
from thrifty.studies.store import Failure
from thrifty.studies.trial import QualityFigure, Trial
from thrifty.units import fixed

__all__ = [
    "Progress", "print_study", "print_trial", "print_bench", "print_workloads", "print_methods",
    "print_method", "method_json", "print_cache", "cache_json",
]

_WIDE = 150  # fewer characters than this take the figures in two tables
_STYLES = {"front": "bold green", "tied": "yellow", "dominated": "dim"}


# -- a study ------------------------------------------------------------------------------------------------------


def print_study(trials: Sequence[Trial], found: Frontier, spent: Ledger, failures: Sequence[Failure] = (),
                remarks: Mapping[str, Remarks] | None = None, file: TextIO | None = None) -> None:
    """A study: header, frontier, picture, what has no place on it, remarks, failures, where the time went."""
    out = sys.stdout if file is None else file
    if not trials and not failures and not spent.charges:
        show(Text("The study is empty."), file=out)
        return
    show(*study(trials, found, spent, failures, width_of(out), remarks or {}), file=out)


def study(trials: Sequence[Trial], found: Frontier, spent: Ledger, failures: Sequence[Failure],
          width: int, remarks: Mapping[str, Remarks]) -> list[RenderableType]:
    """The parts of `print_study`."""
    ranked = sorted(found.standings, key=_rank)
    marks = {s.trial.id: mark(i) for i, s in enumerate(ranked)}
    unranked = [x for x in found.incomplete if x.trial.status == "done"]
    marks |= {x.trial.id: mark(i) for i, x in enumerate(unranked, start=len(ranked))}
    parts: list[RenderableType] = []
    if trials:
        parts.append(header(trials))
    if ranked:
        rows = [(s.trial, _status(s, marks)) for s in ranked]
        parts.append(_figures(f"Trials and frontier over {', '.join(found.objectives)}", rows, marks, width))
        if picture := _picture(ranked, marks, width):
            parts.append(picture)
    if unranked:
        rows = [(x.trial, cell("not ranked")) for x in unranked]
        why = {x.trial.id: x.reason for x in unranked}
        parts.append(_figures("Not ranked: a figure is missing", rows, marks, width, why))
    if searches := nets(trials):
        parts.append(table("Searches, and the requests to pay them back",
                           [_right("trial"), "search", _right("cost"), _right("saved per request"), "break-even"],
                           [(marks.get(net.trial, net.trial), net.phase, seconds(net.seconds), _saving(net.saving),
                             _break_even(net.requests)) for net in searches]))
    if remarks:
        parts.append(table("Tags and notes", [_right("trial"), "tags", "note"], [
            (marks.get(id, id), ", ".join(said.tags), said.note) for id, said in remarks.items()]))
    if failures:
        parts.append(table("Failures", ["recipe", "reason", "when"], [(f.recipe, f.reason, f.at) for f in failures]))
    if spent.charges:
        parts.append(ledger(spent))
    return parts


def mark(i: int) -> str:
    """The short name of the i-th trial in tables and picture: 1 to 9, a to z, then (36), (37), ..."""
    return "123456789abcdefghijklmnopqrstuvwxyz"[i] if i < 35 else f"({i + 1})"


def header(trials: Sequence[Trial]) -> Table:
    """Workload, target and machine; where trials differ in it, every value."""
    environments: dict[str, list[str]] = {}
    for trial in trials:
        for key, value in trial.environment.items():
            if isinstance(value, str | int | float) and str(value) not in environments.setdefault(key, []):
                environments[key].append(str(value))
    target = {k: v for trial in trials[:1] for k, v in trial.target.items() if v is not None}
    rows = [
        ("workload", ", ".join(dict.fromkeys(f"{t.workload} ({t.workload_hash[:12]})" for t in trials))),
        ("target", ", ".join(f"{key} {value}" for key, value in target.items())),
        ("machine", "; ".join(f"{key} {' or '.join(values)}" for key, values in environments.items()) or NOT_MEASURED),
    ]
    differ = [key for key, values in environments.items() if len(values) > 1]
    if differ:
        rows.append(("warning", f"trials differ in {', '.join(differ)}: their speeds may not be comparable"))
    return pairs(rows)


def _rank(standing: Standing) -> tuple[int, float]:
    speedup = standing.trial.inference.speedup.value if standing.trial.inference else None
    return ("front", "tied", "dominated").index(standing.status), -(speedup or 0.0)


def _status(standing: Standing, marks: Mapping[str, str]) -> Text:
    says = {"front": "front", "tied": "tied with", "dominated": "dominated by"}[standing.status]
    other = f" {marks.get(standing.by, standing.by)}" if standing.by else ""
    return cell(says + other, _STYLES[standing.status])


_Column = tuple[Column, Callable[[Trial], object]]


def _right(name: str) -> Column:
    return Column(header=name, justify="right")


_KEPT: list[_Column] = [
    (_right("quality"), lambda t: fixed(t.quality.value) if t.quality else NOT_MEASURED),
    (_right("drop [low, high]"), lambda t: drop(t.quality)),
    (_right("training"), lambda t: seconds(t.training.seconds if t.training else None)),
]
_SPEED: list[_Column] = [
    (_right("latency p50"), lambda t: seconds(t.inference.latency_p50 if t.inference else None)),
    (_right("speedup [low, high]"), lambda t: ratio(t.inference and t.inference.speedup)),
    (Column(header="verdict"), lambda t: t.inference.speedup.verdict if t.inference else NOT_MEASURED),
    (_right("over compiled"), lambda t: ratio(t.inference and t.inference.speedup_over_compiled)),
]


_WEIGHT: list[_Column] = [
    (_right("size"), lambda t: scaled(t.artifact.bytes if t.artifact else None, "B")),
    (_right("memory"), lambda t: scaled(t.inference.peak_memory_bytes if t.inference else None, "B")),
]


def _figures(title: str, rows: Sequence[tuple[Trial, Text]], marks: Mapping[str, str], width: int,
             why: Mapping[str, str] | None = None) -> Group:
    """The figures, in one table or two as there is room, and below them the recipes, which would fit no column."""
    groups = [_KEPT + _SPEED + _WEIGHT] if width >= _WIDE else [_SPEED, _KEPT + _WEIGHT]
    made: list[RenderableType] = []
    for i, group in enumerate(groups):
        last = i == len(groups) - 1
        columns = [Column(header="#"), *(column for column, _ in group), *([Column(header="status")] if last else [])]
        body = [[marks[t.id], *(read(t) for _, read in group), *([status] if last else [])] for t, status in rows]
        made += [table("" if i else title, columns, body), Text("")]
    notes: list[tuple[str, Callable[[Trial], object]]] = []
    if any(t.test for t, _ in rows):  # which only the final front is scored on
        notes.append(("drop on test", lambda t: drop(t.test) if t.test else "not scored"))
    if why is not None:
        notes.append(("why", lambda t: why[t.id]))
    legend = [[marks[t.id], t.recipe or "(the model as it comes)", f"{t.id} seed {t.seed}",
               *(read(t) for _, read in notes)] for t, _ in rows]
    return Group(*made, table("", ["#", "recipe", "trial", *(name for name, _ in notes)], legend))


def _picture(ranked: Sequence[Standing], marks: Mapping[str, str], width: int) -> Group | None:
    points, unit = [], ""
    for standing in ranked:
        trial = standing.trial
        if trial.quality and trial.inference and trial.inference.speedup.value:
            shown = in_points(trial.quality)
            unit = "pt" if shown else ""
            value = trial.quality.drop.value * (100 if shown else 1)
            letter = marks[trial.id] if len(marks[trial.id]) == 1 else "*"
            points.append(Point(letter, trial.inference.speedup.value, value))
    if len(points) < 2:
        return None
    note = "Drop in quality against speedup, by #" + (" (* past z)" if len(ranked) > 35 else "") + "; + is several"
    return Group(Text(note, style="bold"), Text(scatter(points, width=max(20, min(72, width - 24)), unit=unit)))


def ledger(spent: Ledger) -> Group:
    """Where the time went: one line per kind of charge, the costliest first; verbose, then one per charge, in order."""
    verbose = Verbosity.asked() is Verbosity.verbose
    kinds: list[Kind] = sorted({c.kind for c in spent.charges}, key=lambda kind: -spent.only(kind).seconds)
    rows = [_spent_row(kind, spent.only(kind), spent.seconds) for kind in kinds]
    rows.append(_spent_row("all", spent, spent.seconds))
    columns = ["spent on", "times", "time", "share", "FLOPs", "peak memory", "joules", "dollars"]
    known = [i for i in range(len(columns)) if any(row[i] != NOT_MEASURED for row in rows)]
    headers = [columns[i] if i == 0 else _right(columns[i]) for i in known]
    parts: list[RenderableType] = [table("Where the time went", headers, [[row[i] for i in known] for row in rows])]
    if unknown := [name for i, name in enumerate(columns) if i not in known]:
        parts.append(Text(f"{NOT_MEASURED}: {', '.join(unknown)}"))
    if spent.uncounted:
        names = ", ".join(map(literal, spent.uncounted)) if verbose else f"{len(spent.uncounted)} (-v names them)"
        parts.append(Text(f"operators without a FLOP formula: {names}"))
    if verbose:
        rows = [_spent_row(f"{each.kind}: {each.what}", Ledger((each,), spent.price), spent.seconds) for each in spent.charges]
        parts += [Text(""), table("Charge by charge", headers, [[row[i] for i in known] for row in rows])]
    return Group(*parts)


def _spent_row(name: str, part: Ledger, whole: float) -> list[object]:
    return [
        name, len(part.charges), seconds(part.seconds), f"{100 * part.seconds / whole:.0f}%" if whole else "",
        scaled(part.flops, "FLOP"), scaled(part.peak_memory_bytes, "B"), _plain(part.joules), _plain(part.dollars),
    ]


def _plain(value: float | None) -> str:
    return NOT_MEASURED if value is None else significant(value)


# -- one trial, one artifact ----------------------------------------------------------------------------------------


def print_trial(trial: Trial, file: TextIO | None = None) -> None:
    """Everything measured of one trial, then its effects and its cost."""
    training, inference, artifact = trial.training, trial.inference, trial.artifact
    rows: list[tuple[str, object]] = [
        ("recipe", trial.recipe or "(the model as it comes)"),
        ("trial", f"{trial.id} seed {trial.seed}, {trial.status}"),
        *([("error", trial.error or "no reason was given")] if trial.status == "failed" else []),
        ("quality", _quality(trial.quality)),
    ]
    if trial.test:
        rows.append(("on test", _quality(trial.test)))
    rows.append(("training", seconds(training and training.seconds)))
    if training:
        rows += [("", f"{scaled(training.flops, 'FLOP')}; peak memory {scaled(training.peak_memory_bytes, 'B')}; "
                      f"joules {_plain(training.joules)}; dollars {_plain(training.dollars)}"),
                 ("to quality", f"{times(training.speedup)}x as fast as the reference" if training.speedup
                  else NOT_MEASURED)]
    if inference:
        rows += [
            ("latency", f"p50 {seconds(inference.latency_p50)}, p90 {seconds(inference.latency_p90)} "
                        f"({inference.scenario}, {inference.precision or 'precision not measured'})"),
            ("speedup", f"{ratio(inference.speedup)} {inference.speedup.verdict}"),
            ("over compiled", f"{ratio(inference.speedup_over_compiled)} {inference.speedup_over_compiled.verdict}"
             if inference.speedup_over_compiled.value else NOT_MEASURED),
            ("throughput", _rate(inference.throughput_per_second)),
            ("memory", scaled(inference.peak_memory_bytes, "B")),
            ("first inference", seconds(inference.first_inference_seconds)),
        ]
    else:
        rows.append(("inference", NOT_MEASURED))
    rows.append(("artifact", f"{artifact.path}, {scaled(artifact.bytes, 'B')}"
                             f"{'' if artifact.portable else ', not portable'}" if artifact else NOT_MEASURED))
    rows.append(("break-even", _break_even(trial.break_even_requests)))
    parts: list[RenderableType] = [pairs(rows)]
    if trial.effects:
        parts.append(table("Effects", ["method", "what", _right("before"), _right("after"), "read from"], [
            (e.method, e.what, significant(e.before), significant(e.after), e.read_from) for e in trial.effects]))
    if trial.ledger.charges:
        parts.append(ledger(trial.ledger))
    show(*parts, file=file)


def _quality(quality: QualityFigure | None) -> str:
    if quality is None:
        return NOT_MEASURED
    better = "higher" if quality.higher_is_better else "lower"
    return (f"{quality.name} {fixed(quality.value)} on {quality.split} ({better} is better; reference "
            f"{fixed(quality.baseline)}, drop {drop(quality)})")


def _rate(value: float | None) -> str:
    return NOT_MEASURED if value is None else f"{significant(value)} per second"


def _saving(value: float | None) -> str:
    return NOT_MEASURED if value is None else f"-{seconds(-value)}" if value < 0 else seconds(value)


def _break_even(requests: object) -> str:
    match requests:
        case None:
            return NOT_MEASURED
        case int() | float():
            return f"after {scaled(round(requests), 'requests')}" if requests < float("inf") else "never"
    return str(requests)


def print_bench(found: Mapping[str, Any], file: TextIO | None = None) -> None:
    """What `thrifty.bench` measured of an artifact."""
    artifact, inference, note = found["artifact"], found["inference"], found.get("threads_note")
    threads = f"{found['threads']} thread{'s' * (found['threads'] != 1)}" + (f", {note}" if note else "")
    latency, error = inference["latency_seconds"], found.get("output_error")
    show(pairs([
        ("artifact", artifact["path"]),
        ("recipe", artifact.get("recipe") or "(the model as it comes)"),
        ("engine", f"{artifact['engine']}, {artifact['precision']}, {scaled(artifact['bytes'], 'B')}"),
        ("latency", f"p50 {seconds(latency['p50'])}, p90 {seconds(latency['p90'])} on {threads}"),
        ("throughput", _rate(inference["throughput_per_second"])),
        ("memory", scaled(inference["peak_memory_bytes"], "B")),
        ("first inference", seconds(inference["first_inference_seconds"])),
        ("outputs", NOT_MEASURED if error is None else f"differ from the stored ones by {error:.2g} (relative error)"),
        ("machine", "; ".join(f"{key} {value}" for key, value in found.get("environment", {}).items())),
    ]), file=file)
