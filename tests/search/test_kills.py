"""Killed again and again: what was spent is the wall-clock, and what is left is what an uninterrupted run leaves, bit for bit."""

from __future__ import annotations

import pytest

from tests.search.kills import Command
from thrifty.report.page import write_page
from thrifty.studies.clock import KILLED
from thrifty.studies.store import Store

WORKLOAD = "thrifty.testing:workload"
PRUNED = "train(adamw, epochs=2) | prune(ratio=0.5) | train(adamw, epochs=1) | compile(onnxruntime)"
CALIBRATED = "train(adamw, epochs=2) | quantize(w8a8) | compile(onnxruntime)"
EXPLORE = ("explore", WORKLOAD, "--budget", "1h", "--max-drop", "5pt", "--methods", "onnxruntime", "--study", "STUDY")
SWEEP = ("sweep", WORKLOAD, PRUNED, "train(adamw, epochs=2) | compile(onnxruntime)", "--study", "STUDY")
RUN = ("run", WORKLOAD, CALIBRATED, "--pairs", "2", "--study", "STUDY")
TUNE = ("tune", WORKLOAD, "adamw", "--trials", "3", "--seeds", "2", "--evaluations", "2", "--study", "STUDY")

Points = tuple[tuple[str, float], ...]
"""(what the command says, seconds after it) at which it is killed."""


def endure(tmp_path, arguments, points: Points) -> None:
    """A command, killed at every point, then run to its end, beside one that nothing disturbs."""
    control, struck = Command(tmp_path / "control", arguments), Command(tmp_path / "struck", arguments)
    control.run()
    lives = [struck.killed(*point) for point in points]
    assert [life.code for life in lives] == [None] * len(points), "it ended before it was killed"
    lives.append(struck.run())
    assert not struck.unlike(control)
    wall = sum(life.seconds for life in lives)
    assert struck.spent() == pytest.approx(wall, rel=0.05)


@pytest.mark.slow
def test_killed_in_hand_is_charged_and_the_result_is_the_same(tmp_path):
    """Two kills, with everything that 27 of them check but the clock, which decides nothing here."""
    control, struck = Command(tmp_path / "control", RUN), Command(tmp_path / "struck", RUN)
    control.run()
    for point in ((r"  train\(adamw, epochs=2\)", 0.1), (r"  compile\(onnxruntime\)", 0.1)):
        assert struck.killed(*point).code is None
    struck.run()
    assert struck.left() == control.left()
    with Store.open(struck.study) as store:
        killed = [charge for charge in store.spent().charges if charge.what == KILLED]
        assert len(killed) == 2 and all(charge.kind == "failure" and charge.seconds > 0 for charge in killed)
        (trial,) = store.trials()
        assert set(store.rounds(trial.id, "screen")) == {0, 1}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("arguments", "points"), [
    (EXPLORE, ((r"reference: ", 0.3), (r"  train\(", 0.2), (r"scoring on", 0.3), (r"  compile\(onnxruntime\)", 0.2),
               (r"timing, 1", 0.5), (r"timing, 1", 2.5), (r"  compile\(", 0.6), (r"timing, 5 rounds", 0.5),
               (r"timing, 5 rounds", 6.0))),
    (SWEEP, ((r"  train\(adamw, epochs=2\)", 0.1), (r"prune\(ratio=0.5\)$", 0.05), (r"  compile\(", 0.3), (r"timing, 1", 1.0),
             (r"timing, 5 rounds", 1.0), (r"timing, 5 rounds", 7.0))),
    (TUNE, ((r"reference|train\(", 0.5), (r"train\(.*seed 1", 0.6), (r"train\(.*seed 2", 0.6), (r"trials for each", 0.3),
            (r"train\(.*seed 0", 0.7), (r"train\(.*seed 0", 1.2))),
    (RUN, ((r"  quantize\(w8a8\)", 0.05), (r"  quantize\(w8a8\)", 0.3), (r"timing, 2 rounds", 1.0))),
], ids=["explore", "sweep", "tune", "calibration"])
def test_killed_at_many_points(tmp_path, arguments, points):
    endure(tmp_path, arguments, points)


@pytest.mark.slow
def test_a_report_that_is_killed_leaves_the_page_of_before_or_a_whole_one(tmp_path):
    """Three kills on the way: no half a page, and the study is what it was."""
    study = Command(tmp_path, RUN)
    study.run()
    report = Command(tmp_path, ("report", "STUDY"))
    page, before = study.study / "report.html", study.spent()
    write_page(study.study)
    whole = page.read_text()
    for after in (0.2, 0.8, 1.4):
        process = report.begin()
        try:
            process.wait(after)
        except Exception:
            process.kill()
        process.communicate()
        assert page.read_text() == whole
    assert study.spent() == before
    report.run()
    assert page.read_text() == whole
