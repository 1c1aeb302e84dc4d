from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from tests.workloads.test_workload import rows, workload
from thrifty.errors import WorkloadError
from thrifty.workloads.checks import check_data, check_example
from thrifty.workloads.fingerprint import fingerprint
from thrifty.workloads.loading import load_workload

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


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], str]:
    """Writes a workload's file under a name of its own and returns its path."""
    numbers = itertools.count()

    def to_file(text: str) -> str:
        path = tmp_path / f"rows{next(numbers)}.py"
        path.write_text(text)
        return str(path)

    return to_file


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
    neighbor = Path(write("WIDTH = 2"))
    assert load_workload(write(f"from {neighbor.stem} import WIDTH\n" + HEAD + TAIL)).name == "rows"


def test_a_module_is_a_workload_too() -> None:
    assert load_workload("thrifty.workloads.embedded.digits:workload").source == "thrifty.workloads.embedded.digits:workload"


@pytest.mark.parametrize(("text", "words"), [
    ("raise RuntimeError('no such table')", ["raised RuntimeError: no such table", "line 1)"]),
    ("x = 1\ny = x / 0\n", ["raised ZeroDivisionError", "line 2)"]),
    ("import sys\nsys.exit(3)\n", ["raised SystemExit"]),
    ("import a_package_that_is_not_there", ["raised ModuleNotFoundError", "a_package_that_is_not_there"]),
    ("def broken(:", ["raised SyntaxError", "line 1"]),
    ("workload = 3", ["must be a thrifty.Workload but is int"]),
    ("", ["defines no 'workload'", "end it with `workload = thrifty.Workload("]),
    (HEAD + TAIL.replace("quality=Accuracy(),", ""),
     ["missing 1 required", "'quality'", "a Workload needs: name, model, validation, test, quality, example"]),
    (HEAD + TAIL.replace("validation=", "val="), ["unexpected keyword argument 'val'", "did you mean 'validation'?"]),
    (HEAD + TAIL.replace("quality=", "zzz="), ["unexpected keyword argument 'zzz'", "a Workload takes: name, model, "]),
    (HEAD + TAIL.replace("quality=", "qualty="), ["'qualty'", "did you mean 'quality'?"]),
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
    ("zzzz", "there is no workload 'zzzz'. Embedded: digits, python-lm, python-lm-mamba2, python-lm-hybrid, minilm."),
    ("", "there is no workload ''"),
    ("no.such.module:workload", "raised ModuleNotFoundError"),
    ("./folder", "there is no workload './folder'"),
    ("thrifty.workloads.embedded.digits:nothing", "defines no 'nothing'"),
    ("thrifty.workloads.embedded.digits:DigitsNet", "must be a thrifty.Workload but is type"),
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
    (lambda n: torch.zeros(n, 2), "must return a tuple of tensors, or a dictionary of them, but returned Tensor"),
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
    with pytest.raises(WorkloadError, match=f"the {split} set is empty"):
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

    with pytest.raises(WorkloadError, match="item 2 of the validation set raised OSError: disk gone"):
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
    code = ("from thrifty.workloads.fingerprint import fingerprint; from thrifty.workloads.loading import load_workload; "
            f"print(fingerprint(load_workload({path!r})))")
    told = {subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                           env={**os.environ, "PYTHONHASHSEED": seed}).stdout.strip() for seed in ("1", "2")}
    assert told == {fingerprint(load_workload(path))}


def test_the_fingerprint_follows_the_files_that_are_imported_and_no_others(write: Callable[[str], str]) -> None:
    neighbor = Path(write("WIDTH = 2"))
    found = load_workload(write(f"from {neighbor.stem} import WIDTH\n" + HEAD + TAIL))
    before = fingerprint(found)
    load_workload(write(HEAD + TAIL))
    assert fingerprint(found) == before, "another workload of the same folder was loaded"
    neighbor.write_text("WIDTH = 2  # changed")
    assert fingerprint(found) != before
