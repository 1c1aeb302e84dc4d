from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest

from tests.commands import thrifty
from thrifty.compilers.availability import Available, attempt, available, compilers
from thrifty.recipes.registry import BUILT_IN, method_class
from thrifty.report.artifacts import print_compilers


def test_every_compiler_is_listed_with_what_it_needs():
    found = {each.name: each for each in available()}
    assert list(found) == [cls.name for cls in compilers(BUILT_IN)] and {"export", "inductor", "xla"} <= set(found)
    for each in found.values():
        assert each.packages and each.precisions and each.devices and each.tried is None
        assert (each.missing is None) == (None not in (*each.packages.values(), *each.tools.values()))
    assert "C++ compiler" in found["inductor"].tools
    assert found["xla"].precisions == ("fp32",) and "cuda" not in found["openvino"].devices


def test_a_compiler_that_is_not_here_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    openvino = next(each for each in available(check=True, limit=0.01) if each.name == "openvino")
    assert openvino.tried is None and "pip install 'thrifty[openvino]'" in openvino.missing


@pytest.mark.parametrize("name", ["export", *(pytest.param(name, marks=pytest.mark.slow) for name in (
    "inductor", "onnxruntime", "openvino", "xla"))])
def test_one_that_works_is_found_to_work(name):
    if lacking := method_class(name).missing():
        pytest.skip(lacking)
    tried = attempt(name)
    assert tried.works and tried.seconds > 0 and "explains" in tried.detail, tried


def test_one_that_does_not_end_is_ended():
    tried = attempt("export", limit=0.05)
    assert not tried.works and "did not finish within 0.05 s" in tried.detail


def test_one_that_dies_is_told():
    tried = attempt("no-such-compiler")
    assert not tried.works and "its process ended with 1" in tried.detail and "no-such-compiler" in tried.detail


def test_the_table_says_what_works_and_what_to_do(monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")  # nothing is wrapped
    base = Available("a", {"torch": "2"}, {"C++ compiler": None}, ("fp32",), ("cpu",), None, None)
    rows = [base, replace(base, missing="install g++"), replace(base, tried=attempt("no-such-compiler"))]
    stream = io.StringIO()
    print_compilers(rows, stream)
    told = " ".join(stream.getvalue().split())
    assert "--check tries it" in told and "no: install g++" in told and "C++ compiler (missing)" in told
    assert "its process ended" in told


def test_the_command_lists_them_without_compiling():
    done = thrifty(["compilers", "--json"])
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert {row["name"] for row in rows} >= {"export", "inductor"} and all(row["tried"] is None for row in rows)
