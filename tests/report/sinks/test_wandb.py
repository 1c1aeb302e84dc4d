"""What is logged to Weights & Biases offline, read back from its files by its own records."""

import json
import struct

import pytest
from tests.report.sinks.events import CLAIMED, LOSSES, RECIPE, told

from thrifty.report.sinks.logs import log_to
from thrifty.report.sinks.sink import figures_of

pytest.importorskip("wandb", reason="wandb is not installed")
BLOCK, HEADER = 32768, 7


def records(path):
    """The file is a log as LevelDB frames it; what it frames is read by wandb's own protobuf."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, parts = path.read_bytes(), HEADER, b""
    while at + HEADER <= len(data):
        if BLOCK - at % BLOCK < HEADER:
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[at:at + HEADER])
        parts += data[at + HEADER:at + HEADER + length]
        at += HEADER + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(parts)
            parts = b""


def items(entries):
    return {".".join(each.nested_key) or each.key: json.loads(each.value_json) for each in entries}


def test_read_back(tmp_path, capfd):
    with log_to("wandb", study=tmp_path, workload="my digits") as hear:
        for event in told():
            hear(event)
    assert capfd.readouterr().out == ""  # which is for results
    runs = {path.stem.removeprefix("run-"): list(records(path)) for path in (tmp_path / "wandb").rglob("*.wandb")}
    assert set(runs) == {"reference", "aaa", "aaa-2", "bbb"}
    of = lambda record, kind: record.WhichOneof("record_type") == kind
    for name in ("aaa", "aaa-2"):
        (run,) = [record.run for record in runs[name] if of(record, "run")]
        assert (run.project, run.run_group) == ("my-digits", "aaa") and items(run.config.update)["recipe"] == RECIPE
    history = [items(record.history.item) for record in runs["aaa"] if of(record, "history")]
    assert {name: [(row["step"], row[name]) for row in history if name in row] for name in LOSSES} == LOSSES
    first, last = ({name: value for record in runs[run] if of(record, "summary")
                    for name, value in items(record.summary.update).items()} for run in ("aaa", "aaa-2"))
    assert {name: last[name] for name in figures_of(CLAIMED)} == pytest.approx(figures_of(CLAIMED))
    assert last["inference.speedup.verdict"] == "faster" and first["inference.speedup.value"] == 2.5
    assert [record.exit.exit_code for record in runs["bbb"] if of(record, "exit")] == [1]
