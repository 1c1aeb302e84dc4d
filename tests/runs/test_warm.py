"""The warm process: each job is a fork of it, on its own, and nothing outlives its parent."""

import os
import signal
import subprocess
import sys
import time

import pytest

from thrifty import testing
from thrifty.errors import RunFailed
from thrifty.runs import warm
from thrifty.runs.job import Job
from thrifty.runs.launcher import LocalLauncher
from thrifty.studies.events import Charged, PhaseBegan
from thrifty.target import Machine, Target

JOB = Job(testing.workload.source, "warm", "train(steps=2)", 0, Target(), lower=False)
ORPHANS = """
import os, sys
from thrifty.runs import warm
child = warm.child()
print(warm._warm[0].process.pid, child.pid, flush=True)
sys.stdin.read()
"""


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] != "Z"


def gone(*pids: int) -> bool:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and any(map(alive, pids)):
        time.sleep(0.05)
    return not any(map(alive, pids))


def test_a_job_that_is_killed_takes_neither_the_next_nor_the_warm_process_with_it():
    first = warm.child()
    server = warm._warm[0].process
    first.kill()
    assert first.wait() == -signal.SIGKILL
    first.close()
    second = warm.child()
    assert second.pid != first.pid and server.poll() is None
    second.stdin.close()  # it waits for a message, and nobody is there any more
    assert second.wait() != 0
    second.close()


def test_a_warm_process_that_is_gone_is_begun_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("THRIFTY_CACHE", str(tmp_path / "cache"))
    warm.begin()
    warm._warm[0].process.kill()
    warm._warm[0].process.wait()
    assert LocalLauncher().run(JOB).checkpoint


def test_a_job_is_where_and_as_its_parent_is_when_it_asks(tmp_path, monkeypatch):
    """A fork was begun before the variable was set and the directory chosen."""
    warm.begin()
    monkeypatch.setenv("THRIFTY_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here.py").write_text(
        "import os, dataclasses\nfrom thrifty.testing import workload as base\n"
        "open('was-here.txt', 'w').write(os.environ['THRIFTY_CACHE'])\nworkload = dataclasses.replace(base, reference='')\n")
    job = Job("here.py:workload", "here", "", 0, Target(), Machine(threads=1), lower=False)
    LocalLauncher().run(job)
    assert (tmp_path / "was-here.txt").read_text() == str(tmp_path / "cache")


def test_variables_that_count_at_the_start_get_a_process_of_their_own(monkeypatch):
    warm.begin()
    before = warm._warm[0].process.pid
    warm.begin()
    assert warm._warm[0].process.pid == before
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    warm.begin()
    assert warm._warm[0].process.pid != before


def test_what_a_failure_took_is_charged(tmp_path, monkeypatch):
    monkeypatch.setenv("THRIFTY_CACHE", str(tmp_path / "cache"))
    (tmp_path / "failing.py").write_text(
        "import os, signal, time, dataclasses\nfrom thrifty.testing import SmallNet, workload as base\n"
        "class Failing(SmallNet):\n    def forward(self, x):\n        if self.training and len(x) == 32:\n"
        "            time.sleep(0.7)\n            os.kill(os.getpid(), signal.SIGKILL)\n        return super().forward(x)\n"
        "workload = dataclasses.replace(base, model=Failing, reference='')\n")
    heard = []
    job = Job(str(tmp_path / "failing.py:workload"), "f", "train(steps=9)", 0, Target(), lower=False)
    with pytest.raises(RunFailed, match="signal 9"):
        LocalLauncher().run(job, heard.append)
    charged = [event.charge for event in heard if isinstance(event, Charged)]
    assert charged[-1].kind == "failure" and charged[-1].seconds >= 0.7
    assert charged[-1].what == next(event.text for event in reversed(heard) if isinstance(event, PhaseBegan))


def test_pace_tells_what_a_training_will_take(tmp_path, monkeypatch):
    monkeypatch.setenv("THRIFTY_CACHE", str(tmp_path / "cache"))
    short, long = (LocalLauncher().pace(Job(testing.workload.source, "p", f"train(steps={n})", 0, Target(), lower=False))
                   for n in (100, 10_000))
    assert 0 < short[0] <= short[1] and long[0] > 5 * short[0]  # of a hundred times the steps


def test_nothing_outlives_its_parent():
    process = subprocess.Popen([sys.executable, "-c", ORPHANS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                               env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    server, child = map(int, process.stdout.readline().split())
    assert alive(server) and alive(child)
    process.kill()
    process.communicate()
    assert gone(server, child)
