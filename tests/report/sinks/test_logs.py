"""Events told to sinks: which runs, which curves, and what a sink that fails does."""

import subprocess
import sys
from pathlib import Path

import pytest
from tests.report.sinks.events import CLAIMED, FAILED, LOSSES, RECIPE, told

from thrifty.errors import MissingExtra, ThriftyError
from thrifty.report.sinks.logs import Logs, both, log_to
from thrifty.report.sinks.sink import Sink, figures_of, settings_of
from thrifty.report.sinks.tensorboard import TensorboardSink
from thrifty.studies.events import Noted


class Heard(Sink):
    """A sink that remembers."""

    name, extra = "heard", "heard"

    def __init__(self, where, project):
        super().__init__(where, project)
        self.calls = []

    @staticmethod
    def check():
        pass

    def begin(self, run, recipe):
        self.calls.append(("begin", run, recipe))

    def step(self, figures, step):
        self.calls.append(("step", dict(figures), step))

    def end(self, settings, figures, failed):
        self.calls.append(("end", dict(settings), dict(figures), failed))

    def close(self):
        self.calls.append(("close",))


def test_runs_curves_and_figures(tmp_path):
    said, logs = [], Logs(lambda text: said.append(text))
    logs.add(Heard, tmp_path, "digits")
    (sink,) = logs._sinks
    for event in told():
        logs.hear(event)
    logs.close()
    assert [call[1] for call in sink.calls if call[0] == "begin"] == ["reference", "aaa", "bbb", "aaa"]
    reference, first, failed, again = [call for call in sink.calls if call[0] == "end"]
    assert reference == ("end", {}, {}, False) and failed[3] and failed[1]["error"] == FAILED.error
    assert again[2] == figures_of(CLAIMED) and again[1] == settings_of(CLAIMED) and again[1]["recipe"] == RECIPE
    assert "inference.speedup.low" not in first[2] and again[2]["inference.speedup.low"] == pytest.approx(2.25 * 0.95)
    steps = [call for call in sink.calls if call[0] == "step"][1:]  # without the reference's
    assert {name: [(step, figures[name]) for _, figures, step in steps if name in figures] for name in LOSSES} == LOSSES
    assert steps[0][1]["phase 1/examples per second"] == 100.0 and sink.calls[-1] == ("close",) and said == []


def test_figures_hold_what_a_reader_asks_for():
    found = figures_of(CLAIMED)
    assert {"quality.value", "quality.drop.low", "quality.drop.high", "inference.latency_seconds.p50", "inference.speedup.high",
            "training.seconds", "cost.seconds", "artifact.bytes", "seed"} <= set(found)
    assert not any(name.startswith(("environment", "effects", "ledger")) for name in found)
    assert settings_of(CLAIMED)["environment.cpu"] == "A CPU of one kind" and settings_of(CLAIMED)["target.device"] == "cpu"


def test_a_sink_that_fails_says_so_once_and_the_others_go_on(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    said, logs = [], Logs(said_to := (lambda text: said.append(text)))
    (tmp_path / "file").touch()
    logs.add(TensorboardSink, tmp_path / "file", "digits")
    assert len(said) == 1 and said[0].startswith("tensorboard logs nothing: ") and callable(said_to)
    logs.add(TensorboardSink, tmp_path / "broken", "digits")
    logs.add(Heard, tmp_path / "heard", "digits")
    heard = logs._sinks[1]
    (tmp_path / "broken" / "aaa").touch()  # where its folder of that run belongs
    for event in told():
        logs.hear(event)
    logs.close()
    assert len(said) == 2 and said[1].startswith("tensorboard stopped logging: ") and said[1].endswith("; the study continues")
    assert [call[1] for call in heard.calls if call[0] == "begin"] == ["reference", "aaa", "bbb", "aaa"]


FULL = """
import resource, sys
from tests.report.sinks.events import told
from thrifty.report.sinks.logs import log_to
with log_to(sys.argv[1], study=sys.argv[2], workload="digits", say=print) as hear:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]),) * 2)
    for event in told() * 2:
        hear(event)
print("done")
"""


@pytest.mark.slow
@pytest.mark.parametrize("name, room", [("mlflow", 300_000), ("tensorboard", 300), ("trackio", 30_000), ("wandb", 300)])
def test_where_no_file_can_grow_the_study_goes_on(tmp_path, name, room):
    pytest.importorskip(name, reason=f"{name} is not installed")
    done = subprocess.run([sys.executable, "-c", FULL, name, tmp_path, str(room)], capture_output=True, text=True, timeout=120,
                          cwd=Path(__file__).parents[3])
    said, end = done.stdout.splitlines()
    assert said.startswith(f"{name} stopped logging: ") and end == "done" and done.returncode == 0


@pytest.mark.parametrize("place, words", [("comet", "no sink 'comet'"), ("mlflow:http://host:5000", "stay on this machine")])
def test_what_is_no_sink(tmp_path, place, words):
    with pytest.raises(ThriftyError, match=words), log_to(place, study=tmp_path, workload="digits"):
        pass


@pytest.mark.parametrize("name", ["mlflow", "tensorboard", "trackio", "wandb"])
def test_a_library_that_is_not_here_is_told_before_anything_runs(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=rf"thrifty\[{name}\]"), log_to(name, study=tmp_path, workload="digits"):
        pass


def test_several_listeners_hear_alike():
    one, two = [], []
    both(one.append, two.append)(Noted("x"))
    assert one == two == [Noted("x")]
