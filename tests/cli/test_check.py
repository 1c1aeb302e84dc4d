"""`thrifty check` without a recipe: the workload itself is checked, with its own reference recipe."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from thrifty.cli.app import app, guarded
from thrifty.cli.options import DONE, USAGE

ROWS = (Path(__file__).resolve().parent.parent.parent / "examples" / "rows.py").read_text()


def checked(*arguments: str, text: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    (place / "rows.py").write_text(text)
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "argv", ["thrifty", "check", "rows.py", *arguments])
    return guarded(app)


@pytest.mark.parametrize(("reference", "told"), [
    ("train(adamw(lr=0.01), epochs=3)", "train(adamw(lr=0.01), epochs=3)"),
    ("", "the model as it is"),
])
def test_a_workload_alone_is_checked_with_its_reference(reference: str, told: str, tmp_path: Path,
                                                        monkeypatch: pytest.MonkeyPatch,
                                                        capsys: pytest.CaptureFixture[str]) -> None:
    text = re.sub('reference=".*?"', f'reference="{reference}"', ROWS)

    def printed(*arguments: str) -> str:
        assert checked(*arguments, text=text, place=tmp_path, monkeypatch=monkeypatch) == DONE
        return capsys.readouterr().out

    assert printed().startswith(f"ok: {told}\n")
    alone, given = json.loads(printed("--json")), json.loads(printed(reference, "--json"))
    assert alone == given and alone["recipe"] == reference


def test_a_workload_alone_that_is_wrong_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                   capsys: pytest.CaptureFixture[str]) -> None:
    text = ROWS.replace("nn.Linear(64, 2))", "nn.Linear(64, 1))")
    assert checked(text=text, place=tmp_path, monkeypatch=monkeypatch) == USAGE
    assert "the outputs [8, 1] have one value for each target" in capsys.readouterr().err
