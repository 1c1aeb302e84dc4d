"""Engines damaged at random, with a manifest that agrees: each is answered in one line, and a crash takes nothing with it."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.artifacts.forks import LONGEST
from tests.artifacts.test_verification import edit, written
from thrifty.artifacts import artifact
from thrifty.artifacts.apart import verify_apart
from thrifty.engines import EngineError, open_engine
from thrifty.engines.onnx_data import external_files
from thrifty.recipes.registry import method_class

EACH = 44
"""Damages of each of six engines: 264."""
ROOT = Path(__file__).parents[2]


def damage(content: bytearray, i: int) -> bytes:
    """The i-th damage: cut off, a bit flipped, a piece of zeros or ones, a piece that is missing or added, another file."""
    draw = random.Random(i)
    at = draw.randrange(len(content))
    match i % 8:
        case 0:
            return bytes(content[:at])
        case 1:
            content[at] ^= 1 << draw.randrange(8)
        case 2:
            content[at:at + 64] = bytes(len(content[at:at + 64]))
        case 3:
            content[at:at + 64] = b"\xff" * len(content[at:at + 64])
        case 4:
            return bytes(content[:at] + content[at + 17:])
        case 5:
            return bytes(content[:at] + draw.randbytes(32) + content[at:])
        case 6:
            return draw.choice([b"", b"\0", b"<?xml version='1.0'?><net/>", b"PK\x03\x04", b"{}", bytes(1000), b"[" * 100_000])
        case 7:
            head = min(len(content), 256)
            content[:head] = draw.randbytes(head)  # where formats say what they are
    return bytes(content)


def damaged(place, copy, i):
    artifact.copy(place, copy)
    manifest = artifact.read(copy)
    names = sorted(manifest["files"])
    path = copy / names[i % len(names)]
    path.write_bytes(damage(bytearray(path.read_bytes()), i))
    edit(copy, files=manifest["files"] | {path.name: artifact._digest(path)})


def answered(name, place, tmp_path, which):
    with subprocess.Popen([sys.executable, "-m", "tests.artifacts.forks", name], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": ":".join(x for x in sys.path if x)}) as forks:
        return crashes(name, place, tmp_path, which, forks)


def crashes(name, place, tmp_path, which, forks):
    """How many damages end the process that opens them; every other is answered."""
    crashed = 0
    for i in which:
        copy = tmp_path / str(i)
        damaged(place, copy, i)
        before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
        print(copy, file=forks.stdin, flush=True)
        found, code = json.loads(forks.stdout.readline())
        if code:
            crashed += 1
            assert -code != signal.SIGALRM, f"{name} {i} did not end within {LONGEST} s"
            if crashed == 1:  # the verb survives it
                found = [vars(check) for check in verify_apart(copy, trust_native_code=True).checks]
                assert found[4]["status"] == "failed" and "ended its process by signal" in found[4]["detail"], found
        assert found is None or isinstance(found, list), (name, i, found)
        for check in found or ():
            assert check["detail"] and "\n" not in check["detail"] and len(check["detail"]) < 1000, (name, i, check)
        assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before, (name, i)
        shutil.rmtree(copy)
    return crashed


def made(name, directory):
    compiler = method_class(name)()
    if lacking := compiler.missing():
        pytest.skip(lacking)
    directory.mkdir(exist_ok=True)
    return written(compiler, directory)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_some_damages(name, tmp_path):
    assert answered(name, made(name, tmp_path / "whole"), tmp_path, range(16)) == 0


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", ["export", "onnxruntime", "openvino", "xla", "tvm", "inductor"])
def test_every_damage(name, tmp_path):
    crashed = answered(name, made(name, tmp_path / "whole"), tmp_path, range(EACH))
    assert not crashed or name in ("tvm", "inductor"), "machine code, which only who trusts it opens"


def test_an_engine_that_ends_its_process(tmp_path, monkeypatch):
    """The other checks are made all the same, and the row says what happened."""
    place = made("onnxruntime", tmp_path / "whole")
    assert verify_apart(place).sound
    (tmp_path / "sitecustomize.py").write_text(
        "import onnxruntime, os\n"
        "onnxruntime.InferenceSession = lambda *given, **named: os.kill(os.getpid(), 11)\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    found = verify_apart(place)
    statuses = {check.what: check.status for check in found.checks}
    assert statuses | {"packages": ""} == {"manifest": "ok", "files": "ok", "processor": "ok", "packages": "", "engine": "failed",
                                           "parity": "skipped"}
    assert "ended its process by signal 11" in found.checks[4].detail and not found.sound


# -- files beside the one that is opened --------------------------------------------------------------------------


def external(directory, location, where="initializer"):
    """An ONNX file whose weight is in another file; returns the manifest's entry."""
    from onnx import TensorProto, helper

    weight = helper.make_tensor("w", TensorProto.FLOAT, [2, 2], [0.0] * 4)
    weight.ClearField("float_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("length", "16")):
        weight.external_data.add(key=key, value=value)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2]) for name in "xy")
    constant = [] if where == "initializer" else [helper.make_node("Constant", [], ["w"], value=weight)]
    graph = helper.make_graph([*constant, helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y],
                              [weight] if where == "initializer" else [])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    (directory / "model.onnx").write_bytes(model.SerializeToString())


@pytest.mark.parametrize("where", ["initializer", "constant"])
@pytest.mark.parametrize("location", ["weights.bin", "../weights.bin", "/etc/passwd", "sub/../../weights.bin", "\x1b[2J"])
def test_weights_in_a_file_that_the_artifact_does_not_name(location, where, tmp_path):
    pytest.importorskip("onnx")
    (tmp_path / "a").mkdir()
    for path in (tmp_path / "weights.bin", tmp_path / "a" / "weights.bin"):
        path.write_bytes(bytes(16))
    external(tmp_path / "a", location, where)
    assert external_files(tmp_path / "a" / "model.onnx") == {location}
    manifest = {"engine": "onnxruntime", "files": {"model.onnx": None}}
    with pytest.raises(EngineError, match="which is not one of the artifact's files"):
        open_engine(tmp_path / "a", manifest)
    if location == "weights.bin":
        open_engine(tmp_path / "a", manifest | {"files": {"model.onnx": None, "weights.bin": None}})


def test_weights_inside_are_in_no_other_file(tmp_path):
    assert external_files(made("onnxruntime", tmp_path) / "model.onnx") == set()


def test_an_ir_whose_weights_the_artifact_does_not_name(tmp_path):
    place = made("openvino", tmp_path)
    files = artifact.read(place)["files"]
    edit(place, files={name: entry for name, entry in files.items() if name.endswith(".xml")})
    with pytest.raises(EngineError, match="lists no weights"):
        open_engine(place, artifact.read(place))
