"""Classes of labels: by the config, or by the lines that a new head is trained with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.hf_models import write_lines

from thrifty.errors import WorkloadError
from thrifty.workloads.huggingface.directory import Directory
from thrifty.workloads.huggingface.jsonl import Lines, read
from thrifty.workloads.huggingface.labels import Labels, labels_of
from thrifty.workloads.huggingface.tasks import TASKS

TASK = "text-classification"
CLASSIFIER, MASKED = {"architectures": ["BertForSequenceClassification"]}, {"architectures": ["BertForMaskedLM"]}
NAMED = {"id2label": {"0": "bad", "1": "good"}, "label2id": {"bad": 0, "good": 1}}


def lines(folder: Path, taught: list[Any], judged: list[Any]) -> Lines:
    data = [{"text": f"judged {i}", "label": label, "split": split}
            for i, label in enumerate(judged) for split in ("validation", "test")]
    return read(write_lines(folder / "data.jsonl", data), TASKS[TASK].format,
                write_lines(folder / "train.jsonl", ({"text": f"taught {i}", "label": label} for i, label in enumerate(taught))))


def found(folder: Path, config: dict[str, Any], taught: list[Any], judged: list[Any], trains: bool = True) -> Labels:
    return labels_of(Directory(folder, config), TASK, lines(folder, taught, judged), trains)


def test_a_config_says_the_classes(tmp_path: Path) -> None:
    said = found(tmp_path, CLASSIFIER | NAMED, ["good", 0], ["bad"])
    assert said == Labels(2, {"bad": 0, "good": 1}, None)
    assert said.of(lines(tmp_path, ["good", 0], ["bad"]).of("train")) == [1, 0]
    assert found(tmp_path, MASKED | NAMED, ["good"], ["bad"]).of_new_head == ("bad", "good")
    assert found(tmp_path, MASKED | {"num_labels": 3}, [2], [0]).of_new_head == ("LABEL_0", "LABEL_1", "LABEL_2")


def test_the_lines_to_train_with_say_the_classes_of_a_new_head(tmp_path: Path) -> None:
    assert found(tmp_path, MASKED, ["tea", "sea", "tea", "lea"], ["sea"]) == Labels(
        3, {"lea": 0, "sea": 1, "tea": 2}, ("lea", "sea", "tea"))
    assert found(tmp_path, MASKED, [1, 0, 2], [2]) == Labels(3, {}, ("LABEL_0", "LABEL_1", "LABEL_2"))


def test_a_model_that_is_not_trained_has_the_classes_of_its_config(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match=r"train\.jsonl:1: \"label\" is 'tea', which this model does not have; it has 0 to 1"):
        found(tmp_path, MASKED, ["tea"], ["tea"], trains=False)


@pytest.mark.parametrize(("config", "taught", "judged", "words"), [
    (CLASSIFIER | NAMED, ["good", 2], ["bad"], "train.jsonl:2: \"label\" is 2, which this model does not have; it has 0 to 1"),
    (CLASSIFIER | NAMED, ["good"], ["fair"], "data.jsonl:1: \"label\" is 'fair'"),
    (MASKED, ["tea", "sea"], ["lea"], "data.jsonl:1: \"label\" is 'lea', which this model does not have"),
    (MASKED, ["tea", 1], ["tea"], "train.jsonl:2: \"label\" is 1, and that of line 1 is 'tea': give words or numbers, not both"),
    (MASKED, [0, 1, 7], [0], "train.jsonl:3: \"label\" is 7, and the lines to train with have 3 different ones"),
    (MASKED, [-1, 0], [0], "train.jsonl:1: \"label\" is -1"),
])
def test_a_label_that_is_no_class(config: dict[str, Any], taught: list[Any], judged: list[Any], words: str,
                                  tmp_path: Path) -> None:
    with pytest.raises(WorkloadError) as caught:
        found(tmp_path, config, taught, judged)
    assert words in str(caught.value) and json.loads(str(caught.value).partition("A right line: ")[2])
