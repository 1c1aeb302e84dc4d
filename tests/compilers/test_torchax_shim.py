from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("jax")
if __import__("importlib").util.find_spec("torchax") is None:
    pytest.skip("torchax is not installed: pip install 'thrifty[xla]'", allow_module_level=True)


@pytest.mark.slow
def test_it_is_still_needed():
    """Once this fails, delete thrifty/compilers/torchax_shim.py and import torchax as it is."""
    done = subprocess.run([sys.executable, "-c", "import torchax"], capture_output=True, text=True)
    assert done.returncode != 0
    assert "has no overload name" in done.stderr


def test_it_puts_back_what_it_changes():
    """In a process of its own: where torchax was imported, torch.compile works no more."""
    code = """
import torch
from torch._ops import OpOverloadPacket
from thrifty.compilers.torchax_shim import import_torchax

lookup, fast = OpOverloadPacket.__getattr__, torch.backends.mha.get_fastpath_enabled()
assert import_torchax().export.exported_program_to_jax
assert OpOverloadPacket.__getattr__ is lookup
assert torch.backends.mha.get_fastpath_enabled() == fast
try:
    torch.ops.aten.all.dimname
except AttributeError as error:
    assert "no overload name 'dimname'" in str(error)
    print("as it was")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "as it was", done.stderr
