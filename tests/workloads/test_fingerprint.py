"""What the hash of a workload's data holds, and what is left out of it."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from tests.workloads.test_workload import rows, workload
from thrifty.errors import WorkloadError
from thrifty.workloads.checks import check_data
from thrifty.workloads.fingerprint import fingerprint, leaves


class Items(Dataset[Any]):
    def __init__(self, make: Any, n: int = 20) -> None:
        self.make, self.n = make, n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> Any:
        return self.make(index), index % 2


class Sample:
    def __init__(self, x: Any) -> None:
        self.x = x


class Slotted:
    __slots__ = ("x",)

    def __init__(self, x: Any) -> None:
        self.x = x


own = torch.Generator()
RANDOM = {
    "torch": lambda i: torch.randn(2),
    "numpy": lambda i: torch.tensor(np.random.rand(2)),
    "python": lambda i: torch.tensor([random.random(), 1.0]) if random.random() < 0.5 else torch.zeros(2),
    "a generator of its own": lambda i: torch.randn(2, generator=own),
    "an address": lambda i: (torch.ones(2), object()),
    "a function": lambda i: (torch.ones(2), lambda: i),
}


@pytest.mark.parametrize("name", RANDOM)
def test_random_items_change_no_fingerprint(name: str) -> None:
    given = workload(validation=Items(lambda i: torch.zeros(2)), test=Items(lambda i: torch.zeros(2)), train=Items(RANDOM[name]))
    one = fingerprint(given)
    own.manual_seed(random.randrange(1000))
    assert fingerprint(given) == one
    assert fingerprint(workload(validation=given.validation, test=given.test, train=Items(RANDOM[name], 19))) != one


@pytest.mark.parametrize("kind", [Sample, Slotted, lambda x: {"a": [x]}, lambda x: {1, x}, lambda x: np.array([x, "a"], object)])
def test_objects_are_what_they_hold(kind: Any) -> None:
    def of(value: float) -> str:
        return fingerprint(workload(train=Items(lambda i: kind(value)), validation=Items(lambda i: 0), test=Items(lambda i: 0)))

    assert of(1.5) == of(1.5) != of(2.5)


def test_what_holds_itself_ends() -> None:
    loop: list[Any] = [1]
    loop.append(loop)
    assert leaves(loop)["/1"] is None and leaves(loop)["/0"] is not None


def test_looking_moves_no_generator() -> None:
    given = workload(train=Items(RANDOM["torch"]), validation=rows(), test=rows())
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    fingerprint(given)
    assert torch.equal(states[0], torch.get_rng_state()) and random.getstate() == states[2]
    assert (np.random.get_state()[1] == states[1]).all()


@pytest.mark.parametrize("split", ["validation", "test"])
def test_what_is_judged_on_must_be_the_same_at_every_look(split: str) -> None:
    with pytest.raises(WorkloadError, match=f"item 0 of the {split} set changes every time it is read"):
        check_data(workload(**{split: Items(RANDOM["torch"])}))
    check_data(workload(train=Items(RANDOM["torch"])))
    check_data(workload(**{split: Items(RANDOM["an address"])}))


def test_a_file_that_draws_without_a_seed_is_the_same_in_every_process(tmp_path: Any) -> None:
    (tmp_path / "drawn.py").write_text('''
import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset
from thrifty import Accuracy, CrossEntropy, Workload

class Record:
    def __init__(self, x): self.x = x

class Noisy(Dataset):
    base = np.random.rand(30, 2)
    def __len__(self): return 30
    def __getitem__(self, i): return (torch.tensor(self.base[i]) + torch.randn(2), Record(self.base[i])), i % 2

still = TensorDataset(torch.randn(20, 2), torch.arange(20) % 2)
workload = Workload(name="drawn", model=lambda: nn.Linear(2, 2), train=Noisy(), validation=still, test=still, quality=Accuracy(),
                    loss=CrossEntropy(), example=lambda n: (torch.zeros(n, 2),), reference="train(epochs=1)")
''')
    code = ("from thrifty.workloads.fingerprint import fingerprint; from thrifty.workloads.loading import load_workload; "
            "print(fingerprint(load_workload('drawn.py')))")
    told = {subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path,
                           env={**os.environ, "PYTHONHASHSEED": seed}).stdout for seed in ("1", "2")}
    assert len(told) == 1
