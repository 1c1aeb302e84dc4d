from __future__ import annotations

import pytest

from thrifty.compilers.capture import LoweringError
from thrifty.compilers.requirements import require, require_processor, to_install
from thrifty.errors import MissingExtra


def test_the_first_package_that_is_not_here_is_named():
    require("xla", "torch", "numpy")
    assert to_install("xla", "torch", "numpy") is None
    with pytest.raises(MissingExtra, match=r"no_such_a is not installed.*thrifty\[xla\]"):
        require("xla", "torch", "no_such_a", "no_such_b")
    assert to_install("xla", "torch", "no_such_a", "no_such_b") == "no_such_a is not installed: pip install 'thrifty[xla]'"


def test_another_device_is_refused():
    require_processor("tvm", "cpu")
    with pytest.raises(LoweringError, match=r"compile\(tvm\) supports CPUs only, not cuda: use compile\(inductor\)"):
        require_processor("tvm", "cuda")
