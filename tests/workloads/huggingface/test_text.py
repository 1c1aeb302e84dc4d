"""Tokens: one length, masks, windows that predict every token once, and bytes that add up."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests import hf_models

from thrifty.errors import WorkloadError
from thrifty.workloads.embedded.retrieval import DOCUMENT, QUERY
from thrifty.workloads.huggingface import text
from thrifty.workloads.huggingface.directory import Directory


@pytest.fixture(scope="module")
def bytewise(tmp_path_factory: pytest.TempPathFactory) -> text.Words:
    folder = tmp_path_factory.mktemp("bytes")
    return text.words_of(Directory(folder, {"vocab_size": hf_models.byte_pairs(folder), "n_positions": 64}))


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> text.Words:
    folder = tmp_path_factory.mktemp("pieces")
    return text.words_of(Directory(folder, {"vocab_size": hf_models.word_pieces(folder)}))


def test_what_a_tokenizer_knows_of_its_model(bytewise: text.Words, pieces: text.Words) -> None:
    assert (bytewise.longest, bytewise.pad, bytewise.start) == (64, 0, 0), "the end of a text starts the next"
    assert (pieces.longest, pieces.pad, pieces.start) == (64, 0, None)


def test_a_special_token_may_be_an_object(tmp_path: Path) -> None:
    hf_models.word_pieces(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"pad_token": {"content": "[SEP]"}, "bos_token": "not in it"}')
    words = text.words_of(Directory(tmp_path, {"bos_token_id": [2, 9]}))
    assert (words.pad, words.start) == (3, 2)


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=60), st.integers(8, 5000))
def test_the_length_is_a_power_of_two_that_holds_most_texts(counts: list[int], longest: int) -> None:
    chosen = text.fixed_length(counts, longest)
    assert chosen & (chosen - 1) == 0 and chosen <= min(longest, 1024)
    held = sum(count <= chosen for count in counts) / len(counts)
    assert held >= 0.95 or 2 * chosen > min(longest, 1024)
    smaller = sum(count <= chosen // 2 for count in counts) / len(counts)
    assert smaller < 0.95 or chosen == 8


def test_texts_are_cut_and_filled_on_the_right(pieces: text.Words) -> None:
    ids, mask = text.encoded(pieces, ["good film", "very " * 20], 8)
    assert mask.tolist() == [[1] * 4 + [0] * 4, [1] * 8]
    assert ids[0].tolist()[4:] == [pieces.pad] * 4
    assert ids[:, 0].tolist() == [2, 2] and ids[1, -1] == 3, "[CLS] and [SEP] stay where a text is cut"
    alone = pieces.tokenizer.encode("good film").ids
    assert ids[0, :4].tolist() == alone


def test_a_tokenizer_of_another_model_is_refused(pieces: text.Words) -> None:
    other = text.Words(pieces.tokenizer, 5, 64, 0, None)
    with pytest.raises(WorkloadError, match="the model knows 5: tokenizer.json is not the model's own"):
        text.encoded(other, ["good film"], 8)


@given(st.lists(st.lists(st.text(alphabet="ab é€😀\n ,.", min_size=1, max_size=40), min_size=1, max_size=3), min_size=1,
                max_size=8), st.integers(2, 24))
def test_every_token_is_predicted_once_and_every_byte_counted(bytewise: text.Words, documents: list[list[str]],
                                                              tokens: int) -> None:
    found = text.Windows(bytewise, documents, tokens, scored=True)
    every = [bytewise.tokenizer.encode(t, add_special_tokens=False).ids for texts in documents for t in texts]
    scored: list[int] = []
    of_cluster: dict[int, int] = {}
    for inputs, (targets, size, cluster) in (found[i] for i in range(len(found))):
        assert inputs.shape == targets.shape == (tokens,)
        valid = targets != text.IGNORED
        scored += targets[valid].tolist()
        assert inputs[0] == bytewise.start
        for i in range(1, tokens):  # a position sees the token before it, or the start between two texts
            if valid[i]:
                assert inputs[i] == (targets[i - 1] if valid[i - 1] else bytewise.start)
        of_cluster[cluster] = of_cluster.get(cluster, 0) + size
    assert scored == [token for ids in every for token in ids], "in order, none twice, none left out"
    assert sum(of_cluster.values()) == sum(len(t.encode()) for texts in documents for t in texts)


def test_bytes_that_a_tokenizer_drops_are_counted(pieces: text.Words) -> None:
    ids, sizes = text._sized(pieces, "  good   film  ")
    assert len(ids) == 2 and sizes.sum() == len("  good   film  ")


def test_windows_of_training_are_plain_targets(bytewise: text.Words) -> None:
    inputs, targets = text.Windows(bytewise, [["a good film"]], 16, scored=False)[0]
    assert inputs.dtype == targets.dtype == torch.int64 and inputs[1] == targets[0]


def test_a_long_document_keeps_its_windows_to_itself(bytewise: text.Words) -> None:
    found = text.Windows(bytewise, [["z" * 30], ["y"], ["x"]], 8, scored=True)
    assert [found[i][1][2] for i in range(len(found))] == [0, 0, 0, 0, 1]


def test_equal_documents_are_one(pieces: text.Words) -> None:
    texts, targets = text.sides([("a", "x"), ("b", "y"), ("c", "x")])
    assert list(zip(texts, targets, strict=True)) == [
        ("x", (DOCUMENT, 0, 0)), ("a", (QUERY, 0, 0)), ("c", (QUERY, 0, 0)),
        ("y", (DOCUMENT, 1, 1)), ("b", (QUERY, 1, 1))]


def test_a_missing_or_damaged_tokenizer_is_answered(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match=r"has no tokenizer.json; only fast tokenizers are supported; convert a slow one"):
        text.words_of(Directory(tmp_path, {}))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(WorkloadError, match="tokenizer.json is damaged"):
        text.words_of(Directory(tmp_path, {}))
