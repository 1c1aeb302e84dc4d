"""A trial as figures and settings that any library takes."""

import math

from hypothesis import given
from hypothesis import strategies as st
from tests.trials import trial

from thrifty.report.sinks.sink import figures_of, plain_name, settings_of
from thrifty.studies.trial import TrainingFigure


def test_what_was_not_measured_is_left_out():
    found = trial("aaa", training=TrainingFigure(math.inf, None, None, math.nan, None, 2.0), break_even_requests="never")
    figures = figures_of(found)
    assert figures["training.speedup"] == 2.0 and not {"training.seconds", "training.flops", "training.joules"} & set(figures)
    assert "break_even_requests" not in figures and settings_of(found)["break_even_requests"] == "never"
    assert all(math.isfinite(value) for value in figures.values()) and "artifact.portable" not in figures


@given(st.text())
def test_a_plain_name_is_one_part_of_a_path(text):
    name = plain_name(text)
    assert name and "/" not in name and ":" not in name and not name.startswith((".", "-"))
