from __future__ import annotations

from pathlib import Path

import pytest

from thrifty.measure.energy import NoMeter, Rapl, meter


def zone(folder: Path, name: str, microjoules: int, wraps: int = 1_000_000) -> Path:
    place = folder / name
    place.mkdir()
    (place / "energy_uj").write_text(str(microjoules))
    (place / "max_energy_range_uj").write_text(str(wraps))
    return place


def test_packages_are_added_and_their_parts_are_not(tmp_path: Path) -> None:
    packages = [zone(tmp_path, f"intel-rapl:{i}", 100_000) for i in range(2)]
    zone(tmp_path, "intel-rapl:0:0", 0)
    found = meter("cpu", powercap=tmp_path)
    before = found.read()
    for package in packages:
        (package / "energy_uj").write_text("350000")
    assert found.between(before, found.read()) == pytest.approx(0.5)


def test_a_counter_that_wraps_around_goes_on(tmp_path: Path) -> None:
    package = zone(tmp_path, "intel-rapl:0", 900_000)
    found = Rapl((package,))
    before = found.read()
    (package / "energy_uj").write_text("100000")
    assert found.between(before, found.read()) == pytest.approx(0.2)


def test_no_counter_is_not_measured_never_zero(tmp_path: Path) -> None:
    found = meter("cpu", powercap=tmp_path)
    assert found == NoMeter()
    assert found.between(found.read(), found.read()) is None


def test_a_counter_that_may_not_be_read_is_not_measured(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", 1)
    (tmp_path / "intel-rapl:0" / "energy_uj").unlink()  # as unreadable to us as root's alone
    assert meter("cpu", powercap=tmp_path) == NoMeter()
