"""The process of a run, and what is left when it dies."""

from __future__ import annotations

import pytest

import thrifty
from thrifty import testing
from thrifty.errors import RunFailed
from thrifty.runs.job import Job
from thrifty.runs.launcher import LocalLauncher
from thrifty.studies.events import Charged
from thrifty.target import Target
from thrifty.workloads.loading import load_workload

TAUGHT_BY_AN_ENGINE = 'train(distill(teacher="train() | compile(onnxruntime)"), steps=1)'
DYING = '''
import os, signal, torch
from thrifty.testing import SmallNet, workload as base
import dataclasses

class Dying(SmallNet):
    calls = 0
    def forward(self, x):
        if self.training and len(x) == 32:
            Dying.calls += 1
            if Dying.calls > 3:
                os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(x)

workload = dataclasses.replace(base, model=Dying, reference="")
'''


def test_a_crash_takes_nothing_else_with_it(tmp_path):
    (tmp_path / "dying.py").write_text(DYING)
    trial = thrifty.run(str(tmp_path / "dying.py"), "train(epochs=2)", study=tmp_path / "study", pairs=1)
    assert trial.status == "failed"
    assert "signal 9" in trial.error


def test_a_job_tells_what_happens_and_leaves_a_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setenv("THRIFTY_CACHE", str(tmp_path / "cache"))
    heard = []
    job = Job(testing.workload.source, "hash", "train(steps=2)", 0, Target(), lower=False)
    done = LocalLauncher().run(job, heard.append)
    kinds = [event.charge.kind for event in heard if isinstance(event, Charged)]
    assert kinds == ["start", "rehearsal", "training", "evaluation"]
    assert done.engine is None and done.charges[0].flops > 0 and len(done.curve) == 1
    again = LocalLauncher().run(job)
    assert (again.checkpoint, again.charges) == (done.checkpoint, done.charges)


def test_a_job_that_cannot_be_done_says_why():
    with pytest.raises(RunFailed, match="a teacher is a model, not an engine"):
        LocalLauncher().run(Job(testing.workload.source, "other", TAUGHT_BY_AN_ENGINE, 0, Target(), lower=False))


AUGMENTED = '''
import dataclasses, torch
from thrifty.testing import workload as base

class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return len(base.train)
    def __getitem__(self, i):
        x, y = base.train[i]
        return x + 0.1 * torch.randn(x.shape), y

workload = dataclasses.replace(base, train=Rows(), loader_workers=2)
'''


@pytest.mark.timeout(120)
def test_a_trainings_loader_has_workers(tmp_path, monkeypatch):
    """They are forked of a process that waits for its parent's end in another thread, which once stopped them for good."""
    monkeypatch.setenv("THRIFTY_CACHE", str(tmp_path / "cache"))
    (tmp_path / "augmented.py").write_text(AUGMENTED)
    found = load_workload(str(tmp_path / "augmented.py"))
    done = LocalLauncher().run(Job(found.source, "augmented", "train(steps=4)", 0, Target(), lower=False))
    assert len(done.curve) == 1
