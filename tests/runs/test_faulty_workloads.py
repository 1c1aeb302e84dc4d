"""Faulty workloads: `thrifty check` answers each with one line that says what is wrong, before anything is spent."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from thrifty.cli.app import app, guarded
from thrifty.cli.options import USAGE

HEAD = """
import dataclasses
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset, TensorDataset
from thrifty import Accuracy, CrossEntropy, Loss, Offline, Quality, Scores, SingleStream, Workload, batches

def rows(seed, n=24, classes=2):
    x = torch.randn(n, 4, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(x, torch.arange(n) % classes)

class Changed(Dataset):
    def __init__(self, change, base=None):
        self.change, self.base = change, base or rows(1)
    def __len__(self):
        return len(self.base)
    def __getitem__(self, i):
        return self.change(i, *self.base[i])

class Net(nn.Module):
    def __init__(self, width=4, classes=2):
        super().__init__()
        self.a, self.head = nn.Linear(width, 8), nn.Linear(8, classes)
    def forward(self, x):
        return self.head(self.a(x).relu())

given = dict(name="rows", model=Net, train=rows(0), validation=rows(1), test=rows(2), loss=CrossEntropy(), quality=Accuracy(),
             example=lambda n: (torch.zeros(n, 4),), reference="train(epochs=1)", batch_size=8)
"""
TAIL = "\nworkload = Workload(**given)\n"
RECIPE = "train(epochs=1)"


def net(body: str, init: str = "pass") -> str:
    """A change of the model: the body of its forward, and what its __init__ does besides."""
    return (f"class Faulty(Net):\n    def __init__(self):\n        super().__init__()\n        {init}\n"
            f"    def forward(self, x):\n        {body}\ngiven.update(model=Faulty)")


def given(**changes: str) -> str:
    return f"given.update({', '.join(f'{name}={text}' for name, text in changes.items())})"


def loss(body: str) -> str:
    return (f"class Faulty(Loss):\n    def __call__(self, outputs, batch):\n        {body}\n"
            "    def logits(self, outputs, batch):\n        return outputs, batch[1] >= 0\ngiven.update(loss=Faulty())")


def quality(body: str) -> str:
    return ("class Faulty(Quality):\n    name, higher_is_better = 'faulty', True\n"
            f"    def __call__(self, predict, dataset):\n        {body}\ngiven.update(quality=Faulty())")


def items(change: str, *splits: str) -> str:
    splits = splits or ("train", "validation", "test")
    return "\n".join(f"given.update({split}=Changed(lambda i, x, y: {change}))" for split in splits)


FAULTY: dict[str, tuple[str, str]] = {
    # fields
    "no quality": ("del given['quality']", "a Workload needs: name, model, validation, test, quality, example"),
    "unknown field": (given(modle="Net"), "unexpected keyword argument 'modle'"),
    "a loss of torch": (given(loss="nn.CrossEntropyLoss()"), "loss must be a thrifty.Loss such as CrossEntropy()"),
    "no model": (given(model="Net()(torch.zeros(1, 4))"), "model must be callable"),
    "the file leaves": ("import sys; sys.exit(3)", "raised SystemExit: 3 ("),
    "the file raises": ("{}['key']", "raised KeyError: 'key' ("),
    # the model
    "model returns nothing": (given(model="lambda: None"), "model() must return a torch.nn.Module but returned None"),
    "model gives a class": (given(model="lambda: Net"), "must return a torch.nn.Module but returned the class Net"),
    "model raises": (given(model="lambda: Net(width='4')"), "model() raised TypeError"),
    "model leaves": (given(model="lambda: exit(0)"), "model() raised SystemExit: 0 (faulty.py, line"),
    "forward returns nothing": (net("super().forward(x)"), "the model returns None"),
    "forward raises": (net("raise RuntimeError('no such layer')"), "raised RuntimeError: no such layer (faulty.py, line"),
    "forward gives a dataclass": (
        "@dataclasses.dataclass\nclass Out:\n    logits: torch.Tensor\n" + net("return Out(super().forward(x))"),
        'the model returns the dataclass Out, but an engine returns only tensors: have forward return a dictionary, {"logits"'),
    "forward gives an object": (net("return super().forward(x).tolist()"), "the model returns float"),
    "dropout left on": (net("return self.head(F.dropout(self.a(x) + 1, 0.3))"),
                        "the model is random: two calls differ; bernoulli_ (faulty.py, line"),
    "noise": (net("return super().forward(x) + torch.randn(len(x), 1)"), "the model is random: two calls differ; randn"),
    "a counter": (net("self.n += 1; return super().forward(x) * self.n", "self.register_buffer('n', torch.ones(1))"),
                  "two calls differ; its forward changes the buffer 'n'"),
    "a plain tensor": (net("return super().forward(x @ self.mix)", "self.mix = torch.randn(4, 4)"),
                       "mix is not in any state_dict and differs in each model: make it a buffer"),
    "tensors in a list": (net("return super().forward(x @ self.mix[0])", "self.mix = [torch.randn(4, 4)]"), "mix[0] is not in "
                                                                                                            "any"),
    "nothing to train": (net("return super().forward(x)", "self.requires_grad_(False)"), "no parameter that can be trained"),
    "no gradient": (net("return super().forward(x).detach()"), "no gradient flows from the loss to the model"),
    "examples are mixed": (net("return super().forward(x).mean(0)"), "the batch must be the first dimension"),
    "raises in training alone": (net("assert not self.training; return super().forward(x)"),
                                 "in training, given (8, 4) torch.float32, raised AssertionError (faulty.py, line"),
    "cannot be copied": ("NET = Net()\nNET.rows = (i for i in range(3))\n" + given(model="lambda: NET"), "it cannot be copied"),
    # the example
    "example of the wrong size": (given(example="lambda n: (torch.zeros(n, 3),)"), "cannot take its own example ((1, 3)"),
    "example is no tuple": (given(example="lambda n: torch.zeros(n, 4)"), "example(n) must return a tuple of tensors"),
    "example raises": (given(example="lambda n: (rows(9)[n],)[1]"), "example(1) raised IndexError"),
    "example of two fails": (given(example="lambda n: ([torch.zeros(1, 4)][n - 1],)"), "example(2) raised IndexError"),
    "batch second": (net("return super().forward(x.transpose(0, 1))") + "\n" + given(
        example="lambda n: (torch.zeros(4, n),)", collate="lambda items: (torch.stack([x for x, _ in items], 1), "
        "torch.stack([y for _, y in items]))"), "the batch is dimension 1"),
    "example of another size than the data": (
        net("return super().forward(x.mean(1))") + "\n" + items("(x.repeat(5, 1), y)") + "\n"
        + given(example="lambda n: (torch.zeros(n, 3, 4),)"), "is [8, 5, 4] in the validation set and [1, 3, 4] in example(1)"),
    # data
    "empty": (given(test="rows(2, n=0)"), "the test set is empty"),
    "one class": (given(train="rows(0, classes=1)"), "every label of the train set of rows is 0"),
    "a generator": (given(train="(row for row in rows(0))"), "the train set is a generator, which cannot be indexed"),
    "no test": (given(test="None"), "the test set is a NoneType"),
    "item 3 raises": (items("(x, [0, 1, 0][i])", "train"), "item 3 of the train set raised IndexError: list index out of range"),
    "item 3 leaves": (items("(x, y) if i != 3 else exit(1)", "train"), "item 3 of the train set raised SystemExit: 1"),
    "items are no pairs": (items("(x, y, i)"), "item 0 of the train set is a tuple of 3 and must be a pair"),
    "NaN": (items("(x / 0 * 0, y)", "train"), "item 0 of the train set contains NaN"),
    "strings": (items("(x, ['cat', 'dog'][y])"), "the targets are a tuple of str"),
    "doubles": (items("(x.double(), y)"), "input 0 is float64 in the validation set and float32 in example(n)"),
    "doubles in training": (items("(x.double(), y)", "train"), "input 0 is float64 in the train set"),
    "targets out of range": (items("(x, y + 5 * (i == 20))", "train"), "a target of the train set is 5"),
    "targets of floats": (items("(x, y.float())"), "the targets are float32, but Accuracy() needs whole numbers"),
    "random validation": (items("(x + torch.randn(4), y)", "validation"), "item 0 of the validation set changes every time"),
    "lengths differ": (items("(x[:1 + i % 3], y)"), "joining items of the validation set (give the Workload a collate) raised"),
    "no tensors": (items("('row', y)"), "an input of the validation set is a str and must be a tensor"),
    "collate drops the target": (given(collate="lambda items: torch.stack([x for x, _ in items])"), "collate must return"),
    "collate raises": (given(collate="lambda items: items.x"), "collate raised AttributeError: 'list' object has no"),
    # loss and quality
    "loss is a float": (loss("return 0.5"), "loss must return (sum, weight), two scalar tensors, but"),
    "loss is not summed": (loss("return outputs.square().sum(1), batch[1].sum()"), "but returned a tensor [8] and a tensor []"),
    "loss raises": (loss("raise ValueError('no')"), "loss raised ValueError: no (faulty.py, line"),
    "quality raises": (quality("raise ValueError('no')"), "quality raised ValueError: no (faulty.py, line"),
    "quality gives a number": (quality("return 0.5"), "quality must return thrifty.Scores but returned float"),
    "quality with a statistic of one place": (
        quality("x = torch.arange(8).numpy(); return Scores(x, x, x, lambda a, b, c: c.sum(1))"), "name different statistics: "
                                                                                                  "its"),
    "quality gives a tensor to predict": (quality("predict(torch.zeros(3, 4))"), "predict takes the tuple of the model's inputs"),
    "one logit": (given(model="lambda: Net(classes=1)"), "have one value for each target, but Accuracy() picks the highest"),
    "axis that fits twice": (net("return super().forward(x)[:, None].expand(-1, 2, -1)") + "\n" + items("(x, y.repeat(2))"),
                             "could have classes in dimension 1 or in the last: say which, Accuracy(axis=1)"),
    "forward of the workload raises": (given(forward="lambda model, batch: model(*batch[0]).logits"),
                                       "forward given (8, 4) torch.float32, raised AttributeError: 'Tensor' object has no"),
    "shapes of no dimension": (given(shapes="{0: {7: (1, 8)}}"), "names dimension 7 of input 0"),
    "shapes of no kind": (given(shapes="{0: 3}"), "shapes, which must be {position: {dimension: (low, high)}}, raised"),
}


def check(monkeypatch, path, text: str) -> int:
    path.write_text(HEAD + text + TAIL)
    monkeypatch.setattr(sys, "argv", ["thrifty", "check", str(path), RECIPE])
    return guarded(app)


def test_a_sound_workload_passes(tmp_path, monkeypatch, capsys):
    assert check(monkeypatch, tmp_path / "sound.py", "") == 0
    assert capsys.readouterr().out.startswith("ok")


@pytest.mark.parametrize("name", FAULTY)
def test_a_faulty_workload_is_told_in_one_line(name, tmp_path, monkeypatch, capsys):
    text, says = FAULTY[name]
    monkeypatch.delenv("THRIFTY_DEBUG", raising=False)
    began = time.perf_counter()
    assert check(monkeypatch, tmp_path / "faulty.py", text) == USAGE
    assert time.perf_counter() - began < 20
    told = capsys.readouterr()
    assert says in told.err, told.err
    assert told.err.startswith("thrifty: ") and told.err.count("\n") == 1 and "Traceback" not in told.err
    assert not told.out


@pytest.mark.parametrize("name", ["the file leaves", "item 3 leaves", "loss raises"])
def test_a_process_answers_as_its_function_does(name, tmp_path):
    text, says = FAULTY[name]
    (tmp_path / "faulty.py").write_text(HEAD + text + TAIL)
    command = [sys.executable, "-m", "thrifty", "check", "faulty.py", RECIPE]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (USAGE, "", 1) and says in done.stderr
    environment = {**os.environ, "THRIFTY_DEBUG": "1"}
    if name == "loss raises":
        done = subprocess.run([*command[:3], "--debug", *command[3:]], capture_output=True, text=True, check=False, cwd=tmp_path)
        assert done.returncode == USAGE and "Traceback" in done.stderr and says in done.stderr
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
        assert "Traceback" in done.stderr
