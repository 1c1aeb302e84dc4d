from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import thrifty


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_pulls_in_nothing_optional():
    """Not even torch: an engine's process needs none of it."""
    heavy = "{'torch', 'onnx', 'onnxruntime', 'openvino', 'jax', 'transformers', 'torchao', 'pandas', 'mlxtend', 'typer', 'rich'}"
    assert run(f"import sys, thrifty; print(sorted({heavy} & set(sys.modules)))") == "[]"


def test_the_whole_api_pulls_in_nothing_optional_but_torch():
    heavy = ("{'onnx', 'onnxruntime', 'onnxscript', 'openvino', 'jax', 'transformers', 'torchao', 'torch_pruning', "
             "'pandas', 'mlxtend'}")
    code = f"import sys, thrifty; [getattr(thrifty, n) for n in thrifty.__all__]; print(sorted({heavy} & set(sys.modules)))"
    assert run(code) == "[]"


@pytest.mark.parametrize("name", thrifty.__all__)
def test_every_public_name_is_there(name):
    assert getattr(thrifty, name) is not None
    assert name in dir(thrifty)


def test_the_names_for_type_checkers_are_the_public_ones():
    tree = ast.parse(Path(thrifty.__file__).read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    assert {(name.name, node.module) for node in block.body for name in node.names} == {
        (name, f"thrifty.{place}") for name, place in thrifty._PLACES.items()}


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = thrifty.nothing_like_it


def test_workloads_that_import_the_old_place_of_quality_go_on():
    code = "import thrifty.quality; from thrifty.quality import batches; import thrifty; print(batches is thrifty.batches)"
    assert run(code) == "True"
