"""Lines of examples: what is read, how it is split, and how a wrong line is answered."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thrifty.errors import WorkloadError
from thrifty.workloads.huggingface import TASKS, jsonl

FORMAT = TASKS["text-classification"].format


def write(path: Path, *lines: str) -> Path:
    path.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
    return path


def rows(n: int = 60) -> list[str]:
    return [json.dumps({"text": f"text {i}", "label": i % 2}) for i in range(n)]


def test_splits_depend_on_the_content_of_each_line_alone(tmp_path: Path) -> None:
    whole = jsonl.read(write(tmp_path / "a.jsonl", *rows(500)), FORMAT)
    assert [len(whole.of(split)) for split in jsonl.SPLITS] == pytest.approx([300, 100, 100], abs=35)
    where = {line.values["text"]: line.split for line in whole.lines}
    shuffled = jsonl.read(write(tmp_path / "b.jsonl", *reversed(rows(300))), FORMAT)
    assert all(where[line.values["text"]] == line.split for line in shuffled.lines)


@given(st.text(min_size=1).filter(str.strip), st.integers(0, 9), st.integers(0, 9))
def test_equal_texts_are_never_on_both_sides(text: str, one: int, other: int) -> None:
    assert jsonl._drawn({"text": text, "label": one}, FORMAT) == jsonl._drawn({"text": text, "label": other}, FORMAT)


def test_a_split_that_is_named_is_kept(tmp_path: Path) -> None:
    named = [json.dumps({"text": "one", "label": 0, "split": split}) for split in ("test", "validation", "test")]
    found = jsonl.read(write(tmp_path / "a.jsonl", named[0], "", "  ", *named[1:]), FORMAT)
    assert [(line.number, line.split) for line in found.lines] == [(1, "test"), (4, "validation"), (5, "test")]
    assert found.of("train") == ()


def test_a_byte_order_mark_and_other_fields_are_let_be(tmp_path: Path) -> None:
    first, *rest = rows()
    path = write(tmp_path / "a.jsonl", "\ufeff" + first[:-1] + ', "source": [1]}', *rest)
    assert len(jsonl.read(path, FORMAT).lines) == 60


@pytest.mark.parametrize(("line", "words"), [
    ('{"text": "a", "label": 1', "is not JSON in UTF-8"),
    ("[1, 2]", "a line is an object but this is a list"),
    ('{"label": 1}', '"text" is missing'),
    ('{"text": "a"}', '"label" is missing'),
    ('{"text": 3, "label": 1}', '"text" must be a text but is 3'),
    ('{"text": "a", "label": true}', '"label" must be a whole number or a text but is true'),
    ('{"text": "a", "label": 1.5}', '"label" must be a whole number or a text but is 1.5'),
    ('{"text": " \\t", "label": 1}', '"text" is blank'),
    ('{"text": "\\ud800", "label": 1}', "half a surrogate pair"),
    ('{"text": "a", "label": 1, "split": "test"}', 'a "split", while line 1 has none'),
])
def test_a_wrong_line_is_answered_with_its_number_and_a_right_one(line: str, words: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", *rows(3), line, *rows())
    with pytest.raises(WorkloadError) as caught:
        jsonl.read(path, FORMAT)
    said = str(caught.value)
    assert said.startswith(f"{path}:4: ") and words in said and said.endswith(f"A right line: {FORMAT.example}")


def test_a_split_must_be_one_of_three_and_every_line_s(tmp_path: Path) -> None:
    good = '{"text": "a", "label": 1, "split": "train"}'
    with pytest.raises(WorkloadError, match=r':2: "split" must be one of train, validation, test but is "dev"'):
        jsonl.read(write(tmp_path / "a.jsonl", good, good.replace("train", "dev")), FORMAT)
    with pytest.raises(WorkloadError, match=':2: no "split", while line 1 has one'):
        jsonl.read(write(tmp_path / "a.jsonl", good, '{"text": "a", "label": 1}'), FORMAT)
    with pytest.raises(WorkloadError, match='leave the validation split empty; name it in the lines\' "split" field'):
        jsonl.read(write(tmp_path / "a.jsonl", good), FORMAT)


def test_bytes_that_are_no_text_are_answered(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(rows()[0].encode() + b'\n{"text": "\xff", "label": 1}\n')
    with pytest.raises(WorkloadError, match=":2: this is not JSON in UTF-8"):
        jsonl.read(tmp_path / "a.jsonl", FORMAT)


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_an_empty_file_is_answered(content: str, tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match="is empty; it holds one JSON object a line, such as"):
        jsonl.read(write(tmp_path / "a.jsonl", content), FORMAT)
    with pytest.raises(WorkloadError, match="there is no data file"):
        jsonl.read(tmp_path / "none.jsonl", FORMAT)
    with pytest.raises(WorkloadError, match='leave the .* split empty; give more lines, or a "split" field'):
        jsonl.read(write(tmp_path / "a.jsonl", *rows(1)), FORMAT)


def test_the_example_of_every_task_is_a_right_line(tmp_path: Path) -> None:
    for task in TASKS.values():
        line = task.format.example.partition(" (")[0]
        jsonl._checked(tmp_path, 1, line.encode(), task.format)


# -- a file to train with -----------------------------------------------------------------------------------------


def test_another_file_trains_and_the_first_one_judges(tmp_path: Path) -> None:
    judged = write(tmp_path / "judged.jsonl", *rows(200))
    taught = write(tmp_path / "taught.jsonl", *(json.dumps({"text": f"other {i}", "label": i % 2}) for i in range(40)))
    found = jsonl.read(judged, FORMAT, taught)
    assert [len(found.of(split)) for split in jsonl.SPLITS] == pytest.approx([40, 100, 100], abs=20)
    assert {line.path for line in found.of("train")} == {taught}
    assert {line.path for line in found.lines if line.split != "train"} == {judged}


def test_what_is_judged_by_is_left_out_of_training(tmp_path: Path) -> None:
    judged = write(tmp_path / "judged.jsonl", *rows(60))
    taught = write(tmp_path / "taught.jsonl", '{"text": "text 7", "label": 0}', '{"text": "text 70", "label": 1}')
    assert [line.number for line in jsonl.read(judged, FORMAT, taught).of("train")] == [2]
    with pytest.raises(WorkloadError, match=r"every line of .*judged\.jsonl is in .*judged\.jsonl too.* three fifths"):
        jsonl.read(judged, FORMAT, judged)


@pytest.mark.parametrize(("split", "of_data", "words"), [
    ("test", False, r'taught\.jsonl:1: "split" is "test", and .* lines of this one are for train\. A right line'),
    ("train", True, r'judged\.jsonl:3: "split" is "train", and .* lines of this one are for validation and test'),
])
def test_splits_that_do_not_go_with_a_file_to_train_with(split: str, of_data: bool, words: str, tmp_path: Path) -> None:
    line = json.dumps({"text": "another", "label": 0, "split": split})
    named = [json.dumps({"text": f"text {i}", "label": 0, "split": one}) for i, one in enumerate(jsonl.SPLITS[1:])]
    judged = write(tmp_path / "judged.jsonl", *named, *([line] if of_data else []))
    taught = write(tmp_path / "taught.jsonl", rows(1)[0].replace("text 0", "new") if of_data else line)
    with pytest.raises(WorkloadError, match=words):
        jsonl.read(judged, FORMAT, taught)


def test_a_wrong_line_is_named_with_its_own_file(tmp_path: Path) -> None:
    judged = write(tmp_path / "judged.jsonl", *rows())
    for text, words in (("", r"taught\.jsonl is empty"), ('{"text": "a"}', r'taught\.jsonl:1: "label" is missing'),
                        ('{"text": "a", "label": 1}\n{', r"taught\.jsonl:2: this is not JSON")):
        with pytest.raises(WorkloadError, match=words):
            jsonl.read(judged, FORMAT, write(tmp_path / "taught.jsonl", text))
    with pytest.raises(WorkloadError, match=r"there is no data file .*none\.jsonl"):
        jsonl.read(judged, FORMAT, tmp_path / "none.jsonl")
