from __future__ import annotations

import subprocess
import sys

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


def test_verbs_stay_verbs_after_their_files_are_imported():
    assert run("import thrifty.run, thrifty.frontier, thrifty; print(callable(thrifty.run), callable(thrifty.frontier))"
               ) == "True True"


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = thrifty.nothing_like_it
