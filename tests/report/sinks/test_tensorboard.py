"""What is logged to TensorBoard, read back by its own reader."""

import pytest
from tests.report.sinks.events import CLAIMED, LOSSES, RECIPE, told

from thrifty.report.sinks.logs import log_to
from thrifty.report.sinks.sink import figures_of

pytest.importorskip("tensorboard", reason="tensorboard is not installed")


def test_read_back(tmp_path):
    with log_to(f"tensorboard:{tmp_path}/board", study=tmp_path / "study", workload="digits") as hear:
        for event in told():
            hear(event)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def read(run):
        found = EventAccumulator(str(tmp_path / "board" / run))
        found.Reload()
        return found

    best = read("aaa")
    figures = {name: best.Scalars(name)[-1].value for name in figures_of(CLAIMED)}  # the last time that it was measured
    assert figures == pytest.approx(figures_of(CLAIMED), rel=1e-6)
    for name, points in LOSSES.items():
        assert [(each.step, each.value) for each in best.Scalars(name)] == points
    assert RECIPE.encode() in best.Tensors("recipe/text_summary")[0].tensor_proto.string_val[0]
    assert b"loss is nan" in read("bbb").Tensors("trial/text_summary")[0].tensor_proto.string_val[0]
    assert not (tmp_path / "study").exists()
