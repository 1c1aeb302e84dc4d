"""Models by their names on the hub, in a cache as huggingface_hub lays it out."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests import hf_models

from thrifty.errors import WorkloadError
from thrifty.studies.places import default_study
from thrifty.workloads.huggingface import hub
from thrifty.workloads.loading import load_workload

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that holds org/tiny-bert: blobs, and a snapshot of links to them."""
    from huggingface_hub import constants

    root = tmp_path / "cache"
    model = root / "models--org--tiny-bert"
    (model / "blobs").mkdir(parents=True)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(COMMIT)
    snapshot = model / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    for i, path in enumerate(sorted(hf_models.bert(tmp_path / "made").iterdir())):
        shutil.move(path, model / "blobs" / f"{i:040x}")
        (snapshot / path.name).symlink_to(Path("..") / ".." / "blobs" / f"{i:040x}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(root))
    return root


def test_a_name_is_the_directory_that_the_cache_holds(cache: Path, tmp_path: Path) -> None:
    data = hf_models.reviews(tmp_path / "data.jsonl")
    found = load_workload("org/tiny-bert", data=data)
    assert found.name == "tiny-bert" and f"models--org--tiny-bert/snapshots/{COMMIT}?" in found.source
    assert found.model()(*found.example(2)).shape == (2, 2)
    assert load_workload(found.source).source == found.source
    assert default_study("org/tiny-bert") == default_study(found.source) == Path("study-tiny-bert")
    plain = load_workload(str(cache / "models--org--tiny-bert" / "snapshots" / COMMIT), data=data)
    assert torch.equal(plain.model()(*found.example(2)), found.model()(*found.example(2)))


def test_a_directory_goes_before_a_name(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    hf_models.reviews(hf_models.bert(tmp_path / "org" / "tiny-bert") / "data.jsonl")
    assert f"hf:{tmp_path}/org/tiny-bert?" in load_workload("org/tiny-bert").source


def test_a_name_that_the_cache_does_not_hold_says_what_to_do(cache: Path) -> None:
    with pytest.raises(WorkloadError) as caught:
        load_workload("org/other", task="causal-lm")
    assert str(caught.value) == (f"there is no directory org/other, and the Hugging Face cache ({cache}) holds no model of that "
                                 "name. Thrifty downloads nothing: run `hf download org/other`, or give a local directory")
    with pytest.raises(WorkloadError, match="it is not a Hub name either"):
        load_workload("org/a--b")
    shutil.rmtree(cache / "models--org--tiny-bert" / "snapshots")  # a download that never ended
    with pytest.raises(WorkloadError, match="holds no model of that name"):
        hub.snapshot("org/tiny-bert")


@pytest.mark.slow
def test_the_command_line_takes_a_name(cache: Path, tmp_path: Path) -> None:
    """The cache is found by huggingface_hub's own variable, without the network."""
    data = hf_models.reviews(tmp_path / "data.jsonl")

    def check(name: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "thrifty", "explore", name, "--data", str(data), "--budget", "1m",
                               "--dry-run"], capture_output=True, text=True, check=False,
                              env={**os.environ, "HF_HUB_CACHE": str(cache)})

    assert check("org/tiny-bert").returncode == 0
    refused = check("org/none")
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1 and "hf download org/none" in refused.stderr


@pytest.mark.parametrize("text", ["org/name.py", "./org/name", "/org/name", "org/name/more", "org", "org/a b", "", "~/name",
                                  "org/name:workload"])
def test_what_is_no_name(text: str) -> None:
    assert not hub.is_name(text)
