from __future__ import annotations

from pathlib import Path

import pytest

from tests.trials import keep, trial
from thrifty.studies.database import StoreError
from thrifty.studies.places import default_study, the_study


@pytest.mark.parametrize(("source", "name"), [
    ("digits", "study-digits"),
    ("thrifty.workloads.embedded.python_lm_backbones:hybrid_workload", "study-python-lm-hybrid"),
    ("rows.py", "study-rows"),
    ("/home/me/my rows.py:workload", "study-my-rows"),
    ("rows.py:small", "study-rows-small"),
    ("package.module:workload", "study-module"),
    ("package.module:large", "study-module-large"),
    ("hf:/models/bert%20tiny?task=causal-lm&data=/d.jsonl", "study-bert-tiny"),
])
def test_a_study_is_named_after_its_workload(source, name):
    assert default_study(source) == Path(name)


def test_a_directory_of_hugging_face_names_its_study_however_it_is_written(tmp_path, monkeypatch):
    (tmp_path / "my-model").mkdir()
    monkeypatch.chdir(tmp_path)
    assert {default_study(text) for text in ("my-model", "./my-model/", f"hf:{tmp_path}/my-model")} == {Path("study-my-model")}


def test_the_one_study_here_needs_no_name(tmp_path):
    with pytest.raises(StoreError, match="no study in the current directory"):
        the_study(tmp_path)
    (tmp_path / "study-empty").mkdir()
    keep(tmp_path / "study-rows", [trial("a", "train()")])
    assert the_study(tmp_path) == tmp_path / "study-rows"
    assert the_study(tmp_path / "study-rows") == tmp_path / "study-rows"
    keep(tmp_path / "other", [trial("a", "train()")])
    with pytest.raises(StoreError, match=r"several studies.*/other, .*/study-rows$"):
        the_study(tmp_path)
