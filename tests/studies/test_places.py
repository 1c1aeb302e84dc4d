from __future__ import annotations

from pathlib import Path

import pytest

from tests.trials import keep, trial
from thrifty.studies.database import StoreError
from thrifty.studies.places import default_study, found_source, kept, noted_source, reached, the_study
from thrifty.studies.trial import ArtifactFigure


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


def test_the_workload_of_a_study_is_found_where_both_were_moved(tmp_path):
    before, after = tmp_path / "a", tmp_path / "b" / "c"
    for place in (before, after):
        (place / "study").mkdir(parents=True)
        (place / "rows.py").touch()
    noted = noted_source(f"{before}/rows.py:workload", before / "study")
    assert found_source(noted, after / "study") == f"{after}/rows.py:workload"
    assert found_source(noted, tmp_path / "copy") == f"{before}/rows.py:workload"  # the study alone was copied
    assert found_source(noted_source("package.module:workload", before), after) == "package.module:workload"
    assert found_source(None, after) is None and found_source("digits", after) == "digits"


def test_so_is_a_directory_of_hugging_face_with_its_data(tmp_path):
    for place in ("a", "b"):
        (tmp_path / place / "model").mkdir(parents=True)
        (tmp_path / place / "data.jsonl").touch()
    source = f"hf:{tmp_path}/PLACE/model?task=causal-lm&data={tmp_path}/PLACE/data.jsonl"
    noted = noted_source(source.replace("PLACE", "a"), tmp_path / "a" / "study")
    assert found_source(noted, tmp_path / "b" / "study") == source.replace("PLACE", "b")
    (tmp_path / "b" / "data.jsonl").unlink()
    assert found_source(noted, tmp_path / "b" / "study") == source.replace("PLACE", "a")


def test_an_artifact_is_kept_by_its_place_in_the_study_and_stays_in_it():
    made = trial("aaa", artifact=ArtifactFigure("here/study/artifacts/aaa", 7, True))
    inside = kept(made, Path("here/study"))
    assert inside.artifact.path == "artifacts/aaa"
    assert reached(inside, Path("/there")).artifact.path == "/there/artifacts/aaa"
    for strange in ("../../etc", "study/artifacts/aaa"):
        there = reached(trial("aaa", artifact=ArtifactFigure(strange, 7, True)), Path("/there")).artifact.path
        assert there == f"/there/artifacts/{Path(strange).name}"
