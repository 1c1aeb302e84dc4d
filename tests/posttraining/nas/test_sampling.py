"""The search among subnets of a small net: what is kept, what is chosen, what is refused."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import time

import pytest
import torch
from tests.posttraining.nas.laboratory import Laboratory
from torch import nn

from thrifty import testing
from thrifty.posttraining.nas import sampling
from thrifty.posttraining.nas.choosing import OutOfReach
from thrifty.posttraining.nas.subnets import Subnets
from thrifty.posttraining.nas.table import Table
from thrifty.recipes.context import SearchBudgetSpent
from thrifty.runs.context import score
from thrifty.training.distillation.blockwise import distil_block


def subnets(limits: str = "latency<=60%", **changes) -> Subnets:
    return Subnets(limits, **{"engine": "eager", "trials": 8, "steps": 0} | changes)


@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
def test_the_limit_is_kept_and_what_is_built_is_what_was_measured(sampler):
    found, method = Laboratory(), subnets(sampler=sampler, trials=10)
    plan = found.plan(method)
    table, after = Table.from_json(plan.values["table"]), method.build(testing.trained(), plan)
    assert not plan.values["unchanged"] and len(table.wholes) > 5
    assert found.time(after) <= 0.6 * table.own.seconds
    chosen = next(whole for whole in table.wholes if list(whole.names) == plan.values["chosen"])
    assert score(testing.workload, testing.trained()) - score(testing.workload, after) == pytest.approx(chosen.row.drop)
    kept = [whole for whole in table.wholes if whole.row.seconds <= 0.6 * table.own.seconds]
    assert table.loss(chosen.row) == min(table.loss(whole.row) for whole in kept)
    again = Laboratory().plan(method)
    assert again.values == plan.values  # the same seed proposes the same
    assert all(torch.equal(again.tensors[name], x) for name, x in plan.tensors.items())


def test_batch_norms_are_taken_anew_for_every_subnet():
    """Without it the subnet's quality is that of another model: BN statistics of the whole net are not its own."""
    plan = Laboratory().plan(subnets(depth=False, kernel=False))
    stale = subnets().build(testing.trained(), dataclasses.replace(plan, tensors={}))
    fresh = subnets().build(testing.trained(), plan)
    assert {name.rpartition(".")[2] for name in plan.tensors} == {"running_mean", "running_var"}
    own, x = testing.trained().eval(), testing.workload.train[:256][0]
    with torch.no_grad():
        errors = [float((net(x) - own(x)).square().mean()) for net in (stale, fresh)]
    assert errors[1] < errors[0]
    weights = dict(fresh.named_parameters())
    assert all(torch.equal(p, weights[name]) for name, p in stale.named_parameters())


def test_a_small_space_is_tried_whole():
    found = Laboratory()
    plan = found.plan(subnets(depth=False, kernel=False, width="0.5", trials=8))
    assert len(plan.values["table"]["wholes"]) == 2**3 - 1


def test_a_killed_search_goes_on_and_another_limit_costs_nothing_that_is_known():
    whole = Laboratory()
    expected = whole.plan(subnets())
    total, cut = whole.timed + whole.scored, 7
    killed = Laboratory()
    killed.stop_after = cut
    with pytest.raises(KeyboardInterrupt):
        killed.plan(subnets())
    resumed = Laboratory()
    resumed.kept = copy.deepcopy(killed.kept)
    again = resumed.plan(subnets())
    assert again.values == expected.values
    assert resumed.timed + resumed.scored <= total - cut + 2  # one candidate: its score and its time
    scored = resumed.scored
    other = resumed.plan(subnets("bytes<=70%"))
    known = {tuple(one["names"]) for one in expected.values["table"]["wholes"]}
    new = [one for one in other.values["table"]["wholes"] if tuple(one["names"]) not in known]
    assert resumed.scored - scored == len(new) < len(other.values["table"]["wholes"])


def test_the_best_are_distilled_and_taken_where_they_are_better():
    class Teaching(Laboratory):
        learned = 0

        def context(self):
            return dataclasses.replace(super().context(), distil=self.distil)

        def distil(self, student, examples, *, steps=100, seconds=1e9, key=""):
            self.learned += 1
            return distil_block(student, examples, steps=steps)

    found, method = Teaching(), subnets(steps=20, depth=False, kernel=False)
    plan = found.plan(method)
    assert found.learned == sampling.FINALISTS
    assert plan.values["chosen"][-1] == "distilled for 20 steps"
    table = Table.from_json(plan.values["table"])
    rows = {whole.names: whole.row for whole in table.wholes}
    before = rows[tuple(plan.values["chosen"][:-1])]
    assert table.loss(rows[tuple(plan.values["chosen"])]) < table.loss(before)
    after = method.build(testing.trained(), plan)
    assert score(testing.workload, testing.trained()) - score(testing.workload, after) == pytest.approx(
        rows[tuple(plan.values["chosen"])].drop)


def test_limits_out_of_reach_name_the_nearest():
    with pytest.raises(OutOfReach, match=r"the nearest has latency .* ms \(asked: .*, as it is: .* ms\): .*width"):
        Laboratory().plan(subnets("latency<=0.001%", depth=False))


def test_no_gain_leaves_the_model_as_it_is():
    class Even(Laboratory):
        def time(self, module, inputs=None, *, engine="eager", key="", reference=None):
            super().time(module)
            return 1e-3

    found = Even()
    plan = found.plan(subnets())
    assert plan.values["unchanged"].startswith("no measured gain: no subnet saves a significant amount of latency")
    after = subnets().build(testing.trained(), plan)
    assert subnets().claims(testing.trained(), after) == ()
    assert any(text.startswith("unchanged: no measured gain") for text in found.said)


def test_a_net_without_subnets_stays_as_it_is():
    plan = Laboratory().plan(subnets(), nn.Sequential(nn.Flatten(), nn.Linear(144, 4)))
    assert plan.values["unchanged"].startswith("there are no subnets")


def test_what_takes_too_long_is_left_out_and_listed():
    class Slow(Laboratory):
        def score(self, model, *, key=""):
            if key and self.scored:
                time.sleep(0.7)
            return super().score(model)

    plan = Slow().plan(subnets(trials=2, width="0.5", depth=False, kernel=False, seconds=0.6))
    assert set(plan.values["refused"].values()) == {"it took longer than 0.6 s"}


def test_where_the_seconds_run_out_the_best_so_far_is_taken():
    class Spent(Laboratory):
        def time(self, module, inputs=None, *, engine="eager", key="", reference=None):
            if self.timed > 5:
                raise SearchBudgetSpent("the seconds are spent")
            return super().time(module)

    found = Spent()
    plan = found.plan(subnets("latency<=80%"))
    assert len(plan.values["table"]["wholes"]) == 5 and not plan.values["unchanged"]
    assert "the seconds are spent; the best of 6 models is taken" in found.said


def test_a_subnet_that_is_proposed_again_costs_nothing():
    found = Laboratory()
    plan = found.plan(subnets(trials=40, depth=False, kernel=False, width="0.5,0.75"))  # of 27, all are tried
    names = [tuple(one["names"]) for one in plan.values["table"]["wholes"]]
    assert len(set(names)) == len(names) == 26 and found.scored == 27
    assert all(a != b for a, b in itertools.pairwise(names))
