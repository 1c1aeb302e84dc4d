"""A training that was killed goes on bit for bit as if it had not been."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from thrifty import AdamW, Bf16, CrossEntropy, Distill, Lora
from thrifty.errors import ThriftyError
from thrifty.recipes.phases import Train
from thrifty.recipes.registry import method_class, names
from thrifty.recipes.training_method import TrainingMethod
from thrifty.training import resume
from thrifty.training.loop import fit
from thrifty.training.optimizers.ema import Ema

OPTIMIZERS = [method_class(name)() for name in names()
              if issubclass(method_class(name), TrainingMethod) and method_class(name).card.slot == "optimizer"]


class Killed(BaseException):
    """What ends the process."""


def data(n: int = 64) -> TensorDataset:
    x = torch.randn(n, 6, generator=torch.Generator().manual_seed(0))
    return TensorDataset(x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long())


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 16), nn.Linear(16, 3))


def trained(methods, keep=None, die_at=None, **settings):
    """The training; killed after a step, where one is named."""
    seen = []

    def watch(step):
        seen.append(step.step)

    def score(model):
        if die_at is not None and len(scored) >= die_at:
            raise Killed
        scored.append(1)
        return 0.5

    scored: list[int] = []
    teacher = net().eval()
    return fit(net(), methods, data(), CrossEntropy(), settings=Train(steps=10, evaluations=10, **settings), batch_size=12,
               seed=3, teachers=lambda text: copy.deepcopy(teacher), keep=keep, keep_seconds=0.0, progress=watch, evaluate=score)


def same(methods, tmp_path, **settings):
    whole = trained(methods, **settings)
    keep = tmp_path / "state.pt"
    for moment in (3, 2, 1):  # killed three times, each a little further on
        with pytest.raises(Killed):
            trained(methods, keep=keep, die_at=moment, **settings)
    done = trained(methods, keep=keep, **settings)
    assert done.history == whole.history
    for (name, a), b in zip(whole.model.state_dict().items(), done.model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert done.flops == whole.flops and [x.step for x in done.evaluations] == [x.step for x in whole.evaluations]
    assert done.claims == whole.claims


@pytest.mark.parametrize("optimizer", [
    pytest.param(each, id=each.name, marks=[pytest.mark.slow] if each.name == "adamw8bit" else []) for each in OPTIMIZERS])
def test_every_optimizer_goes_on_bit_for_bit(optimizer, tmp_path):
    same([optimizer], tmp_path)


@pytest.mark.parametrize("methods", [[AdamW(), Bf16()], [AdamW(), Ema(decay=0.9)], [AdamW(), Distill()], [AdamW(), Lora(rank=2)]],
                         ids=lambda methods: methods[-1].name)
def test_the_other_methods_too(methods, tmp_path):
    same(methods, tmp_path)


def test_with_micro_batches(tmp_path):
    same([AdamW()], tmp_path, accumulate=3)


def test_another_training_is_refused(tmp_path):
    keep = tmp_path / "state.pt"
    with pytest.raises(Killed):
        trained([AdamW()], keep=keep, die_at=3)
    with pytest.raises(resume.ResumeError, match="another training.*delete it"):
        trained([AdamW(lr=0.5)], keep=keep)
    with pytest.raises(resume.ResumeError, match="another training"):
        trained([method_class("lion")()], keep=keep)


@pytest.mark.parametrize("content", [b"", b"no zip", pickle.dumps({"a": print})])
def test_a_damaged_or_hostile_file_is_refused(content, tmp_path):
    keep = tmp_path / "state.pt"
    keep.write_bytes(content)
    with pytest.raises(resume.ResumeError, match="not a training state"):
        trained([AdamW()], keep=keep)


def test_a_state_that_runs_code_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"format": 1, "identity": "x", "session": Evil(), "told": {}, "random": {}}, tmp_path / "state.pt")
    with pytest.raises(resume.ResumeError):
        trained([AdamW()], keep=tmp_path / "state.pt")
    assert not (tmp_path / "ran").exists()


def test_a_session_takes_no_state_of_another_model():
    from thrifty.training.session import TrainingSession

    here, there = (TrainingSession(model, [AdamW()], CrossEntropy(), steps=3)
                   for model in (net(), nn.Sequential(nn.Linear(6, 3))))
    with pytest.raises(ThriftyError, match="another model"):
        here.load_state_dict(there.state_dict())
    with pytest.raises(ThriftyError, match="this one has lion"):
        TrainingSession(net(), [method_class("lion")()], CrossEntropy(), steps=3).load_state_dict(here.state_dict())


def test_nothing_is_left_half_written(tmp_path, monkeypatch):
    keep = tmp_path / "state.pt"
    with pytest.raises(Killed):
        trained([AdamW()], keep=keep, die_at=3)
    before = keep.read_bytes()

    def half(what, path):
        path.write_bytes(b"half")
        raise Killed

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(Killed):
        trained([AdamW()], keep=keep)
    assert keep.read_bytes() == before and list(tmp_path.iterdir()) == [keep]
