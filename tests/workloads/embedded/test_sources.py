"""Finding data: installed packages, the user's cache, the standard library."""

import sysconfig
from pathlib import Path

import pytest

from thrifty.errors import MissingExtra
from thrifty.workloads.embedded import sources


def test_missing_package_names_its_extra():
    with pytest.raises(MissingExtra, match=r"no-such-package is not installed.*thrifty\[workloads\]"):
        sources.package_folder("no_such_package", "no-such-package", "workloads")


def test_data_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("THRIFTY_CACHE", str(tmp_path / "own"))
    assert sources.data_folder() == tmp_path / "own" / "data"
    monkeypatch.delenv("THRIFTY_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert sources.data_folder() == tmp_path / "xdg" / "thrifty" / "data"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert sources.data_folder() == tmp_path / ".cache" / "thrifty" / "data"


def test_the_cache_of_checkpoints_takes_a_folder_that_holds_data(monkeypatch, tmp_path):
    from thrifty.runs import cache

    monkeypatch.setenv("THRIFTY_CACHE", str(tmp_path / "own"))
    sources.build_once(sources.data_folder() / "x", lambda folder: (folder / "file").write_text("data"))
    assert cache.lookup("checkpoints", "nothing") is None
    assert cache.directory() == sources.data_folder().parent


def test_build_once_builds_once(tmp_path):
    calls = []
    for _ in range(2):
        folder = sources.build_once(tmp_path / "made", lambda f: (calls.append(f), (f / "x").write_text("1")))
    assert len(calls) == 1
    assert (folder / "x").read_text() == "1"
    assert [p.name for p in tmp_path.iterdir()] == ["made"]


def test_a_failed_build_leaves_nothing(tmp_path):
    def fail(folder: Path) -> None:
        (folder / "half").write_text("")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        sources.build_once(tmp_path / "made", fail)
    assert list(tmp_path.iterdir()) == []


def test_of_two_that_build_at_once_both_get_the_same(tmp_path):
    def build(folder: Path) -> None:
        if not (tmp_path / "made").exists():  # the other process, meanwhile
            sources.build_once(tmp_path / "made", lambda f: (f / "x").write_text("other"))
        (folder / "x").write_text("mine")

    assert (sources.build_once(tmp_path / "made", build) / "x").read_text() == "other"
    assert [p.name for p in tmp_path.iterdir()] == ["made"]


def test_library_files_are_the_interpreters_own():
    files = sources.library_files()
    assert "json/decoder.py" in files
    assert list(files) == sorted(set(files))
    assert not [f for f in files if "site-packages" in f or f.startswith("test/") or "/tests/" in f]
    assert sources.library_root() == Path(sysconfig.get_paths()["stdlib"])
    assert sources.digest(files[:3]) == sources.digest(files[:3]) != sources.digest(files[:2])
