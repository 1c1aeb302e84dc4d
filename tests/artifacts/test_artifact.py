from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

import thrifty
from thrifty import testing
from thrifty.artifacts import artifact
from thrifty.artifacts.artifact import ArtifactError
from thrifty.compilers.export import Export


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    directory = tmp_path_factory.mktemp("exported")
    model, example = testing.trained(), testing.workload.example(1)
    context = testing.make_context(testing.workload, testing.Target(), 0, print)
    lowered = Export().lower(model, example, directory, context)
    with torch.no_grad():
        outputs = [model(*example).numpy()]
    artifact.write(directory, lowered, {"recipe": "export"}, [x.numpy() for x in example], outputs)
    return directory


@pytest.fixture
def damaged(exported, tmp_path):
    artifact.copy(exported, tmp_path / "copy")
    return tmp_path / "copy"


def test_it_answers_as_the_model_does(exported):
    example = testing.workload.example(1)
    loaded = thrifty.load(exported)
    torch.testing.assert_close(loaded(*example), testing.trained()(*example), rtol=1e-4, atol=1e-5)
    assert isinstance(loaded(*[x.numpy() for x in example]), np.ndarray)


def test_a_byte_flipped_is_noticed(damaged):
    name = next(iter(artifact.read(damaged)["files"]))
    content = bytearray((damaged / name).read_bytes())
    content[len(content) // 2] ^= 1
    (damaged / name).write_bytes(content)
    with pytest.raises(ArtifactError, match="damaged"):
        thrifty.load(damaged)


def test_a_missing_file_is_named(damaged):
    name = next(iter(artifact.read(damaged)["files"]))
    (damaged / name).unlink()
    with pytest.raises(ArtifactError, match=name):
        thrifty.load(damaged)


@pytest.mark.parametrize("name", ["/etc/passwd", "../outside", "a/../../b", "..\\x"])
def test_files_outside_are_never_opened(damaged, name):
    manifest = artifact.read(damaged)
    (damaged / "artifact.json").write_text(json.dumps(manifest | {"files": {name: {"sha256": "", "bytes": 0}}}))
    with pytest.raises(ArtifactError, match="outside"):
        thrifty.load(damaged)


def test_a_link_is_not_followed(damaged):
    name = next(iter(artifact.read(damaged)["files"]))
    (damaged / name).rename(damaged.parent / "real")
    (damaged / name).symlink_to(damaged.parent / "real")
    with pytest.raises(ArtifactError, match="not a regular file"):
        thrifty.load(damaged)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 99}', "null", "{" * 1000])
def test_a_damaged_manifest_is_refused(damaged, text):
    (damaged / "artifact.json").write_text(text)
    with pytest.raises(ArtifactError):
        thrifty.load(damaged)


def test_another_processor_is_refused(damaged):
    manifest = artifact.read(damaged)
    (damaged / "artifact.json").write_text(json.dumps(manifest | {"machine": "riscv64", "portable": False}))
    with pytest.raises(ArtifactError, match="riscv64"):
        thrifty.load(damaged)


def test_not_an_artifact(tmp_path):
    with pytest.raises(ArtifactError, match="no artifact"):
        thrifty.load(tmp_path)


def test_wrong_inputs_are_answered_with_what_is_taken(exported):
    loaded = thrifty.load(exported)
    with pytest.raises(ArtifactError, match="takes 1 inputs"):
        loaded()
    with pytest.raises(ArtifactError, match="float32"):
        loaded(torch.zeros(1, 1, 12, 12, dtype=torch.float64))
    with pytest.raises(ArtifactError, match="shape"):
        loaded(torch.zeros(1, 1, 11, 12))


def test_it_loads_where_workload_and_training_code_cannot_be_imported(exported):
    """The deployed process has neither the workload nor the training code."""
    script = (
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.startswith(('thrifty.training', 'thrifty.workload', 'thrifty.testing', 'thrifty.runs.execution',\n"
        "                            'thrifty.posttraining', 'thrifty.compilers')):\n"
        "            raise ImportError('not deployed: ' + name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "import numpy, thrifty\n"
        "model = thrifty.load(sys.argv[1])\n"
        "print(model(numpy.zeros((1, 1, 12, 12), 'float32')).shape)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(exported)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(1, 4)"


def test_the_stored_example_is_what_the_model_answered(exported):
    inputs, outputs = artifact.example(exported)
    found = thrifty.load(exported)(*inputs)
    np.testing.assert_allclose(found, outputs[0], rtol=1e-4, atol=1e-5)


def test_nothing_is_pickled(exported):
    """Every file is JSON, an archive of arrays, or an engine's own format; none opens with a pickle's opcode."""
    for path in exported.iterdir():
        assert path.read_bytes()[:2] != b"\x80\x04", path


@pytest.mark.parametrize(("shape", "says"), [([1, 4], r"of shape \[1, 4\] but is float32 of shape \[2, 3\]"),
                                             ([-1, 4], r"of shape \[-1, 4\] \(-1: any\) but is float32 of shape \[2, 3\]")])
def test_a_request_of_another_shape_is_told_what_is_taken(shape, says):
    spec = {"name": "x", "dtype": "float32", "shape": shape}
    with pytest.raises(artifact.InputError, match=says):
        artifact.check_inputs([spec], [np.zeros((2, 3), np.float32)])
    artifact.check_inputs([spec], [np.zeros((1, 4), np.float32)])
