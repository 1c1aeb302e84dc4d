"""Sixty manifests that nobody should write: each is answered in one line, and what lies beside it stays as it was."""

from __future__ import annotations

import json
import os
import sys

import pytest

from tests.artifacts.test_verification import edit, written
from thrifty.artifacts import artifact
from thrifty.artifacts.artifact import ArtifactError
from thrifty.artifacts.bench import bench
from thrifty.cli.app import app, guarded
from thrifty.cli.options import FAILED, USAGE
from thrifty.compilers.onnxruntime import OnnxRuntime
from thrifty.target import cores

DIGEST = {"sha256": "0" * 64, "bytes": 1}
SPEC = {"name": "x", "dtype": "float32", "shape": [1, 1, 12, 12]}


def changed(**changes):
    """A function that gives the manifest's text with the changes."""
    return lambda manifest: json.dumps(manifest | changes)


def without(key):
    return lambda manifest: json.dumps({name: value for name, value in manifest.items() if name != key})


def spec(**changes):
    return changed(inputs=[SPEC | changes])


def raw(content):
    return lambda manifest: content


MANIFESTS = {
    # no JSON
    "empty": raw(""), "white": raw(" \n" * 1000), "half": lambda manifest: json.dumps(manifest)[:500],
    "binary": raw(bytes(range(256))),
    "bad UTF-8": lambda manifest: json.dumps(manifest).encode().replace(b"fp32", b"fp\xff2"),
    "UTF-16": lambda manifest: json.dumps(manifest).encode("utf-16"), "a pickle": raw(b"\x80\x04\x95\x05\x00\x00\x00N."),
    "deep lists": raw("[" * 200_000), "deep objects": raw('{"format":' * 100_000),
    "a long number": raw('{"format": ' + "9" * 10_000 + "}"),
    "a trailing comma": lambda manifest: json.dumps(manifest)[:-1] + ",}", "several": lambda manifest: json.dumps(manifest) * 2,
    # no manifest
    "a list": raw("[]"), "null": raw("null"), "a number": raw("1"), "no keys": raw("{}"), "another format": changed(format=99),
    "a format of escapes": changed(format="\x1b[2J\u202e"), "a huge format": changed(format="9" * 10**6),
    "a nested format": changed(format={"format": [1]}),
    **{f"no {key}": without(key) for key in ("format", "engine", "files", "example", "inputs", "outputs", "precision",
    "machine")},
    # of the wrong kind
    "files is a list": changed(files=[]), "no file": changed(files={}), "a file of nothing": changed(files={"model.onnx": None}),
    "a file of texts": changed(files={"model.onnx": {"sha256": 1, "bytes": "x"}}), "engine is a number": changed(engine=7),
    "needs is a text": changed(needs="torch"), "no threads": changed(threads=0), "threads that are true": changed(threads=True),
    "another device": changed(device="\x1b]0;x\x07"), "versions are numbers": changed(versions={"torch": 2}),
    "outputs are numbers": changed(outputs=[7]), "layers": changed(layers=[{"layer": 1}]),
    # names of files
    "outside": changed(files={"../model.onnx": DIGEST}), "absolute": changed(files={"/etc/passwd": DIGEST}),
    "a backslash": changed(files={"..\\x": DIGEST}), "a null": changed(files={"a\0b": DIGEST}),
    "no name": changed(files={"": DIGEST}),
    "itself": changed(files={"artifact.json": DIGEST}), "a long name": changed(files={"x" * 5000: DIGEST}),
    "a long path": changed(files={"/".join(["x" * 200] * 100): DIGEST}),
    "escapes in a name": changed(files={"\x1b[31mx": DIGEST}),
    "a direction mark": changed(files={"x\u202etxt.exe": DIGEST}), "the directory": changed(files={".": DIGEST}),
    # inputs
    "a fraction": spec(shape=[1.5]), "a negative size": spec(shape=[-2]), "a hundred dimensions": spec(shape=[1] * 100),
    "another dtype": spec(dtype="O"), "a dtype of Python": spec(dtype="float32; import os"),
    "a long name of an input": spec(name="x" * 10**5),
    "two of one name": changed(inputs=[SPEC, SPEC]), "a range of no dimension": spec(varies=[[9, "batch", 1, 2]]),
    "a range that ends before it begins": spec(varies=[[0, "batch", 9, 2]]),
    # what cannot be opened here
    "another engine": changed(engine="os"), "another precision": changed(precision="int3"),
    "another processor": changed(machine="vax", portable=False), "other instructions": changed(instruction_set="x86_64 vax9000"),
    "no such package": changed(needs=["no-such-package-\u202e"]), "a size that differs": changed(example={"sha256": "0",
    "bytes": -1}),
}


UNREAD = ("another precision", "no such package")
"""What `verify` alone looks at."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return written(OnnxRuntime(), tmp_path_factory.mktemp("compiled"))


@pytest.fixture(scope="module")
def copied(place, tmp_path_factory):
    artifact.copy(place, tmp_path_factory.mktemp("copied") / "copy")
    return tmp_path_factory.getbasetemp() / "copied0" / "copy"


def test_there_are_sixty():
    assert len(MANIFESTS) >= 60


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_is_answered_in_one_line(name, place, copied, capfd, monkeypatch):
    content = MANIFESTS[name](artifact.read(place))
    (copied / "artifact.json").write_bytes(content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content)
    before = {path: path.read_bytes() for path in copied.iterdir()}
    for verb in () if name in UNREAD else ("bench", "show"):
        monkeypatch.setattr(sys, "argv", ["thrifty", verb, str(copied)])
        assert guarded(app) in (USAGE, FAILED)
        told = capfd.readouterr().err
        assert told.startswith("thrifty: ") and told.count("\n") == 1 and told.strip().isprintable() and len(told) < 1200, told
    assert {path: path.read_bytes() for path in copied.iterdir()} == before


@pytest.mark.parametrize("name", ["deep lists", "a long path", "a null", "a direction mark", "half", *UNREAD])
def test_verify_has_a_row_for_each(name, place, copied, capfd, monkeypatch):
    content = MANIFESTS[name](artifact.read(place))
    (copied / "artifact.json").write_text(content)
    monkeypatch.setattr(sys, "argv", ["thrifty", "verify", str(copied)])
    assert guarded(app) == FAILED
    told = capfd.readouterr()
    assert not told.err and "Do not serve it here" in told.out and "Traceback" not in told.out
    assert told.out.replace("\n", "").isprintable()


@pytest.mark.parametrize("make", [
    lambda path: path.mkdir(), lambda path: path.symlink_to("/etc/passwd"), lambda path: path.symlink_to(path), os.mkfifo,
    lambda path: path.symlink_to("/dev/zero")], ids=["directory", "link", "circle", "pipe", "device"])
def test_a_manifest_that_is_no_file(place, tmp_path, make):
    artifact.copy(place, tmp_path / "copy")
    (tmp_path / "copy" / "artifact.json").unlink()
    make(tmp_path / "copy" / "artifact.json")
    with pytest.raises(ArtifactError, match="has no artifact.json"):
        artifact.read(tmp_path / "copy")


@pytest.mark.parametrize("name", ["\x1b[2J", "x" * 5000, "\u202egnp", "\udcff"])
def test_artifacts_of_strange_names(name, capfd, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["thrifty", "bench", name])
    assert guarded(app) in (USAGE, FAILED)
    told = capfd.readouterr().err
    assert told.count("\n") == 1 and told.strip().isprintable() and len(told) < 1200


def test_a_thousand_threads_are_as_many_as_there_are(place, tmp_path):
    artifact.copy(place, tmp_path / "copy")
    edit(tmp_path / "copy", threads=1000)
    assert bench(tmp_path / "copy", rounds=1)["threads"] == cores()
