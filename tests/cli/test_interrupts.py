from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import hf_models

WORKLOAD = "thrifty.testing:workload"


def interrupted(sign: str, *words: str, cwd: Path) -> tuple[int, list[str]]:
    """A command that gets Ctrl-C, as a terminal sends it, once it says something: its exit code, and what it then tells."""
    process = subprocess.Popen([sys.executable, "-m", "thrifty", *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                               text=True, cwd=cwd, start_new_session=True,
                               env={**os.environ, "THRIFTY_CACHE": str(cwd / "cache")})
    assert process.stderr is not None
    while sign not in (line := process.stderr.readline()):
        assert line, process.communicate()
    os.killpg(process.pid, signal.SIGINT)
    told = process.communicate(timeout=60)[1]
    return process.returncode, told.splitlines()


@pytest.mark.parametrize("words", [
    ("run", WORKLOAD, "train(epochs=2000) | compile(export)"),
    ("sweep", WORKLOAD, "train(epochs=2000)"),
    ("explore", WORKLOAD, "--budget", "1h"),
    ("tune", WORKLOAD, "adamw"),
    ("orders", WORKLOAD, "prune(ratio=0.3)", "distill"),
], ids=lambda words: words[0])
@pytest.mark.slow
def test_a_search_goes_on_with_the_same_command(words, tmp_path):
    code, told = interrupted("train(", *words, cwd=tmp_path)
    assert code == 130
    (line,) = [line for line in told if not line.startswith("[")]
    assert line.startswith("thrifty: interrupted; what was measured is kept, and the same command resumes: thrifty ")
    assert words[-1] in line and "Traceback" not in "".join(told)


@pytest.mark.slow
def test_a_conversion_leaves_nothing_behind(tmp_path):
    hf_models.llama(tmp_path / "llama", hidden_size=64)
    hf_models.prose(tmp_path / "llama" / "data.jsonl")
    (tmp_path / "thrifty.toml").write_text('[export]\nto = "openvino"\n')  # what is told marks the verb's beginning
    code, told = interrupted("settings from", "export", "llama", "-o", "served", cwd=tmp_path)
    assert (code, told) == (130, ["thrifty: interrupted; start it again: thrifty export llama -o served"])
    assert {path.name for path in tmp_path.iterdir()} <= {"llama", "thrifty.toml", "cache"}
