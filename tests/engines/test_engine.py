from __future__ import annotations

import subprocess
import sys

import pytest

from thrifty.engines import EngineError, open_engine
from thrifty.engines.instructions import instruction_set, missing_instructions


def test_importing_engines_imports_no_runtime():
    code = "import sys, thrifty.engines; print([m for m in ('torch', 'onnxruntime', 'onnx') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          env={"PYTHONPATH": ":".join(x for x in sys.path if x)})
    assert done.stdout.strip() == "[]"


def test_an_onnx_engine_imports_no_torch():
    pytest.importorskip("onnxruntime")
    code = "import sys, thrifty.engines.onnxruntime; print([m for m in ('torch', 'onnx') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          env={"PYTHONPATH": ":".join(x for x in sys.path if x)})
    assert done.stdout.strip() == "[]"


def test_an_openvino_engine_imports_no_torch():
    pytest.importorskip("thrifty.engines.openvino")
    code = "import sys, thrifty.engines.openvino; print([m for m in ('torch', 'openvino_telemetry') if sys.modules.get(m)])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          env={"PYTHONPATH": ":".join(x for x in sys.path if x)})
    assert done.stdout.strip() == "[]"


def manifest(**changes):
    return {"engine": "export", "files": {"model.pt2": None}, "native": False, "instruction_set": "", **changes}


def test_what_cannot_be_opened_says_what_to_do(tmp_path):
    with pytest.raises(EngineError, match=r"no engine 'os'.*export, inductor, onnxruntime"):
        open_engine(tmp_path, manifest(engine="os"))
    with pytest.raises(EngineError, match="trust_native_code=True"):
        open_engine(tmp_path, manifest(engine="inductor", native=False))  # whatever the manifest claims
    with pytest.raises(EngineError, match=r"lacks .*compile\(onnxruntime\)"):
        open_engine(tmp_path, manifest(instruction_set="vax9000 pdp"))


def test_a_missing_runtime_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EngineError, match=r"needs onnxruntime.*thrifty\[onnxruntime\]"):
        open_engine(tmp_path, manifest(engine="onnxruntime"))


def test_a_file_that_is_no_model(tmp_path):
    pytest.importorskip("onnxruntime")
    (tmp_path / "model.onnx").write_bytes(b"nothing")
    with pytest.raises(EngineError, match="cannot open"):
        open_engine(tmp_path, manifest(engine="onnxruntime", files={"model.onnx": None}))


def test_this_processor_has_its_own_instructions():
    assert missing_instructions(instruction_set()) == []
    assert missing_instructions("") == []


def test_machine_code_of_another_machine_is_refused_by_the_machines_name(monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert missing_instructions("x86_64 avx2 fma") == ["x86_64"]
