"""The frontier in plain characters: what reads alike stands alike."""

from __future__ import annotations

from thrifty.report.picture import Point, scatter


def test_drops_that_read_alike_stand_in_one_row() -> None:
    drawn = scatter([Point("1", 2.0, 0.0), Point("2", 4.0, 1e-6), Point("3", 8.0, -1e-6)], unit="pt").splitlines()
    assert all(mark in drawn[0] for mark in "123") and drawn[0].lstrip().startswith("0.00pt")
    assert sum("pt" in line for line in drawn) == 1


def test_drops_that_differ_stand_apart() -> None:
    drawn = scatter([Point("1", 2.0, 0.0), Point("2", 4.0, 0.01)], unit="pt").splitlines()
    assert "1" in drawn[0].partition("|")[2] and "2" in drawn[11].partition("|")[2]
