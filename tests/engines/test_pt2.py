"""Files that torch's own loader would execute, made by hand; none may get that far."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path

import pytest
import torch

from tests.compilers.nets import encoder, lowered, quantized, texts
from thrifty.compilers.export import Export
from thrifty.engines import EngineError, open_engine, pt2

MODEL, WEIGHTS = "models/model.json", "data/weights/model_weights_config.json"


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("exported")
    ids, mask = texts()
    varies = {0: {0: (1, 16), 1: (2, 64)}, 1: {0: (1, 16), 1: (2, 64)}}
    lowered(Export(), quantized(encoder(), ids, mask), (ids, mask), place, varies)  # symbols, guards, integers
    return place / "model.pt2"


def changed(file: Path, to: Path, entries: dict[str, bytes]) -> Path:
    """The file with entries replaced or added, names without the folder that all are in."""
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(to / "model.pt2", "w") as new:
        for entry in old.infolist():
            if entry.filename.partition("/")[2] not in entries:
                new.writestr(entry.filename, old.read(entry))
        for name, content in entries.items():
            new.writestr(f"model/{name}", content)
    return to / "model.pt2"


def content(file: Path, name: str) -> dict:
    with zipfile.ZipFile(file) as archive:
        return json.loads(archive.read(f"model/{name}"))


class Touch:
    """Pickles as a call."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return Path.touch, (self.canary,)


def refused(path: Path, canary: Path) -> str:
    with pytest.raises(EngineError, match="could run code") as caught:
        open_engine(path.parent, {"engine": "export", "files": {"model.pt2": None}})
    assert not canary.exists()
    return str(caught.value)


def test_what_is_written_here_is_opened(file):
    pt2.refuse_code(file)
    assert content(file, MODEL)["guards_code"], "guards are part of what is looked through"


def test_a_pickled_weight_is_not_unpickled(file, tmp_path):
    canary = tmp_path / "canary"
    config = content(file, WEIGHTS)
    first = next(iter(config["config"].values()))
    first["use_pickle"] = True
    path = changed(file, tmp_path, {WEIGHTS: json.dumps(config).encode(),
                                    f"data/weights/{first['path_name']}": pickle.dumps(Touch(canary))})
    assert "pickled" in refused(path, canary)


def test_an_example_is_not_unpickled(file, tmp_path):
    canary = tmp_path / "canary"
    path = changed(file, tmp_path, {"data/sample_inputs/model.pt": pickle.dumps(Touch(canary))})
    refused(path, canary)
    with pytest.raises(Exception):  # noqa: B017  # torch's own loader does unpickle it: this is no empty fear
        torch.export.load(str(path))
    assert canary.exists()


@pytest.mark.parametrize("name", ["data/aotinductor/model/model.so", "data/constants/opaque_obj_0",
                                  "data/constants/custom_obj_0", "data/weights/model.pt", "extra/../../x"])
def test_entries_that_no_model_needs_are_refused(file, tmp_path, name):
    assert name in refused(changed(file, tmp_path, {name: b"x"}), tmp_path / "canary")


@pytest.mark.parametrize("target", ["torch.hub.load", "torch.load", "torch.ops.load_library", "_operator.methodcaller",
                                    "_operator.call", "torch.ops.aten.from_file.default", "os.system", "#x:y"])
def test_only_operators_are_called(file, tmp_path, target):
    model = content(file, MODEL)
    model["graph_module"]["graph"]["nodes"][0]["target"] = target
    assert target in refused(changed(file, tmp_path, {MODEL: json.dumps(model).encode()}), tmp_path / "canary")


@pytest.mark.parametrize("text", [
    "__import__('pathlib').Path({canary!r}).touch()", "Symbol('s0').__class__", "open({canary!r}, 'w')", "(lambda: 1)()",
    "[x for x in ()]", "L['x'].size().__reduce__()", "Max('__import__')", "exec", "f'{{1}}'", "x := 1", "eval(Symbol('x'))",
])
def test_sizes_and_guards_are_arithmetic(file, tmp_path, text):
    canary, harmless = tmp_path / "canary", text == "exec"  # a bare name is a symbol
    text = text.format(canary=str(canary))
    model = content(file, MODEL)
    model["guards_code"] = [text]
    path = changed(file, tmp_path, {MODEL: json.dumps(model).encode()})
    if harmless:
        pt2.refuse_code(path)
    else:
        refused(path, canary)


def test_names_are_names(file, tmp_path):
    """torch writes them into the source of a function, which it executes."""
    model = content(file, MODEL)
    model["graph_module"]["graph"]["inputs"][-1]["as_tensor"]["name"] = "x=print(1)"
    assert "x=print(1)" in refused(changed(file, tmp_path, {MODEL: json.dumps(model).encode()}), tmp_path / "canary")


@pytest.mark.parametrize("bytes_", [b"", b"PK\x03\x04", b"nothing"])
def test_no_archive(tmp_path, bytes_):
    (tmp_path / "model.pt2").write_bytes(bytes_)
    with pytest.raises(EngineError, match="not a torch.export program"):
        pt2.refuse_code(tmp_path / "model.pt2")


def test_deep_json_is_an_answer_not_a_crash(file, tmp_path):
    path = changed(file, tmp_path, {MODEL: b"[" * 100_000})
    with pytest.raises(EngineError, match="not a torch.export program"):
        pt2.refuse_code(path)
