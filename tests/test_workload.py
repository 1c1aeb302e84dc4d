from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from thrifty.workload import (
    Accuracy,
    BitsPerByte,
    CrossEntropy,
    Offline,
    Scores,
    Server,
    SingleStream,
    Workload,
    WorkloadError,
    batches,
    check_data,
    check_example,
    fingerprint,
    load_workload,
)

HEAD = """\
import torch
from torch import nn
from torch.utils.data import TensorDataset
from thrifty import Accuracy, CrossEntropy, Workload

x = torch.linspace(-1, 1, 40).reshape(20, 2)
data = TensorDataset(x, (x[:, 0] > 0).long())
"""
TAIL = """
workload = Workload(
    name="rows", model=lambda: nn.Linear(2, 2), train=data, validation=data, test=data, loss=CrossEntropy(),
    quality=Accuracy(), example=lambda n: (x[:n],), reference="train(adamw, epochs=1)",
)
"""


def rows(labels: Tensor | None = None, n: int = 20) -> TensorDataset:
    return TensorDataset(torch.randn(n, 2), torch.arange(n) % 2 if labels is None else labels)


def workload(**changes: Any) -> Workload:
    fields: dict[str, Any] = {
        "name": "rows", "model": lambda: nn.Linear(2, 2), "train": rows(), "validation": rows(), "test": rows(),
        "loss": CrossEntropy(), "quality": Accuracy(), "example": lambda n: (torch.zeros(n, 2),),
        "reference": "train(adamw, epochs=1)",
    }
    return Workload(**{**fields, **changes})


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], str]:
    """Writes a workload's file under a name of its own and returns its path."""
    numbers = itertools.count()

    def to_file(text: str) -> str:
        path = tmp_path / f"rows{next(numbers)}.py"
        path.write_text(text)
        return str(path)

    return to_file


# -- the value --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("changes", "words"), [
    ({"name": ""}, "name must be letters"),
    ({"name": "a/b"}, "name must be letters"),
    ({"name": "../a"}, "name must be letters"),
    ({"name": 3}, "name must be letters"),
    ({"model": nn.Linear}, None),
    ({"model": 3}, "model must be callable but is 3"),
    ({"example": torch.zeros(1)}, "example must be callable"),
    ({"forward": None}, "forward must be callable"),
    ({"quality": "accuracy"}, "quality must be a thrifty.Quality such as Accuracy() but is 'accuracy'"),
    ({"quality": Accuracy}, "quality must be a thrifty.Quality"),
    ({"loss": nn.CrossEntropyLoss()}, "loss must be a thrifty.Loss such as CrossEntropy()"),
    ({"scenario": "Offline"}, "scenario must be SingleStream()"),
    ({"reference": None}, "reference must be a recipe's text"),
    ({"train": None}, "`train` and `loss` are needed"),
    ({"loss": None}, "`train` and `loss` are needed"),
    ({"train": None, "loss": None, "reference": ""}, None),
    ({"batch_size": 0}, "batch_size must be a whole number"),
    ({"batch_size": "64"}, "batch_size must be a whole number"),
])
def test_a_field_of_the_wrong_kind_is_named(changes: dict[str, Any], words: str | None) -> None:
    if words is None:
        assert workload(**changes)
        return
    with pytest.raises(WorkloadError) as caught:
        workload(**changes)
    assert words in str(caught.value)


def test_a_server_needs_a_latency_above_zero() -> None:
    assert {SingleStream().name, Offline().name, Server(latency=0.05).name} == {"SingleStream", "Offline", "Server"}
    for latency in (0, -1, math.nan):
        with pytest.raises(WorkloadError, match="in seconds and must be above 0"):
            Server(latency=latency)


def test_calibration_comes_from_training_data_and_where_there_is_none_from_validation() -> None:
    with_train = workload()
    assert with_train.training_set is with_train.train
    without = workload(train=None, reference="")
    assert without.training_set is without.validation


# -- losses and qualities ---------------------------------------------------------------------------------------


@given(st.integers(1, 12), st.integers(2, 7), st.integers(0, 2**31))
def test_cross_entropy_of_parts_adds_up_to_the_whole(n: int, classes: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    outputs = torch.randn(n, classes, generator=generator)
    target = torch.randint(0, classes, (n,), generator=generator)
    target[torch.rand(n, generator=generator) < 0.3] = -100
    total, weight = CrossEntropy()(outputs, ((), target))
    parts = [CrossEntropy()(outputs[i:i + 1], ((), target[i:i + 1])) for i in range(n)]
    torch.testing.assert_close(torch.stack([part for part, _ in parts]).sum(), total)
    assert sum(int(w) for _, w in parts) == int(weight) == int((target != -100).sum())
    if int(weight):
        torch.testing.assert_close(total / weight, nn.functional.cross_entropy(outputs, target))
    logits, valid = CrossEntropy().logits(outputs, ((), target))
    assert logits.shape == (n, classes)
    assert int(valid.sum()) == int(weight)


def test_cross_entropy_over_tokens_equals_torchs() -> None:
    outputs, target = torch.randn(3, 5, 7, requires_grad=True), torch.randint(0, 7, (3, 5))
    total, weight = CrossEntropy()(outputs, ((), target))
    torch.testing.assert_close(total / weight, nn.functional.cross_entropy(outputs.flatten(0, 1), target.flatten()))
    total.backward()
    assert outputs.grad is not None


@given(st.integers(1, 40), st.integers(1, 50))
def test_accuracy_is_the_share_of_hits_whatever_the_batch(n: int, batch_size: int) -> None:
    outputs = torch.randn(n, 4, generator=torch.Generator().manual_seed(n))
    data = TensorDataset(torch.arange(n), torch.arange(n) % 4)
    scores = Accuracy(batch_size)(lambda inputs: outputs[inputs[0]], data)
    assert scores.value == pytest.approx((outputs.argmax(-1) == torch.arange(n) % 4).double().mean().item())
    assert len(set(scores.cluster)) == n


def test_bits_per_byte_of_a_uniform_model_is_log2_of_the_vocabulary_a_token() -> None:
    class Windows(Dataset[Any]):
        def __len__(self) -> int:
            return 5

        def __getitem__(self, index: int) -> Any:
            target = torch.tensor([1, 2, 3, -100 if index else 0])
            return torch.zeros(4, dtype=torch.long), (target, 6, index // 2)

    scores = BitsPerByte(batch_size=2)(lambda inputs: torch.zeros(*inputs[0].shape, 16), Windows())
    np.testing.assert_allclose(scores.numerator, [16, 12, 12, 12, 12])
    np.testing.assert_allclose(scores.denominator, 6)
    assert scores.cluster.tolist() == [0, 0, 1, 1, 2]
    assert scores.value == pytest.approx(64 / 30)


def test_scores_must_be_equally_long() -> None:
    with pytest.raises(ValueError, match="equally long"):
        Scores(np.ones(3), np.ones(2), np.arange(3))
    with pytest.raises(ValueError, match="equally long"):
        Scores(np.ones((3, 1)), np.ones((3, 1)), np.ones((3, 1)))


def test_batches_keep_the_order_and_the_rest() -> None:
    seen = list(batches(TensorDataset(torch.arange(7), torch.arange(7)), 3))
    assert [tuple(inputs[0].tolist()) for inputs, _ in seen] == [(0, 1, 2), (3, 4, 5), (6,)]


# -- finding one ------------------------------------------------------------------------------------------------


def test_a_file_is_a_workload_that_a_fresh_process_finds(write: Callable[[str], str]) -> None:
    path = write(HEAD + TAIL)
    found = load_workload(path)
    assert found.name == "rows"
    assert found.source == f"{path}:workload"
    assert load_workload(found.source).source == found.source
    other = write(HEAD + TAIL.replace("workload =", "mine ="))
    assert load_workload(f"{other}:mine").source == f"{other}:mine"


def test_a_relative_path_becomes_absolute(write: Callable[[str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(write(HEAD + TAIL))
    monkeypatch.chdir(path.parent)
    assert load_workload(path.name).source == f"{path}:workload"


def test_a_file_may_import_its_neighbours(write: Callable[[str], str]) -> None:
    neighbour = Path(write("WIDTH = 2"))
    assert load_workload(write(f"from {neighbour.stem} import WIDTH\n" + HEAD + TAIL)).name == "rows"


def test_a_module_is_a_workload_too() -> None:
    assert load_workload("thrifty.workloads.digits:workload").source == "thrifty.workloads.digits:workload"


@pytest.mark.parametrize(("text", "words"), [
    ("raise RuntimeError('no such table')", ["raised RuntimeError: no such table", "(line 1)"]),
    ("x = 1\ny = x / 0\n", ["raised ZeroDivisionError", "(line 2)"]),
    ("import sys\nsys.exit(3)\n", ["raised SystemExit"]),
    ("import a_package_that_is_not_there", ["raised ModuleNotFoundError", "a_package_that_is_not_there"]),
    ("def broken(:", ["raised SyntaxError", "line 1"]),
    ("workload = 3", ["must be a thrifty.Workload but is int"]),
    ("", ["defines no 'workload'", "end it with `workload = thrifty.Workload("]),
    (HEAD + TAIL.replace("quality=Accuracy(),", ""),
     ["missing 1 required", "'quality'", "a Workload needs: name, model, validation, test, quality, example"]),
    (HEAD + TAIL.replace("quality=", "qualty="), ["'qualty'"]),
    (HEAD + TAIL.replace("Accuracy()", "3"), ["quality must be a thrifty.Quality such as Accuracy() but is 3"]),
])
def test_a_file_that_cannot_be_used_says_why_and_where(text: str, words: list[str], write: Callable[[str], str]) -> None:
    with pytest.raises(WorkloadError) as caught:
        load_workload(write(text))
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_a_file_that_raised_is_read_again_once_mended(write: Callable[[str], str]) -> None:
    path = write("raise RuntimeError")
    with pytest.raises(WorkloadError):
        load_workload(path)
    Path(path).write_text(HEAD + TAIL + "# mended, and of another size: the bytecode is not taken from a cache\n")
    assert load_workload(path).name == "rows"


@pytest.mark.parametrize(("reference", "words"), [
    ("no/such/file.py", "there is no file"),
    ("no/such/file.py:workload", "there is no file"),
    ("digit", "there is no workload 'digit'; did you mean 'digits'?"),
    ("zzzz", "there is no workload 'zzzz'. Embedded: digits, python-lm, minilm."),
    ("", "there is no workload ''"),
    ("no.such.module:workload", "raised ModuleNotFoundError"),
    ("./folder", "there is no workload './folder'"),
    ("thrifty.workloads.digits:nothing", "defines no 'nothing'"),
    ("thrifty.workloads.digits:DigitsNet", "must be a thrifty.Workload but is type"),
])
def test_a_workload_that_is_not_there(reference: str, words: str) -> None:
    with pytest.raises(WorkloadError) as caught:
        load_workload(reference)
    assert words in str(caught.value)


# -- before anything long runs ----------------------------------------------------------------------------------


def test_a_model_must_take_its_own_example() -> None:
    good = workload()
    assert check_example(good, good.model()).shape == (1, 2)
    bad = workload(model=lambda: nn.Linear(3, 2))
    with pytest.raises(WorkloadError, match=r"cannot take its own example \(\(1, 2\) torch.float32\)"):
        check_example(bad, bad.model())


@pytest.mark.parametrize(("example", "words"), [
    (lambda n: torch.zeros(n, 2), "must return a tuple of tensors but returned Tensor"),
    (lambda n: (), "must return a tuple of tensors"),
    (lambda n: ([0.0, 0.0],), "must return a tuple of tensors"),
    (lambda n: 1 / 0, r"example\(1\) raised ZeroDivisionError"),
    (lambda: (), r"example\(1\) raised TypeError"),
])
def test_an_example_is_a_tuple_of_tensors(example: Any, words: str) -> None:
    with pytest.raises(WorkloadError, match=words):
        check_example(workload(example=example), nn.Linear(2, 2))


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_empty_and_one_class_sets_are_refused(split: str) -> None:
    check_data(workload())
    with pytest.raises(WorkloadError, match=f"the {split} set of rows is empty"):
        check_data(workload(**{split: rows(n=0)}))
    with pytest.raises(WorkloadError, match=f"every label of the {split} set of rows is 1"):
        check_data(workload(**{split: rows(torch.ones(20, dtype=torch.long))}))
    one_in_many = torch.ones(2000, dtype=torch.long)
    one_in_many[1] = 0  # between those that are looked at first
    check_data(workload(**{split: rows(one_in_many, n=2000)}))


def test_data_without_classes_are_no_single_class() -> None:
    check_data(workload(train=rows(torch.ones(20)), validation=rows(torch.ones(20, 3, dtype=torch.long))))


def test_a_stream_is_refused() -> None:
    class Stream(torch.utils.data.IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(())

    with pytest.raises(WorkloadError, match="a Stream has no length; Thrifty needs map-style datasets"):
        check_data(workload(validation=Stream()))


def test_an_item_that_cannot_be_read_is_named() -> None:
    class Broken(Dataset[Any]):
        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> Any:
            if index == 2:
                raise OSError("disk gone")
            return torch.zeros(2), index

    with pytest.raises(WorkloadError, match="item 2 of the validation set of rows raised OSError: disk gone"):
        check_data(workload(validation=Broken()))


# -- the fingerprint --------------------------------------------------------------------------------------------


def test_the_fingerprint_follows_source_and_data(write: Callable[[str], str]) -> None:
    one = fingerprint(load_workload(write(HEAD + TAIL)))
    other = fingerprint(load_workload(write(HEAD + TAIL + "\n# changed")))
    assert one != other
    torch.manual_seed(1)
    x = torch.randn(20, 2)
    same = workload(train=TensorDataset(x, torch.arange(20) % 2), validation=rows(), test=rows())
    assert fingerprint(same) == fingerprint(same)
    moved = x.clone()
    moved[3, 1] += 1e-6
    changed = workload(train=TensorDataset(moved, torch.arange(20) % 2), validation=same.validation, test=same.test)
    assert fingerprint(same) != fingerprint(changed)


def test_the_fingerprint_is_the_same_in_every_process(write: Callable[[str], str]) -> None:
    path = write(HEAD + TAIL)
    code = f"from thrifty.workload import *; print(fingerprint(load_workload({path!r})))"
    told = {subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                           env={**os.environ, "PYTHONHASHSEED": seed}).stdout.strip() for seed in ("1", "2")}
    assert told == {fingerprint(load_workload(path))}


def test_the_fingerprint_follows_the_files_that_are_imported_and_no_others(write: Callable[[str], str]) -> None:
    neighbour = Path(write("WIDTH = 2"))
    found = load_workload(write(f"from {neighbour.stem} import WIDTH\n" + HEAD + TAIL))
    before = fingerprint(found)
    load_workload(write(HEAD + TAIL))
    assert fingerprint(found) == before, "another workload of the same folder was loaded"
    neighbour.write_text("WIDTH = 2  # changed")
    assert fingerprint(found) != before
