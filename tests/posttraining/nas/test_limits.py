"""Limits as people write them."""

from __future__ import annotations

import pytest

from thrifty.errors import ThriftyError
from thrifty.posttraining.nas.limits import Limit, read


def test_every_quantity_is_read_in_its_unit():
    assert read("latency<=2ms, bytes <= 40%, memory<=8MB,throughput>=500/s, drop<=1pt") == (
        Limit("latency", 0.002), Limit("bytes", 0.4, True), Limit("memory", 8e6), Limit("throughput", 500.0), Limit("drop", 0.01))
    assert read("drop<=0.02") == (Limit("drop", 0.02),)


@pytest.mark.parametrize(("text", "says"), [
    ("", "is not a limit"), ("fast", "is not a limit"), ("latency=2ms", "is not a limit"),
    ("joules<=2", "'joules' cannot be limited"),
    ("latency>=2ms", "the wrong direction: latency is limited by <="), ("throughput<=2/s", "limited by >="),
    ("latency<=2MB", "latency is written 2ms"), ("bytes<=2ms", "bytes is written 40MB"), ("throughput>=5ms", "written 500/s"),
    ("drop<=1%", "drop is written 1pt"), ("latency<=0%", "latency is written"), ("latency<=-1ms", "latency is written"),
    ("latency<=1ms, latency<=2ms", "limited twice"),
])
def test_what_cannot_be_read_says_what_can(text, says):
    with pytest.raises(ThriftyError, match=says):
        read(text)


def test_a_limit_is_met_by_what_is_within_it():
    assert Limit("latency", 0.5, True).met(0.9, 2.0) and not Limit("latency", 0.5, True).met(1.1, 2.0)
    assert Limit("latency", 1.0).met(1.02, 9.0, tolerance=0.03) and not Limit("drop", 0.01).met(0.0101, 0.0, tolerance=0.03)
    assert Limit("throughput", 2.0, True).met(21.0, 10.0) and not Limit("throughput", 2.0, True).met(19.0, 10.0)
