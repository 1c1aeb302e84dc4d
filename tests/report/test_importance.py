"""Which methods decide, by PED-ANOVA."""

import sys

import pytest
from tests.trials import failed, many, trial

from thrifty.report.importance import ENOUGH, importance

pytest.importorskip("optuna", reason="optuna is not installed")


def made(count):
    """Pruning alone decides the speed, quantization alone the quality."""
    return [trial(f"{i:03}", f"train(adamw){' | prune(ratio=0.5)' if i % 2 else ''}{' | quantize(w8a8)' if i // 2 % 2 else ''}",
                  speed=(4.0 if i % 2 else 1.1) + i / 1000, drop=(0.0 if i // 2 % 2 else 0.2) + i / 10000) for i in range(count)]


def test_what_decides_is_found():
    found = importance(made(40))
    assert found["speedup"]["prune"] > 0.9 > 0.1 > found["speedup"]["quantize"]
    assert found["quality"]["quantize"] > 0.9 and "adamw" not in found["speedup"]  # which every trial has
    for shares in found.values():
        assert sum(shares.values()) == pytest.approx(1) and list(shares.values()) == sorted(shares.values(), reverse=True)


def test_few_trials_say_nothing():
    assert importance(made(ENOUGH - 1)) is None and importance(made(ENOUGH)) is not None
    bad = [failed(f"f{i}", "train()", "nan") for i in range(30)]
    assert importance([*made(ENOUGH - 1), *bad]) is None
    assert importance([trial(f"{i}", "a method of another Thrifty") for i in range(40)]) is None


def test_where_nothing_varies():
    assert importance([trial(f"{i}", "train()", speed=1 + i) for i in range(30)]) == {"speedup": {}, "quality": {}}


def test_many_settings_count_as_one():
    trials = [trial(f"{i}", f"prune(ratio={(i + 1) / 100})" if i % 2 else "", speed=3.0 if i % 2 else 1.0 + i / 100)
              for i in range(40)]
    assert importance(trials)["speedup"] == {"prune": pytest.approx(1)}


def test_without_optuna_there_is_none(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert importance(many(40)) is None
