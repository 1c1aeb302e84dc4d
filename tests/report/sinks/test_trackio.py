"""What is logged to trackio, read back by its own API; in a process of its own, since it settles on a directory when imported."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.report.sinks.events import CLAIMED, LOSSES, RECIPE

from thrifty.report.sinks.sink import figures_of

pytest.importorskip("trackio", reason="trackio is not installed: its pillow is older than the one that constraints.txt names")

SCRIPT = """
import json, sys
from tests.report.sinks.events import told
from thrifty.report.sinks.logs import log_to
with log_to("trackio", study=sys.argv[1], workload="my digits") as hear:
    for event in told():
        hear(event)
import trackio
from trackio.sqlite_storage import SQLiteStorage
runs = {run.name: [run.config, SQLiteStorage.get_logs(run.project, run.name, run_id=run.id)]
        for run in trackio.Api().runs("my-digits")}
print(json.dumps(runs, default=str))
"""


def test_read_back(tmp_path):
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True, text=True, timeout=120,
                          cwd=Path(__file__).parents[3])
    assert done.returncode == 0, done.stderr
    runs = json.loads(done.stdout)  # and nothing else on stdout
    assert set(runs) == {"reference", "aaa", "bbb"} and (tmp_path / "trackio" / "my-digits.db").is_file()
    config, logs = runs["aaa"]
    assert config["recipe"] == RECIPE
    assert {name: [(row["step"], row[name]) for row in logs if name in row] for name in LOSSES} == LOSSES
    last = [row for row in logs if "quality.value" in row][-1]
    assert {name: last[name] for name in figures_of(CLAIMED)} == pytest.approx(figures_of(CLAIMED))
    assert [row["error"] for row in runs["bbb"][1]] == ["loss is nan"]
