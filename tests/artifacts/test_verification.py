from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import zipfile

import numpy as np
import pytest

import thrifty
from thrifty import testing
from thrifty.artifacts import artifact
from thrifty.artifacts.arrays import to_npz
from thrifty.artifacts.artifact import ArtifactError
from thrifty.artifacts.verification import CHECKS, compare, verify
from thrifty.cli.app import app, guarded
from thrifty.cli.options import DONE, FAILED
from thrifty.compilers.export import Export
from thrifty.compilers.inductor import Inductor
from thrifty.measure.environment import runtime_versions
from thrifty.recipes.context import Context
from thrifty.recipes.registry import method_class

WITHOUT_TORCH = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ImportError("torch is not deployed")
sys.meta_path.insert(0, Refuse())
sys.argv[0] = "thrifty"
from thrifty.artifacts import apart, verification
apart.verify_apart = verification.verify  # in this process, which has no torch
from thrifty.cli.app import main
main()
"""


def written(compiler, directory):
    model, example = testing.trained().eval(), testing.workload.example(1)
    lowered = compiler.lower(model, example, directory, Context(example=example, calibration=lambda: iter(())))
    artifact.write(directory, lowered, {"recipe": f"compile({compiler.name})", "versions": runtime_versions()},
                   [x.numpy() for x in example], [model(*example).detach().numpy()])
    return directory


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return written(Export(), tmp_path_factory.mktemp("exported"))


@pytest.fixture
def copied(exported, tmp_path):
    artifact.copy(exported, tmp_path / "copy")
    return tmp_path / "copy"


def edit(directory, **changes):
    (directory / "artifact.json").write_text(json.dumps(artifact.read(directory) | changes))


def replace_example(directory, content: bytes):
    """As who wants to harm would: with a manifest that agrees."""
    (directory / "example.npz").write_bytes(content)
    edit(directory, example=artifact._digest(directory / "example.npz"))


def statuses(found):
    return {check.what: check.status for check in found.checks}


def detail(found, what):
    return next(check.detail for check in found.checks if check.what == what)


def test_a_sound_artifact(exported):
    found = verify(exported)
    assert found.sound and statuses(found) == dict.fromkeys(CHECKS, "ok")
    assert "explains 0.001" in detail(found, "parity")
    assert found.to_json()["sound"] is True


def test_a_byte_flipped_fails_and_nothing_is_opened(copied):
    content = bytearray((copied / "model.pt2").read_bytes())
    content[len(content) // 2] ^= 1
    (copied / "model.pt2").write_bytes(content)
    found = verify(copied)
    assert not found.sound
    assert statuses(found) == {"manifest": "ok", "files": "failed", "processor": "ok", "packages": "ok", "engine": "skipped",
                               "parity": "skipped"}
    assert "copy it again" in detail(found, "files")


def test_nothing_to_verify(tmp_path):
    found = verify(tmp_path / "nowhere")
    assert statuses(found) == dict(zip(CHECKS, ["failed", *["skipped"] * 5], strict=True))
    assert "no artifact" in detail(found, "manifest")


def test_other_answers_than_the_kept_ones_fail(copied):
    inputs, outputs = artifact.example(copied)
    replace_example(copied, to_npz({"input0": inputs[0], "output0": outputs[0] * 1.01}))
    found = verify(copied)
    assert statuses(found)["parity"] == "failed" and "0.0099" in detail(found, "parity")


def test_answers_that_are_no_numbers_fail(copied):
    inputs, outputs = artifact.example(copied)
    replace_example(copied, to_npz({"input0": inputs[0], "output0": outputs[0] * np.nan}))
    assert statuses(verify(copied))["parity"] == "failed"


@pytest.mark.parametrize(("outputs", "says"), [
    (np.zeros((1, 5), "float32"), "shapes"), (np.zeros((4,), "float32"), "shapes"), (None, "shapes")])
def test_answers_of_another_shape_fail(copied, outputs, says):
    kept = {"input0": artifact.example(copied)[0][0]} | ({} if outputs is None else {"output0": outputs})
    replace_example(copied, to_npz(kept))
    assert says in detail(verify(copied), "parity")


def test_an_example_that_the_artifact_does_not_take_fails(copied):
    replace_example(copied, to_npz({"input0": np.zeros((1, 1, 2, 2), "float32"), "output0": np.zeros((1, 4), "float32")}))
    assert "must be float32 of shape" in detail(verify(copied), "parity")


def bomb() -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, input0=np.zeros(50_000_000, "uint8"))
    return stream.getvalue()


def header_bomb() -> bytes:
    """A header that asks for a terabyte, over nothing."""
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000, 1000000), }"
    npy = b"\x93NUMPY\x01\x00" + (len(header) + 1).to_bytes(2, "little") + header + b"\n"
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("input0.npy", npy)
    return stream.getvalue()


def objects() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, input0=np.array([{"a": 1}], dtype=object))
    return stream.getvalue()


@pytest.mark.parametrize(("content", "says"), [
    (bomb(), "would unpack to 50000128 bytes"), (header_bomb(), "0 bytes follow a header"),
    (objects(), "objects would be unpickled"), (b"nothing", "not a .npz file"), (b"", "not a .npz file")])
def test_a_hostile_example_is_not_unpacked(copied, content, says):
    replace_example(copied, content)
    assert says in detail(verify(copied), "parity")
    with pytest.raises(ArtifactError, match="copy the artifact again"):
        artifact.example(copied)


@pytest.mark.parametrize("changes", [
    {"files": {}}, {"files": {"model.pt2": None}}, {"files": {"model.pt2": {"sha256": 1, "bytes": "x"}}}, {"example": {}},
    {"inputs": [{}]}, {"inputs": [{"name": "x", "dtype": "float32", "shape": [1.5]}]}, {"outputs": [7]}, {"engine": None},
    {"precision": 7}, {"versions": {"torch": 2}}, {"needs": "torch"}, {"threads": 0}, {"instruction_set": ["avx2"]}])
def test_manifests_of_the_wrong_kind_are_answered(copied, changes):
    manifest = artifact.read(copied) | changes
    (copied / "artifact.json").write_text(json.dumps(manifest))
    found = verify(copied)
    assert statuses(found)["manifest"] == "failed" and "copy the artifact again" in detail(found, "manifest")


def test_deep_and_large_manifests_are_answered(copied):
    (copied / "artifact.json").write_text("[" * 200_000)
    assert "damaged" in detail(verify(copied), "manifest")
    with (copied / "artifact.json").open("wb") as file:
        file.truncate(2**40)
    assert "a manifest has at most" in detail(verify(copied), "manifest")


def test_engines_and_precisions_that_there_are_not(copied):
    edit(copied, engine="os")
    assert "there is no engine 'os'" in detail(verify(copied), "engine")
    edit(copied, engine="export", precision="int3")
    assert "there is no precision 'int3'" in detail(verify(copied), "parity")


def test_an_engine_of_another_kind_than_its_files(copied):
    pytest.importorskip("thrifty.engines.openvino")
    edit(copied, engine="openvino")
    assert statuses(verify(copied))["engine"] == "failed"
    edit(copied, engine="onnxruntime")
    assert "cannot open" in detail(verify(copied), "engine")


def test_a_folder_that_is_a_link_is_not_followed(copied, tmp_path):
    (tmp_path / "outside").mkdir()
    (copied / "model.pt2").rename(tmp_path / "outside" / "model.pt2")
    (copied / "sub").symlink_to(tmp_path / "outside")
    files = artifact.read(copied)["files"]
    edit(copied, files={"sub/model.pt2": files["model.pt2"]})
    with pytest.raises(ArtifactError, match="not a regular file"):
        thrifty.load(copied)


def test_another_processor(copied):
    edit(copied, machine="riscv64", portable=False)
    assert "riscv64" in detail(verify(copied), "processor")
    edit(copied, machine="x86_64", portable=True, instruction_set="vax9000 pdp")
    assert statuses(verify(copied))["processor"] == "failed"


def test_versions_are_compared(copied):
    assert compare("1.2.3", None, native=False)[0] == "failed"
    assert compare("3.0", "2.9", native=False)[0] == "failed"
    assert compare("1.32.0", "1.31.0", native=False)[0] == "differs"
    assert compare("2.13.0", "2.13.0+cpu", native=True)[0] == "differs"
    assert compare("2.12.0", "2.13.0", native=True)[0] == "failed"
    edit(copied, versions={"torch": "2.12.1", "thrifty": "0.0.9"})
    found = verify(copied)
    assert found.sound and statuses(found)["packages"] == "differs" and "made with 2.12.1" in detail(found, "packages")
    edit(copied, versions={"torch": "99.0"})
    found = verify(copied)
    assert not found.sound and "install 99.0 or later" in detail(found, "packages")
    edit(copied, needs=["no-such-package"])
    assert "is not installed" in detail(verify(copied), "packages")


def test_what_says_that_it_is_no_machine_code_waits_for_trust_too(copied):
    edit(copied, engine="inductor", native=False)
    assert "--trust-native-code" in detail(verify(copied), "engine")


@pytest.mark.slow
def test_machine_code_waits_for_trust(tmp_path):
    if lacking := Inductor.missing():
        pytest.skip(lacking)
    place = written(Inductor(), tmp_path)
    found = verify(place)
    assert statuses(found)["engine"] == "failed" and "--trust-native-code" in detail(found, "engine")
    assert statuses(found)["parity"] == "skipped"
    assert verify(place, trust_native_code=True).sound
    edit(place, versions={"torch": "2.1.0"})
    assert "machine code depends on the release" in detail(verify(place, trust_native_code=True), "packages")


@pytest.mark.parametrize("name", ["onnxruntime", "openvino", pytest.param("xla", marks=pytest.mark.slow)])
def test_it_works_without_torch(name, tmp_path):
    compiler = method_class(name)()
    if lacking := compiler.missing():
        pytest.skip(lacking)
    place = written(compiler, tmp_path)
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, "verify", str(place)], capture_output=True, text=True,
                          check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "It can be served here." in done.stdout and "\x1b" not in done.stdout


def test_the_command_answers_with_its_exit_code(copied, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["thrifty", "verify", str(copied), "--json"])
    assert guarded(app) == DONE
    assert json.loads(capsys.readouterr().out)["sound"] is True
    (copied / "model.pt2").unlink()
    monkeypatch.setattr(sys, "argv", ["thrifty", "verify", str(copied)])
    assert guarded(app) == FAILED
    told = capsys.readouterr().out
    assert "model.pt2 is missing" in told and "Do not serve it here" in told


def test_a_copy_that_was_killed_is_no_artifact(exported, tmp_path):
    """Half of a copy has another name, and what has the name is whole."""
    script = (
        "import os, shutil, sys, pathlib\n"
        "from thrifty.artifacts import artifact\n"
        "kept = shutil.copy2\n"
        "def once(*args, **kwargs):\n"
        "    kept(*args, **kwargs)\n"
        "    os._exit(9)\n"
        "tree = shutil.copytree\n"
        "shutil.copytree = lambda a, b: tree(a, b, copy_function=once)\n"
        "artifact.copy(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))"
    )
    done = subprocess.run([sys.executable, "-c", script, str(exported), str(tmp_path / "copy")], check=False)
    assert done.returncode == 9
    assert not (tmp_path / "copy").exists() and (tmp_path / ".copy.partial").is_dir()
    assert not verify(tmp_path / ".copy.partial").sound
    artifact.copy(exported, tmp_path / "copy")
    assert verify(tmp_path / "copy").sound and not (tmp_path / ".copy.partial").exists()


def test_a_compilation_that_was_killed_leaves_nothing_that_loads(tmp_path):
    """At every moment until the entry has its name, there is none; what lies aside has no manifest until it is whole."""
    script = (
        "import os, sys, pathlib\n"
        "from thrifty import testing\n"
        "from thrifty.runs import cache\n"
        "from thrifty.compilers.export import Export\n"
        "from thrifty.recipes.context import Context\n"
        "example = testing.workload.example(1)\n"
        "with cache.building('engines', 'ab') as room:\n"
        "    Export().lower(testing.SmallNet().eval(), example, room, Context(example=example, calibration=lambda: iter(())))\n"
        "    print(room, flush=True)\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    environment = {**os.environ, "THRIFTY_CACHE": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == -9, done.stderr
    assert not (tmp_path / "engines" / "ab").exists()
    with pytest.raises(ArtifactError, match="not have been fully written"):
        thrifty.load(done.stdout.strip())
