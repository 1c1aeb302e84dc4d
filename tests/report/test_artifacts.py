"""Tables of what an artifact is made of."""

from __future__ import annotations

import io

from thrifty.report.artifacts import print_layers


def test_layers_that_stay_float_are_listed_with_their_reason():
    out = io.StringIO()
    print_layers("net", [{"layer": "a", "scheme": "w8a8", "bytes": 64, "error": 1e-4},
                         {"layer": "b", "scheme": "fp32", "bytes": 256, "error": None, "reason": "has hooks"}], out)
    lines = out.getvalue().splitlines()
    assert any("b" in line and "fp32" in line and "has hooks" in line for line in lines)
    assert any("w8a8" in line and "has hooks" not in line for line in lines)
