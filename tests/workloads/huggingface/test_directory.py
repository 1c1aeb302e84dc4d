"""Directories: what is refused before anything is read, and what their hash follows."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from tests import hf_models

from thrifty.errors import WorkloadError
from thrifty.workloads.huggingface.directory import digest, open_directory, weights


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hf_models.bert(tmp_path_factory.mktemp("hf") / "bert")


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(made, tmp_path / "bert"))


def test_a_good_one_is_opened(folder: Path) -> None:
    assert open_directory(folder).architecture == "BertForSequenceClassification"


def test_pickled_weights_are_refused_and_the_command_that_is_given_converts_them(folder: Path) -> None:
    kept = safetensors.torch.load_file(folder / "model.safetensors")
    torch.save(kept, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(WorkloadError, match=r"only in pytorch_model.bin, a pickle") as caught:
        open_directory(folder)
    command = shlex.split(str(caught.value).partition("Convert it once, safely: ")[2])
    assert "weights_only=True" in command[2]
    subprocess.run([sys.executable, *command[1:]], check=True)
    open_directory(folder)
    again = safetensors.torch.load_file(folder / "model.safetensors")
    assert again.keys() == kept.keys() and all(torch.equal(again[name], kept[name]) for name in kept)


def test_code_of_its_own_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "evil.Model"}}))
    (folder / "evil.py").write_text("raise SystemExit('it ran')")
    with pytest.raises(WorkloadError, match="auto_map.*never trusts remote code"):
        open_directory(folder)


@pytest.mark.parametrize(("name", "content", "words"), [
    ("config.json", None, "is not a Hugging Face directory"),
    ("config.json", "{", "config.json is damaged"),
    ("config.json", "[]", "it is not a JSON object"),
    ("model.safetensors", None, "has no weights"),
])
def test_damaged_ones_are_answered(name: str, content: str | None, words: str, folder: Path) -> None:
    (folder / name).unlink() if content is None else (folder / name).write_text(content)
    with pytest.raises(WorkloadError, match=words):
        open_directory(folder)


def test_shards_lie_in_the_directory(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-1.safetensors"}}))
    assert weights(folder) == [folder / "model-1.safetensors"]
    for name, words in (("../bert/model-1.safetensors", "not a file in this directory"), ("model-2.safetensors", "is missing"),
                        ("weights.bin", "not a file in this directory")):
        index.write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(WorkloadError, match=words):
            weights(folder)


def test_the_hash_follows_what_decides_the_outputs(folder: Path) -> None:
    before = {digest(folder)}
    (folder / "README.md").write_text("another")
    assert digest(folder) in before
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_text((folder / name).read_text() + " ")
        assert digest(folder) not in before, name
        before.add(digest(folder))
    kept = safetensors.torch.load_file(folder / "model.safetensors")
    for name in kept:  # of every tensor
        changed = {**kept, name: kept[name] + 1}
        safetensors.torch.save_file(changed, folder / "model.safetensors", {"format": "pt"})
        assert digest(folder) not in before, name
        before.add(digest(folder))


def test_a_damaged_weights_file_is_answered(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(WorkloadError, match="is not a safetensors file"):
        digest(folder)
    (folder / "model.safetensors").write_bytes((4).to_bytes(8, "little") + b"nope")
    with pytest.raises(WorkloadError, match="its header is damaged"):
        digest(folder)
