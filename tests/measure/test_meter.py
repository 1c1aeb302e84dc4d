"""One meter: what a piece of work took, its own peak of memory among it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from thrifty.measure import meter as meters
from thrifty.measure.meter import Meter, peak_memory

MB = 2**20


def hold(megabytes: int) -> int:
    """Fill so much memory, and give it back."""
    kept = bytearray(megabytes * MB)
    kept[::4096] = b"x" * len(kept[::4096])  # every page is touched
    return len(kept)


def test_the_peak_is_that_of_the_work_and_not_of_what_was_before():
    hold(300)
    with Meter() as small:
        hold(20)
    with Meter() as large:
        hold(200)
    first, second = small.read().peak_memory_bytes, large.read().peak_memory_bytes
    assert first is not None and second is not None
    assert 150 * MB < second - first < 250 * MB


def test_without_the_kernels_mark_memory_is_sampled(monkeypatch):
    monkeypatch.setattr(meters, "_reset", lambda: False)
    with peak_memory() as peak:
        before = peak()[0]
        kept = bytearray(100 * MB)
        kept[::4096] = b"x" * len(kept[::4096])
        subprocess.run([sys.executable, "-c", "import time; time.sleep(0.1)"], check=True)
        after = peak()[0]
    assert before is not None and after is not None and after - before > 80 * MB and len(kept)


def test_a_meter_inside_another_shares_its_mark():
    with Meter() as outer:
        hold(150)
        with Meter() as inner:
            hold(10)
        within = inner.read().peak_memory_bytes
    assert within == outer.read().peak_memory_bytes
    assert inner.read().seconds < outer.read().seconds


def test_seconds_of_devices_are_those_of_all_of_them():
    with Meter(devices=4) as meter:
        hold(10)
    read = meter.read()
    assert read.device_seconds == pytest.approx(4 * read.seconds) and read.device_memory_bytes is None
    assert meter.read() == read  # it stands still when the work is done
