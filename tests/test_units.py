"""Durations and sizes as people write them."""

from __future__ import annotations

import pytest

from thrifty.units import UnitError, seconds, size


@pytest.mark.parametrize("text, value", [("200us", 2e-4), ("5 ms", 5e-3), ("1.5s", 1.5), ("5m", 300.0), ("2h", 7200.0),
                                         (3, 3.0), ("1e-3", 1e-3)])
def test_durations(text, value):
    assert seconds(text) == pytest.approx(value)


@pytest.mark.parametrize("text, value", [("500kB", 500_000), ("1.5MB", 1_500_000), ("2MiB", 2**21), (1e6, 10**6)])
def test_sizes(text, value):
    assert size(text) == value


@pytest.mark.parametrize("text", ["", "0", "-5ms", "nan", "5 parsecs", "ms", "inf"])
def test_durations_and_sizes_that_cannot_be_read(text):
    for read in (seconds, size):
        with pytest.raises(UnitError, match="is written"):
            read(text)
