"""`python-lm`: its files, its windows, its bits per byte."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from thrifty.errors import MissingExtra
from thrifty.workloads.checks import check_example
from thrifty.workloads.embedded import python_lm, python_text, sources
from thrifty.workloads.embedded.python_lm import CONTEXT, LanguageModel, Windows, window
from thrifty.workloads.quality import BitsPerByte

EVALUATED = ("validation", "test")


@pytest.fixture(scope="module", autouse=True)
def built():
    return python_text.tokens("train")


def test_modules_are_held_out_whole():
    files = python_text.file_list()
    everything = [path for split in files.values() for path in split]
    assert len(set(everything)) == len(everything) > 500
    assert min(len(files[s]) for s in EVALUATED) > 40
    assert len(files["train"]) > 400
    assert python_text.fingerprint() == sources.digest([p for s in python_text.SPLITS for p in files[s]])


def test_a_file_keeps_its_split_whatever_else_there_is():
    assert "json/decoder.py" in python_text.file_list()["train"]


@pytest.mark.parametrize("split", python_text.SPLITS)
def test_tokens_hold_every_byte(split):
    for path, (ids, sizes) in list(zip(python_text.file_list()[split], python_text.tokens(split), strict=True))[:60]:
        assert sizes.sum() == len(sources.read_library(path).encode())
        assert ids.min() > python_text.START
        assert ids.max() < python_text.VOCABULARY


def test_tokens_decode_to_the_text():
    tokenizers = pytest.importorskip("tokenizers")
    folder = next(sources.data_folder().glob("python-lm-*"))
    model = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    model.decoder = tokenizers.decoders.ByteLevel()
    path, (ids, _) = python_text.file_list()["test"][3], python_text.tokens("test")[3]
    assert model.decode(ids.tolist(), skip_special_tokens=False) == sources.read_library(path)


def test_windows_cover_each_file_once():
    seen: dict[int, list[int]] = {}
    data = Windows("train")
    for (file, _), item in zip(data._windows[:200], (data[i] for i in range(200)), strict=True):
        seen.setdefault(file, []).extend(item[1][item[1] >= 0].tolist())
    last = max(seen)  # cut by the range
    for file in seen.keys() - {last}:
        assert seen[file] == python_text.tokens("train")[file][0].tolist()


@pytest.mark.parametrize("split", EVALUATED)
def test_evaluated_windows_know_their_bytes_and_file(split):
    data = Windows(split)
    for i in range(len(data)):
        inputs, (target, size, file) = data[i]
        assert inputs.shape == target.shape == (CONTEXT,)
        known = target[target >= 0]
        assert size == sum(python_text.tokens(split)[file][1][j] for j in _at(split, file, known))
        assert inputs[0] == python_text.START
        assert torch.equal(inputs[1 : len(known)], known[:-1])
    files = [data[i][1][2] for i in range(len(data))]
    assert max(np.bincount(files)) <= python_lm.WINDOWS_PER_FILE
    assert set(files) == set(range(len(python_text.file_list()[split])))


def _at(split, file, known):
    """Positions in a file of a window's tokens."""
    ids = python_text.tokens(split)[file][0]
    for start in range(0, len(ids), CONTEXT):
        if ids[start : start + CONTEXT].tolist() == known.tolist():
            return range(start, start + len(known))
    raise AssertionError("no such window")


def test_windows_are_the_same_at_every_reading():
    assert all(torch.equal(a, b) for a, b in zip(Windows("train")[5], Windows("train")[5], strict=True))


@pytest.mark.parametrize("length", [1, 3, 4])
def test_window_predicts_each_token_once(length):
    inputs, target = window(np.arange(10, 10 + length), 4)
    assert inputs.tolist() == [0, 10, 11, 12][:length] + [0] * (4 - length)
    assert target.tolist() == [10, 11, 12, 13][:length] + [-100] * (4 - length)


def test_uniform_model_needs_log2_of_the_vocabulary_a_token():
    data = Windows("validation")
    scores = BitsPerByte()(lambda inputs: torch.zeros(*inputs[0].shape, python_text.VOCABULARY), data)
    tokens = np.array([int((data[i][1][0] >= 0).sum()) for i in range(len(data))])
    sizes = np.array([data[i][1][1] for i in range(len(data))])
    np.testing.assert_allclose(scores.numerator, tokens * math.log2(python_text.VOCABULARY), rtol=1e-6)
    np.testing.assert_array_equal(scores.denominator, sizes)
    assert scores.value == pytest.approx(tokens.sum() * 11 / sizes.sum(), rel=1e-6)


def test_what_follows_a_window_does_not_change_its_bits():
    """Inputs past the end of a short window are without influence: attention is causal."""
    torch.manual_seed(0)
    model = LanguageModel(layers=2, width=64, heads=2, hidden=64).eval()
    inputs, target = window(np.arange(50, 60), 32)
    other = inputs.clone()
    other[10:] = 7
    with torch.no_grad():
        torch.testing.assert_close(model(inputs[None])[0, :10], model(other[None])[0, :10])
    assert (target[10:] == -100).all()


def test_the_model_takes_its_example_and_its_data():
    model = LanguageModel(layers=1)
    assert check_example(python_lm.workload, model).shape == (1, CONTEXT, python_text.VOCABULARY)
    inputs, target = (torch.stack(x) for x in zip(*(Windows("train")[i] for i in range(2)), strict=True))
    total, weight = python_lm.workload.loss(model(inputs), ((inputs,), target))
    assert (total / weight).item() == pytest.approx(math.log(python_text.VOCABULARY), rel=0.1)


def test_another_process_reads_what_this_one_built():
    code = (
        "from thrifty.workloads.embedded.python_text import tokens; import sys;"
        "print(len(tokens('test')), 'tokenizers' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert out == [str(len(python_text.tokens("test"))), "False"]


def test_missing_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MissingExtra, match=r"tokenizers.*thrifty\[workloads\]"):
        python_text._build(tmp_path)
