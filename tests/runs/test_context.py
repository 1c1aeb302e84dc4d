"""What a run gives its methods."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time

import pytest
import torch
from torch import Tensor, nn

from thrifty import AdamW, Offline, Prune, SingleStream, testing
from thrifty.errors import ThriftyError
from thrifty.recipes.context import Reference, SearchBudgetSpent
from thrifty.runs import clock
from thrifty.runs.context import (
    Measurements,
    Recall,
    calibration,
    labelled,
    make_context,
    rehearsal_context,
    score,
    scored,
)
from thrifty.runs.journal import FILE, Entry, Journal
from thrifty.target import Target


class Slow(nn.Module):
    """Takes 20 ms, and counts how often."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        Slow.calls += 1
        time.sleep(0.02)
        return x


def measurements(journal: Journal, budget: float = 1e9) -> Measurements:
    return Measurements(testing.workload, Target(), "cpu", 0, journal, budget)


def test_scores_are_higher_the_better_and_leave_the_mode():
    model = testing.trained().train()
    assert 0.7 < score(testing.workload, model) <= 1.0
    assert model.training


def test_flops_of_a_score_are_those_of_all_its_batches():
    counted = scored(testing.workload, testing.trained())[1]
    one = 2 * 12 * 12 * 9 * (32 + 2 * 32 * 32) + 2 * (32 * 64 + 64 * 4)
    assert counted == 64 * one


def test_engines_are_made_for_the_batch_that_the_scenario_serves():
    for scenario, batch in ((SingleStream(), 1), (Offline(max_batch=8), 8)):
        workload = dataclasses.replace(testing.workload, scenario=scenario)
        assert make_context(workload, Target(), 0, lambda event: None).batch == batch


def test_calibration_repeats_with_its_seed_and_differs_with_another():
    first, again, other = (torch.cat([x for (x,) in calibration(testing.workload, seed, 40)]) for seed in (1, 1, 2))
    assert len(first) == 40 and torch.equal(first, again) and not torch.equal(first, other)


def test_labelled_batches_are_the_calibration_with_its_targets():
    pairs = list(labelled(testing.workload, 3, 40))
    assert torch.equal(torch.cat([x for (x,), _ in pairs]), torch.cat([x for (x,) in calibration(testing.workload, 3, 40)]))
    assert sum(len(target) for _, target in pairs) == 40


# -- kept, budgeted, charged ------------------------------------------------------------------------------------


def test_a_search_that_was_killed_measures_one_candidate_again_at_most(tmp_path):
    first = measurements(Journal(tmp_path))
    kept = [first.time(Slow()), first.score(testing.trained())]
    with (tmp_path / FILE).open("a") as file:
        file.write('{"kind": "time", "val')  # killed while it wrote
    Slow.calls = 0
    second = measurements(Journal(tmp_path))
    assert [second.time(Slow()), second.score(testing.trained())] == kept
    assert Slow.calls == 0 and len(second.recalled) == 2 and not second.made
    second.time(Slow())
    assert Slow.calls > 0 and len(second.made) == 1 and len(second.timings) == 2


def test_a_reference_stays_open_until_another_comes(monkeypatch, tmp_path):
    opened: list[nn.Module] = []

    def counted(module, *given):
        opened.append(module)
        return clock.opened(module, *given)

    monkeypatch.setattr("thrifty.runs.context.opened", counted)
    monkeypatch.setattr("thrifty.runs.context.ratio", lambda call, reference, target: 0.5)
    x = (torch.randn(64, 256),)
    first, second = (Reference(nn.Linear(256, 256), x, seconds) for seconds in (10.0, 20.0))
    with contextlib.closing(measurements(Journal(tmp_path))) as search:
        taken = [search.time(nn.Linear(256, 256), x, reference=each) for each in (first, first, second)]
    assert [opened.count(each.module) for each in (first, second)] == [1, 1]
    assert taken == [5.0, 5.0, 10.0]


def test_an_answer_to_another_question_is_not_replayed(tmp_path):
    measurements(Journal(tmp_path)).time(Slow())
    second = measurements(Journal(tmp_path))
    assert 0.7 < second.score(testing.trained()) <= 1 and not second.timings
    assert [json.loads(line)["kind"] for line in (tmp_path / FILE).read_text().splitlines()] == ["score"]


def test_a_short_training_is_kept_with_its_weights(tmp_path):
    start = testing.trained()
    before = testing.fingerprint(start)
    first = measurements(Journal(tmp_path))
    trained = first.fit(start, [AdamW(lr=0.01)], 3)
    assert testing.fingerprint(trained) != before and first.made[0].flops > 0
    second = measurements(Journal(tmp_path))
    assert testing.fingerprint(second.fit(testing.trained(), [AdamW(lr=0.01)], 3)) == testing.fingerprint(trained)
    assert not second.made
    with pytest.raises(ThriftyError, match="prune cannot modify a training"):
        second.fit(testing.trained(), [Prune(ratio=0.5)], 1)


def test_a_distilled_block_is_kept_with_its_errors(tmp_path):
    torch.manual_seed(0)
    net, student = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 8)), torch.nn.Linear(8, 8)
    context = make_context(testing.workload, Target(), 0, print, measurements=measurements(Journal(tmp_path)))
    examples = context.record(net, ["1"], [(torch.randn(16, 4),) for _ in range(8)])["1"]
    found = context.distil(student, examples, steps=20)
    assert found.error < found.error_before and found.steps == 20
    second = measurements(Journal(tmp_path))
    kept = second.distil(student, examples, steps=20)
    assert testing.fingerprint(kept.student) == testing.fingerprint(found.student) and not second.made
    assert (kept.error, kept.error_before, kept.steps) == (found.error, found.error_before, 20)
    rehearsed = rehearsal_context(testing.workload, Target(), 0, 8).distil(student, examples)
    assert rehearsed.steps == 0 and testing.fingerprint(rehearsed.student) == testing.fingerprint(student)


def test_a_spent_budget_ends_the_search():
    search = measurements(Journal(), budget=0.05)
    search.time(Slow())
    assert search.remaining() <= 0
    with pytest.raises(SearchBudgetSpent, match=r"the 0\.05 s"):
        search.time(Slow())


def test_what_is_recalled_is_computed_once_in_its_scope_with_its_tensors(tmp_path, monkeypatch):
    monkeypatch.setenv("THRIFTY_CACHE", str(tmp_path))
    asked: list[str] = []

    def compute():
        asked.append("once")
        return {"layer": [["w8a8", 3, 0.25]], "weight": torch.arange(3.0)}

    recall = Recall("model and method")
    first, again = (recall("a key of any length, with spaces", compute) for _ in range(2))
    assert first["layer"] == again["layer"] == [["w8a8", 3, 0.25]] and torch.equal(first["weight"], again["weight"])
    assert asked == ["once"] and len(recall.seconds) == 1 and recall.seconds[0] >= 0
    recall("another", compute)
    Recall("another model")("a key of any length, with spaces", compute)
    assert len(asked) == 3


def test_tensors_of_one_storage_are_kept_under_each_of_their_names(tmp_path, monkeypatch):
    """As plans have them: query, key and value are smoothed by one vector."""
    monkeypatch.setenv("THRIFTY_CACHE", str(tmp_path))
    shared = torch.arange(6.0).reshape(2, 3)
    for _ in range(2):
        kept = Recall("model and method")("key", lambda: {"query": shared, "key": shared, "row": shared[1], "turned": shared.t()})
        assert torch.equal(kept["key"], shared) and torch.equal(kept["row"], shared[1])
        assert torch.equal(kept["turned"], shared.t())


def test_a_context_without_targets_or_a_loss_offers_none():
    untrained = dataclasses.replace(testing.workload, train=None, reference="", loss=None)
    context = make_context(untrained, Target(), 0, print, measurements=measurements(Journal()))
    assert context.labelled is None and context.fit is None and context.time is not None


def test_a_rehearsal_measures_nothing():
    context = rehearsal_context(testing.workload, Target(), 0, 8)
    Slow.calls = 0
    assert context.rehearsal and context.time is not None and context.score is not None and context.fit is not None
    assert context.time(Slow()) < context.time(testing.trained()) and context.score(Slow()) == 0.0
    model = testing.trained()
    assert context.fit(model, [AdamW()], 5) is model
    assert Slow.calls == 0 and sum(len(x) for (x,) in context.calibration()) == 8


def test_a_question_with_a_key_is_answered_by_its_own_entry_in_any_order(tmp_path):
    first = measurements(Journal(tmp_path))
    kept = {key: first.time(Slow(), key=key) for key in ("a", "b")}
    plain = first.time(Slow())
    Slow.calls = 0
    second = measurements(Journal(tmp_path))
    assert [second.time(Slow(), key="b"), second.time(Slow()), second.time(Slow(), key="a")] == [kept["b"], plain, kept["a"]]
    assert Slow.calls == 0 and not second.made
    second.time(Slow(), key="c")
    assert Slow.calls > 0 and [entry.key for entry in Journal(tmp_path).entries] == ["a", "b", "", "c"]


def test_timings_without_keys_answer_questions_with_keys_in_order():
    recorded = Journal(entries=[Entry("time", 0.1, 0.0), Entry("time", 0.2, 0.0)])
    replayed = measurements(recorded)
    assert replayed.time(Slow(), key="x") == 0.1
    replayed.score(testing.trained(), key="z")  # is not recorded, and takes nothing from what is
    assert replayed.time(Slow(), key="y") == 0.2
