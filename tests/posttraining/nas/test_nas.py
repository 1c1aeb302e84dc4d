"""The search on a small net: what is kept, what is refused, what is built."""

from __future__ import annotations

import copy
import dataclasses
import json
import time

import pytest
import torch
from tests.posttraining.nas.laboratory import Laboratory
from torch import nn

from thrifty import testing
from thrifty.errors import ThriftyError
from thrifty.posttraining.nas import alternatives, blocks
from thrifty.posttraining.nas.choosing import OutOfReach
from thrifty.posttraining.nas.nas import Nas
from thrifty.posttraining.nas.table import Table
from thrifty.recipes.context import Context
from thrifty.recipes.hyperparameters import HyperparameterError
from thrifty.recipes.recipe import Recipe
from thrifty.runs.context import Recall, score

FEW = ("prune(ratio=0.5)", "low_rank(ratio=0.25)", "quantize(w8a8)")


def nas(limits: str = "latency<=60%", **changes) -> Nas:
    return Nas(limits, **{"alternatives": FEW, "engine": "eager", "steps": 3, "rounds": 2} | changes)


def test_the_limit_is_kept_and_what_is_built_is_what_was_measured():
    found = Laboratory()
    plan = found.plan(nas())
    table = Table.from_json(plan.values["table"])
    after = nas().build(testing.trained(), plan)
    assert not plan.values["unchanged"]
    assert found.time(after) <= 0.6 * table.own.seconds
    chosen = next(whole for whole in table.wholes if list(whole.names) == plan.values["chosen"])
    assert testing.workload.quality.higher_is_better
    assert score(testing.workload, testing.trained()) - score(testing.workload, after) == pytest.approx(chosen.row.drop)
    assert any(text.startswith("chosen: ") for text in found.said)


def test_a_second_constraint_costs_no_new_scoring_of_alternatives():
    found = Laboratory()
    first = found.plan(nas())
    scored, table = found.scored, first.values["table"]["blocks"]
    second = found.plan(nas("bytes<=40%, latency<=90%"))
    assert second.values["table"]["blocks"] == table
    new = [whole["names"] for whole in second.values["table"]["wholes"]
           if whole["names"] not in [one["names"] for one in first.values["table"]["wholes"]]]
    assert found.scored - scored == len(new)  # whole models that the first had not measured


def test_a_killed_search_goes_on_and_loses_one_candidate_at_most():
    whole = Laboratory()
    expected = whole.plan(nas())
    total, cut = whole.timed + whole.scored, 9
    killed = Laboratory()
    killed.stop_after = cut
    with pytest.raises(KeyboardInterrupt):
        killed.plan(nas())
    kept = copy.deepcopy(killed.kept)
    resumed = Laboratory()
    resumed.kept = kept
    again = resumed.plan(nas())
    assert again.values["chosen"] == expected.values["chosen"]
    assert resumed.timed + resumed.scored <= total - cut + 2  # one candidate: its score and its time


def test_a_plan_follows_from_its_table():
    from thrifty.posttraining.nas.choosing import choose, uniform

    method = nas()
    plan = Laboratory().plan(method)
    table = Table.from_json(json.loads(json.dumps(plan.values["table"])))
    measured = {whole.names: whole for whole in table.wholes}
    again = choose(dataclasses.replace(table, wholes=()), method._limits, method.minimize, method.rounds, measured.__getitem__,
                   uniform(table))
    assert list(again.names) == plan.values["chosen"]


def test_what_cannot_be_is_listed_with_its_reason():
    plan = Laboratory().plan(nas())
    assert "finds nothing to remove" in plan.values["table"]["refused"]["stem"]["prune(ratio=0.5)"]
    rows = nas().list_layers(testing.trained(), plan)
    assert [row["layer"] for row in rows] == ["stem", "inner", "head"]
    assert all(type(row["bytes"]) is int and type(row["error"]) is float for row in rows)  # as an artifact's manifest has them


class Attends(nn.Module):
    """Query, key and value read one tensor, so that one vector smooths all three."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(64, 64) for _ in range(3))

    def forward(self, x):
        weights = (self.query(x)[:, :, None] * self.key(x)[:, None]).softmax(-1)
        return x + (weights @ self.value(x)[:, :, None])[..., 0]


def test_integers_of_layers_that_read_one_tensor_are_kept_and_built_again(tmp_path, monkeypatch):
    monkeypatch.setenv("THRIFTY_CACHE", str(tmp_path))
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 64), Attends(), nn.Linear(64, 4))
    tables = []
    for _ in range(2):  # the second recalls what the first decided
        laboratory = Laboratory()
        context = dataclasses.replace(laboratory.context(), example=(torch.randn(1, 16),), recall=Recall("an attending net"),
                                      calibration=lambda: iter([(torch.randn(8, 16),)]), score=lambda model, key="": 0.5)
        with torch.no_grad():
            plan = nas(alternatives=("quantize(w8a8)",)).plan(copy.deepcopy(net), context)
        tables.append(Table.from_json(plan.values["table"]))
    assert not tables[0].refused.get("1") and [row.name for row in tables[0].blocks["1"]][:2] == ["as it is", "quantize(w8a8)"]
    assert tables[0].blocks == tables[1].blocks


def test_alternatives_that_take_too_long_are_left_out():
    class Slow(Laboratory):
        def score(self, model, *, key=""):
            found = super().score(model)
            if key and self.scored > 1:
                time.sleep(0.2)
            return found

    limit = 0.15
    plan = Slow().plan(nas(seconds=limit, alternatives=("prune(ratio=0.5)",), leave_out=False, blocks="inner|head"))
    assert {why for found in plan.values["table"]["refused"].values() for why in found.values()} == {
        f"it took longer than {limit} s"}
    assert "no block has an alternative" in plan.values["unchanged"]


def test_a_time_limit_ends_work_at_the_next_module_and_leaves_nothing_behind():
    net, calls = torch.nn.Sequential(torch.nn.Identity(), torch.nn.Identity()), 0
    with pytest.raises(ThriftyError, match="it took longer than 0.05 s"), alternatives.within(0.05):
        while calls < 1000:
            net(torch.zeros(1))
            calls += 1
            time.sleep(0.01)
    assert 1 <= calls < 1000
    with pytest.raises(ThriftyError, match="it took longer than 0.01 s"), alternatives.within(0.01):  # no module is called
        time.sleep(0.02)
    with alternatives.within(60):
        net(torch.zeros(1))
    assert not torch.nn.modules.module._global_forward_pre_hooks


def test_without_a_gain_the_model_is_unchanged():
    class Equal(Laboratory):
        def time(self, module, inputs=None, *, engine="eager", key="", reference=None):
            return 1e-3

    found = Equal()
    plan = found.plan(nas(leave_out=False))
    assert "no measured gain" in plan.values["unchanged"] and found.said[-1].startswith("unchanged")
    model = testing.trained()
    assert testing.fingerprint(nas().build(copy.deepcopy(model), plan)) == testing.fingerprint(model)
    assert nas().claims(model, model) == ()


def test_bad_input_is_answered_with_a_way_out():
    with pytest.raises(OutOfReach, match="the nearest has latency"):
        Laboratory().plan(nas("latency<=1us", leave_out=False))
    with pytest.raises(HyperparameterError, match="latency is written 2ms"):
        Nas("latency<=2MB")
    with pytest.raises(HyperparameterError, match=r"add drop<=1pt"):
        Laboratory().plan(Nas("bytes<=50%", minimize="latency"))
    with pytest.raises(HyperparameterError, match="a search space of one"):
        Laboratory().plan(Nas(alternatives=(), leave_out=False))
    with pytest.raises(ThriftyError, match="is not a transform"):
        Nas(alternatives=("train(epochs=1)",)).provides  # noqa: B018
    with pytest.raises(ThriftyError, match="matches no module"):
        Laboratory().plan(nas(blocks="body"))
    with pytest.raises(ThriftyError, match="blocks cannot be nested"):
        Laboratory().plan(nas(blocks=r"head|head\.0"))


def test_what_is_quantized_cannot_be_trained_after_and_what_is_not_can():
    assert "float-weights" in Nas().removes and "quantized" in Nas().provides
    assert "float-weights" not in nas(alternatives=("prune(ratio=0.5)",)).removes
    text = "nas(limits='latency<=50%', alternatives=('prune(ratio=0.5)',))"
    assert str(Recipe.parse(text)) == text


def test_bits_by_sensitivity_are_one_case_of_it():
    torch.manual_seed(0)
    model = Body().eval()
    method = Nas("bytes<=45%", alternatives=("quantize(w8a8)", "quantize(w8a16)"), leave_out=False, blocks="up|down|embed",
                 engine="eager")
    small = method(model, [torch.randn(32, 6) for _ in range(4)])
    kinds = {type(small.get_submodule(f"layers.{i}.{name}")).__name__ for i in range(3) for name in ("up", "down")}
    assert kinds <= {"Linear", "QuantLinear", "GroupedLinear"} and kinds != {"Linear"}
    held = [sum(x.numel() * x.element_size() for x in net.state_dict().values()) for net in (model, small)]
    assert held[1] <= 0.45 * held[0]


# -- blocks -------------------------------------------------------------------------------------------------------


class Layer(nn.Module):
    """Called with a keyword, a constant and an optional mask, as Transformers' layers are."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, hidden, mask=None, scale: float = 1.0):
        return (hidden + scale * self.down(torch.relu(self.up(hidden))) * (1 if mask is None else mask),)


class Body(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 16)
        self.layers = nn.ModuleList([Layer(16) for _ in range(3)])
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        x = self.embed(x)
        for layer in self.layers:
            (x,) = layer(x, mask=torch.ones(1, 1), scale=0.5)
        return self.head(x)


def test_blocks_are_found_with_the_form_of_their_calls():
    model = Body().eval()
    assert blocks.names(model) == ["embed", "layers.0", "layers.1", "layers.2", "head"]
    found, left = blocks.blocks(model, blocks.names(model), (torch.randn(1, 6),))
    layer = found[1]
    assert not left and [one.name for one in found] == blocks.names(model)
    assert layer.skippable and layer.wrapped and not layer.form.simple and found[0].form.simple and not found[0].skippable
    alone = blocks.apart(model.layers[0], layer.form)
    assert torch.equal(alone(*layer.example)[0], model.layers[0](layer.example[0], mask=torch.ones(1, 1), scale=0.5)[0])
    seen = blocks.calls(model, "layers.1", [(torch.randn(4, 6),)] * 3, most=10**9)
    assert len(seen) == 3 and torch.equal(alone.__class__(model.layers[1], layer.form)(*seen[0].args)[0], seen[0].output[0])


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(*(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)) for _ in range(2)))

    def forward(self, x):
        return torch.relu(x + self.body(x))


class Around(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ModuleDict({"net": nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), Residual(), Residual())})

    def forward(self, x):
        return self.inner["net"](x)


def test_a_residual_block_is_one_block_and_a_module_around_the_model_is_none():
    assert blocks.names(Around().inner["net"]) == ["0", "1", "2"]
    assert blocks.names(Around()) == ["inner.net.0", "inner.net.1", "inner.net.2"]
    stages = nn.Sequential(nn.Sequential(Residual(), Residual()), nn.Sequential(Residual()), nn.Linear(4, 2))
    assert blocks.names(stages) == ["0.0", "0.1", "1.0", "2"]


@pytest.mark.parametrize("text", ["prune(ratio=0.5)", "low_rank(ratio=0.3)", "quantize(w8a8)",
                                  "prune(ratio=0.5) | quantize(w8a8)", alternatives.LEFT_OUT])
def test_an_alternative_is_built_again_from_what_was_decided(text):
    torch.manual_seed(0)
    model = Body().eval()
    found, _ = blocks.blocks(model, ["layers.1"], (torch.randn(1, 6),))
    seen = blocks.calls(model, "layers.1", [(torch.randn(16, 6),) for _ in range(4)], most=10**9)
    context = dataclasses.replace(Context(example=(), calibration=lambda: iter(())), distil=distilled)
    with torch.no_grad():
        made = alternatives.make(model.layers[1], found[0], text, seen, context, 5)
        values, tensors = made.to_values()
        again = alternatives.Made.of(text, json.loads(json.dumps(values)), tensors)
        outputs = []
        for one in (made, again):
            copied = copy.deepcopy(model)
            copied.layers[1] = alternatives.build(copied.layers[1], found[0], one)
            outputs.append(copied(torch.ones(2, 6)))
    assert torch.equal(*outputs) and not torch.equal(outputs[0], model(torch.ones(2, 6)))
    trained = [part for part, _, _ in made.parts].count(alternatives.WEIGHTS)
    assert trained == 1 if "prune" in text else trained <= ("low_rank" in text)


def distilled(student, examples, *, steps=100, seconds=1e9, key=""):
    from thrifty.training.distillation.blockwise import distil_block

    with torch.enable_grad():
        return distil_block(student, examples, steps=steps)


def test_what_runs_twice_or_shares_its_weights_stays():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.again, self.idle = nn.Linear(4, 4), nn.Linear(4, 4)
            self.one, self.other = nn.Linear(4, 4), nn.Linear(4, 4)
            self.other.weight = self.one.weight

        def forward(self, x):
            return self.other(self.one(self.again(self.again(x))))

    model = Twice().eval()
    found, left = blocks.blocks(model, blocks.names(model), (torch.ones(1, 4),))
    assert not found and left == {"again": "it runs 2 times in a request", "idle": "it does not run",
                                  "one": "another module has its weights too", "other": "another module has its weights too"}
