from __future__ import annotations

import pytest

from thrifty.report.verbosity import VARIABLE, Verbosity


@pytest.mark.parametrize(("said", "meant"), [
    (None, Verbosity.normal), ("", Verbosity.normal), ("loud", Verbosity.normal), ("quiet", Verbosity.quiet),
    ("verbose", Verbosity.verbose)])
def test_the_environment_says_how_much_is_said(said, meant, monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    if said is not None:
        monkeypatch.setenv(VARIABLE, said)
    assert Verbosity.asked() is meant


def test_what_is_asked_for_is_asked_of_processes_too(monkeypatch):
    monkeypatch.setenv(VARIABLE, "")
    for verbosity in Verbosity:
        verbosity.ask()
        assert Verbosity.asked() is verbosity
