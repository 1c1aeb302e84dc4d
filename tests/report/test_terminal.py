"""What the terminal shows: nothing cut off, nothing steered by foreign texts, nothing unmeasured shown as zero."""

import dataclasses
import io
import json
import re
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thrifty.recipes.card import Card
from thrifty.recipes.hyperparameters import choice, number
from thrifty.recipes.method import Method
from thrifty.report import terminal
from thrifty.report.console import plain, show, table
from thrifty.report.picture import Point, scatter
from thrifty.report.progress import Progress
from thrifty.report.verbosity import Verbosity
from thrifty.report.words import literal
from thrifty.runs import cache
from thrifty.studies.events import (
    Charged,
    Noted,
    PhaseBegan,
    Promoted,
    Proposed,
    RecipeBegan,
    Stepped,
    SweepBegan,
    TrialEnded,
)
from thrifty.studies.frontier import frontier
from thrifty.studies.ledger import Charge, Ledger
from thrifty.studies.store import Failure
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

LONG = " | ".join(["train(adamw(lr=0.001), bf16, epochs=8)"] + ["prune(ratio=0.2) | train(epochs=1)"] * 8)
HOSTILE = "prune[red]x[/red] \x1b[31mred\x1b[0m\nsecond\r\u202erow :smile: \ud800"


def trial(id, recipe="train()", speed=2.0, drop=0.0, **fields):
    given = {
        "workload": "digits", "workload_hash": "ab12" * 16, "recipe": recipe, "seed": 0,
        "target": {"device": "cpu", "threads": 1, "memory": None}, "status": "done",
        "quality": QualityFigure("accuracy", True, 0.98 - drop, 0.98, Drop(drop, drop - 0.001, drop + 0.001)),
        "training": TrainingFigure(63.2, None, None, None, None, None),
        "inference": InferenceFigure(
            "SingleStream", 0.0106, 0.012, Ratio(speed, speed - 0.1, speed + 0.1, "faster", 5), Ratio(None), None,
            None, None),
        "artifact": ArtifactFigure("study/artifacts/x", 1_234_567, True),
        "environment": {"cpu": "A CPU", "cores": 2, "torch": "2.13"},
    }
    return Trial(id, **(given | fields))


def failed(id, recipe, error):
    return trial(id, recipe, status="failed", error=error, quality=None, inference=None, training=None, artifact=None)


SPENT = Ledger((Charge("training", "train()", 60.0, 1e12, uncounted=("aten::sort",)), Charge("timing", "x", 20.0)))


def text_of(trials, failures=(), spent=SPENT, width=None, monkeypatch=None):
    out = io.StringIO()
    if width:
        monkeypatch.setenv("COLUMNS", str(width))
    terminal.print_study(trials, frontier(trials), spent, failures, file=out)
    return out.getvalue()


def letters(text):
    """Without what wrapping adds or takes."""
    return re.sub(r"\s", "", text)


@pytest.fixture(autouse=True)
def columns(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)


# -- a study ------------------------------------------------------------------------------------------------------


def test_a_study():
    shown = text_of([trial("aaa", LONG, 4.1234, 0.004), trial("bbb", speed=1.0), trial("ccc", speed=3.0, drop=0.02)],
                    [Failure("ddd", "quantize(w8a8)", "out of memory", "now")])
    lines = shown.splitlines()
    assert all(len(line) <= 160 and line == line.rstrip() for line in lines)
    head = next(line for line in lines if "speedup [low, high]" in line)
    for column in ("#", "quality", "drop [low, high]", "training", "latency p50", "verdict", "over compiled", "size",
                   "memory", "status"):
        assert column in head
    first = lines[lines.index(head) + 2]
    for figure in ("0.9760", "0.40pt [0.30, 0.50]", "63.2 s", "10.6 ms", "4.12x [4.02, 4.22]", "faster", "not measured",
                   "1.23 MB", "front"):
        assert figure in first
    assert "dominated by 1" in shown and "digits (ab12ab12ab12)" in shown and "cpu A CPU" in shown
    assert "out of memory" in shown and "75%" in shown
    assert "without a FLOP formula: 1 (-v names them)" in shown and "aten::" not in shown
    assert "Drop in quality against speedup" in shown


@pytest.mark.parametrize("width", [40, 60, 80, 120, 160, 240])
def test_no_recipe_is_cut_off(width, monkeypatch):
    error = "loss is nan at step 31 of train(adamw(lr=10.0), epochs=3) " * 4
    shown = text_of([trial("aaa", LONG), failed("bbb", LONG, error)], [Failure("bbb", LONG, error, "now")],
                    width=width, monkeypatch=monkeypatch)
    assert all(len(line) <= width for line in shown.splitlines())
    assert "…" not in shown
    for word in set(re.findall(r"\w+", LONG)):
        assert word in letters(shown)
    if width >= 120:
        column = [re.search(r"^(?:1| ) {3}(.*?)(?:   |$)", line) for line in shown.splitlines()]
        assert letters(LONG) in letters("".join(found[1] for found in column if found))


def test_operators_are_named_and_charges_told_where_details_are_asked_for(monkeypatch):
    monkeypatch.setenv("THRIFTY_VERBOSITY", "verbose")
    shown = text_of([trial("aaa")], (), Ledger((Charge("training", "train()", 1.0, uncounted=("aten::sort",)),)))
    assert "FLOP formula: aten::sort" in shown and "training: train()" in shown[shown.index("Charge by charge"):]


def test_hostile_texts_are_shown_not_obeyed(monkeypatch):
    monkeypatch.setenv("THRIFTY_VERBOSITY", "verbose")
    trials = [trial("aaa", HOSTILE, environment={"cpu": HOSTILE}), failed("bbb", HOSTILE, HOSTILE)]
    shown = text_of(trials, [Failure("bbb", HOSTILE, HOSTILE, "now")],
                    Ledger((Charge("training", HOSTILE, 1.0, uncounted=(HOSTILE,)),)))
    assert "\x1b" not in shown and "\u202e" not in shown and "\r" not in shown
    assert letters(shown).count(letters(literal(HOSTILE))) == 6
    assert "[red]x[/red]" in shown and ":smile:" in shown and "\\x1b[31m" in shown
    out = io.StringIO()
    terminal.print_trial(dataclasses.replace(trials[1], effects=(Effect(HOSTILE, HOSTILE, 0, 1),)), file=out)
    assert letters(literal(HOSTILE)) in letters(out.getvalue()) and "\x1b" not in out.getvalue()


@given(st.text(st.characters(), max_size=200), st.integers(40, 200))
@settings(max_examples=100, deadline=None)
def test_any_text_survives_a_table(text, width):
    shown = plain(table("", ["recipe"], [[text]]), width)
    wanted = letters(literal(text))
    # Where wide characters wrap is rich's business; that all of them are there is ours.
    assert letters("".join(shown.splitlines()[2:])).startswith(wanted)
    assert all(c.isprintable() for c in shown if c != "\n")


def test_colours_on_a_terminal_only(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    out = Terminal()
    terminal.print_study([trial("aaa")], frontier([trial("aaa")]), SPENT, file=out)
    assert "\x1b[" in out.getvalue()
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b[" not in text_of([trial("aaa")])


def test_a_terminal_that_knows_only_ascii():
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="ascii")
    show(table("", ["a"], [["né"]]), file=out)
    out.flush()
    assert b"n\\xe9" in raw.getvalue()


def test_what_was_not_measured_is_apart():
    screened = trial("bbb", inference=None)
    shown = text_of([trial("aaa"), screened])
    assert "Not ranked" in shown and "not measured: speedup" in shown
    assert shown.index("front") < shown.index("Not ranked")


def test_machines_that_differ_are_told():
    shown = text_of([trial("aaa"), trial("bbb", environment={"cpu": "Another"})])
    assert "A CPU or Another" in shown and "may not be comparable" in shown


def test_nothing_yet():
    assert text_of([], spent=Ledger()) == "The study is empty.\n"
    assert "Where the time went" in text_of([])


def test_what_the_final_front_scored_on_test():
    figure = QualityFigure("accuracy", True, 0.97, 0.98, Drop(0.0123, 0.01, 0.02), split="test")
    shown = text_of([trial("aaa", test=figure), trial("bbb", speed=1.5, drop=0.01)])
    assert "drop on test" in shown and "1.23pt [1.00, 2.00]" in shown and "not scored" in shown


def test_many_trials_all_have_a_mark():
    trials = [trial(f"t{i}", f"train(steps={i + 1})", 1.0 + i) for i in range(50)]
    shown = text_of(trials)
    assert "(50)" in shown and all(f"t{i} seed 0" in shown for i in range(50))


# -- one trial, one artifact --------------------------------------------------------------------------------------


def test_one_trial():
    out = io.StringIO()
    terminal.print_trial(trial("aaa", effects=(Effect("prune", "parameters", 100.0, 50.0),), ledger=SPENT,
                               break_even_requests=12_345.6), file=out)
    for part in ("accuracy 0.9800 on validation", "2.00x [1.90, 2.10] faster", "prune", "after 12.3 krequests",
                 "not measured"):
        assert part in out.getvalue()
    assert terminal._break_even("never") == "never" == terminal._break_even(float("inf"))
    out = io.StringIO()
    terminal.print_trial(failed("bbb", "train()", "loss is nan"), file=out)
    assert "loss is nan" in out.getvalue() and "not measured" in out.getvalue()


@pytest.mark.parametrize(("threads", "note", "said"), [
    (1, None, "on 1 thread"), (2, None, "on 2 threads"),
    (1, "not on 2: its weights were packed for this number of threads", "on 1 thread, not on 2: its weights were packed")])
def test_a_bench(threads, note, said):
    out = io.StringIO()
    terminal.print_bench({
        "artifact": {"path": "x", "bytes": 1000, "engine": "onnxruntime", "precision": "int8", "recipe": None},
        "inference": {"latency_seconds": {"p50": 0.01, "p90": 0.02}, "throughput_per_second": None,
                      "peak_memory_bytes": None, "first_inference_seconds": 0.5},
        "threads": threads, "threads_note": note, "output_error": 1e-6, "environment": {"cpu": "A"},
    }, file=out)
    assert "10.0 ms" in out.getvalue() and out.getvalue().count("not measured") == 2
    assert said in out.getvalue()


# -- what there is ------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Shrink(Method):
    """Make it smaller.

    At length.
    """

    card = Card("pruning", "inference time", "quality [red]", "A paper, 2020", needs=frozenset({"labels"}))
    name = "shrink"
    ratio: float = number(0.5, 0, 1, open_low=True)
    way: str = choice("l1", "l1", "l2")


def test_cards():
    out = io.StringIO()
    terminal.print_method(Shrink, file=out)
    for part in ("Make it smaller.", "pruning (post-training)", "quality [red]", "A paper, 2020", "labels", "(0, 1]",
                 "0.5", "l1, l2", "module (a torch nn.Module, not yet an engine)"):
        assert part in out.getvalue()
    out = io.StringIO()
    terminal.print_methods([Shrink], file=out)
    assert "shrink" in out.getvalue() and "inference time" in out.getvalue()
    assert json.loads(json.dumps(terminal.method_json(Shrink)))["hyperparameters"][1] == {
        "name": "way", "type": "str", "default": "l1", "permitted": "l1, l2"}


def test_workloads():
    from thrifty.workloads.embedded import EMBEDDED

    out = io.StringIO()
    terminal.print_workloads(EMBEDDED, file=out)
    assert "digits" in out.getvalue() and "thrifty[" in out.getvalue()


def test_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("THRIFTY_CACHE", str(tmp_path / "cache"))
    out = io.StringIO()
    terminal.print_cache(cache.usage(), file=out)
    assert "It is empty." in out.getvalue()
    with cache.building("engines", "ab") as room:
        (room / "x").write_bytes(bytes(2_000_000))
    out = io.StringIO()
    terminal.print_cache(cache.usage(), cache.clean(), file=out)
    assert "2.00 MB of 10.0 GB" in out.getvalue() and "0 entries" in out.getvalue()
    assert json.loads(json.dumps(terminal.cache_json(cache.usage())))["bytes"] == 2_000_000


# -- the picture --------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.floats(), st.floats()), max_size=40), st.integers(20, 80), st.integers(2, 20))
@settings(max_examples=100)
def test_a_picture_of_anything(rows, width, height):
    shown = scatter([Point("x", speedup, drop) for speedup, drop in rows], width, height)
    if shown:
        assert len(shown.splitlines()) == height + 2
        assert any(mark in shown for mark in "x+")


# -- progress -----------------------------------------------------------------------------------------------------


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_plain_progress_is_modest_and_says_the_time_left():
    out, clock = io.StringIO(), Clock()
    with Progress(out, every=10, clock=clock) as progress, progress.step("train()"):
        progress.start("steps", total=1000)
        for _ in range(500):
            clock.now += 0.125
            progress.advance()
    lines = out.getvalue().splitlines()
    assert lines[:2] == ["[  0:00] train()", "[  0:00]   steps"]
    assert len(lines) == 8
    assert lines[2] == "[  0:10]     80/1000, about 115 s left"


def test_progress_hears_a_sweep():
    out, clock = io.StringIO(), Clock()
    progress = Progress(out, clock=clock)
    with progress:
        progress.hear(SweepBegan(2))
        for i in range(2):
            progress.hear(RecipeBegan(f"train(steps={i + 1}) \x1b[2J", str(i)))
            progress.hear(PhaseBegan("train"))
            clock.now += 30
            progress.hear(Stepped(5, 10, loss=0.1))
            progress.hear(Charged(Charge("training", "train", 1.0)))
            progress.hear(PhaseBegan("timing"))
            progress.hear(Noted("no compiled baseline"))
            progress.hear(TrialEnded(trial(str(i)) if i else failed("0", "x", "nan")))
        progress.hear(Promoted(2, 5))
        progress.hear(Proposed(("train()",)))
    shown = out.getvalue()
    assert "\x1b" not in shown and "train(steps=1) \\x1b[2J" in shown
    assert "1/2 train(steps=1)" in shown and "2/2 (about 30.0 s left) train(steps=2)" in shown
    assert "5/10, about 30.0 s left" in shown
    assert "failed: nan" in shown and "done: 2.00x [1.90, 2.10]" in shown and "no compiled baseline" in shown


def test_progress_on_a_terminal(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    out = Terminal()
    with Progress(out) as progress:
        progress.hear(SweepBegan(2))
        progress.hear(RecipeBegan("prune[red] " + LONG, "a"))
        progress.hear(Stepped(5, 10))
        progress.hear(TrialEnded(trial("a")))
        progress.note("[bold]done[/bold]")
    assert "prune[red]" in out.getvalue() and "[bold]done[/bold]" in out.getvalue()


def test_progress_goes_to_stderr_and_never_ends_a_run(capsys, monkeypatch):
    with Progress() as progress:
        progress.note("here")
    assert capsys.readouterr() == ("", "[  0:00] here\n")

    class Broken(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    with Progress(Broken()) as progress:
        progress.note("nobody hears")
    monkeypatch.setattr(sys, "stderr", Broken())
    with Progress() as progress, progress.step("x"):
        progress.advance()
    progress.finish()
    progress.advance()


def test_progress_says_nothing_or_everything_as_is_asked():
    told = {}
    for verbosity in Verbosity:
        out = io.StringIO()
        with Progress(out, clock=Clock(), verbosity=verbosity) as progress:
            progress.hear(RecipeBegan("train()", "a"))
            progress.hear(Charged(Charge("training", "train()", 12.3, 4e12, 300_000_000)))
            progress.hear(Noted("a note"))
        told[verbosity] = out.getvalue()
    assert told[Verbosity.quiet] == ""
    assert "a note" in told[Verbosity.normal] and "FLOP" not in told[Verbosity.normal]
    assert "training of train(): 12.3 s, 4.00 TFLOP, peak memory 300 MB" in told[Verbosity.verbose]


def test_what_rounds_to_zero_has_no_sign():
    shown = text_of([trial("aaa", drop=-0.000001), trial("bbb", speed=1.0, drop=-0.00000001)])
    assert not re.search(r"-0\.?0*(?![\d.])", shown) and "0.00pt" in shown
