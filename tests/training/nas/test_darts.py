"""The search: decides, repeats, resumes, warns."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn

from tests.training.nas.spaces import Scale, Two, parity
from thrifty import AdamW, CrossEntropy, fit, testing
from thrifty.errors import ThriftyError
from thrifty.recipes.hyperparameters import HyperparameterError
from thrifty.recipes.phases import Train
from thrifty.training.nas import mixtures
from thrifty.training.nas.choice import Choice, places
from thrifty.training.nas.choices import Choices
from thrifty.training.nas.darts import Darts, SkipsTookOver, expected_latency, sides
from thrifty.training.session import TrainingSession


def searched(method: Darts, model: nn.Module | None = None, seed: int = 0, epochs: float = 12):
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SkipsTookOver)
        done = fit(model or Two(), [method, AdamW(lr=0.03)], parity(), CrossEntropy(), seed=seed, batch_size=64,
                   settings=Train(epochs=epochs, warmup=0.0))
    return done, done.plans[-1][1].values["decided"]


@pytest.mark.parametrize("method", [Darts("softmax", rate=0.1), Darts("softmax", order=2, rate=0.1), Darts("dirichlet", rate=0.1),
                                    Darts("gumbel", rate=0.1), Darts("path", rate=0.1, warmup=0.5)], ids=str)
def test_it_finds_what_the_data_needs_and_the_same_seed_finds_it_again(method):
    done, genotype = searched(method)
    again, same = searched(method)
    assert genotype == same and "linear" in genotype.values()  # of skips and zeros alone nothing can be learnt
    assert genotype["first"] != "zero" and genotype["second"] != "zero"
    assert not places(done.model)
    weights, repeated = done.model.state_dict().values(), again.model.state_dict().values()
    assert all(torch.equal(a, b) for a, b in zip(weights, repeated, strict=True))


@pytest.mark.parametrize("method", [Darts("softmax", beta=1.0), Darts(anchor=0.1), Darts(auxiliary=1.0), Darts(weights="norms"),
                                    Darts(warmup=0.5), Darts(edges=True), Darts("path", edges=True)], ids=str)
def test_every_cure_trains_and_decides(method):
    done, genotype = searched(method, Two(node="sum" if method.edges else ""), epochs=2)
    assert set(genotype) == {"first", "second"} and not places(done.model)
    assert all(p.requires_grad for p in done.model.parameters())


def test_batch_norms_alone_are_trained_where_that_is_asked():
    torch.manual_seed(0)
    model = Two()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    session = TrainingSession(model, [Darts(weights="norms"), AdamW(lr=0.1)], CrossEntropy(), steps=4)
    data = parity(64)
    session.step(((data.tensors[0],), data.tensors[1]))
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved and all(".1." in name for name in moved)


def test_weights_and_mixture_see_different_examples_whatever_the_batch():
    (x, _) = parity(400).tensors
    first = sides((x,))
    assert 160 < int(first.sum()) < 240
    order = torch.randperm(400)
    assert torch.equal(sides((x[order],)), first[order])
    assert torch.equal(torch.cat([sides((part,)) for part in x.split(7)]), first)


def test_a_warm_up_leaves_the_logits_and_the_steps_after_it_do_not():
    torch.manual_seed(0)
    method, data = Darts(warmup=0.5), parity(64)
    session = TrainingSession(Two(), [method], CrossEntropy(), steps=4)
    before = session.memory(method)["logits"]["first"].detach().clone()
    for expected in (True, True, False):
        session.step(((data.tensors[0],), data.tensors[1]))
        assert torch.equal(session.memory(method)["logits"]["first"].detach(), before) == expected


# -- skips --------------------------------------------------------------------------------------------------------


def easy() -> nn.Module:
    """What a skip serves best: the other options spoil it."""
    return nn.Sequential(Choice({"skip": nn.Identity(), "zero": Scale(0.0)}), Choice({"skip": nn.Identity(), "zero": Scale(0.0)}),
                         nn.Linear(4, 2))


def linear_data():
    x = torch.randn(256, 4, generator=torch.Generator().manual_seed(0))
    return torch.utils.data.TensorDataset(x, (x[:, 0] > 0).long())


def test_skips_that_take_over_are_warned_of_and_capped():
    torch.manual_seed(0)
    with pytest.warns(SkipsTookOver, match=r"skips in 100% of its decisions \(0: skip, 1: skip\)"):
        done = fit(easy(), [Darts("softmax", rate=0.1), AdamW(lr=0.03)], linear_data(), CrossEntropy(), settings=Train(epochs=12))
    assert done.plans[-1][1].values["decided"] == {"0": "skip", "1": "skip"}
    capped = Darts("softmax", rate=0.1, most_skips=0.5)
    done = fit(easy(), [capped, AdamW(lr=0.03)], linear_data(), CrossEntropy(), settings=Train(epochs=12))
    assert sorted(done.plans[-1][1].values["decided"].values()) == ["skip", "zero"]


# -- latency ------------------------------------------------------------------------------------------------------


def test_expected_latency_is_the_weighed_sum_over_the_most():
    model = Two()
    for place in places(model).values():
        place.seconds = {"skip": 0.0, "linear": 3.0, "zero": 1.0}
    from thrifty.training.nas.choice import decisions
    weights = {"first": torch.tensor([0.2, 0.5, 0.3]), "second": torch.tensor([0.0, 1.0, 0.0])}
    assert float(expected_latency(model, decisions(model), weights)) == pytest.approx((1.5 + 0.3 + 3.0) / 6)


def test_latency_in_the_loss_turns_a_search_to_what_is_cheap():
    model = Two()
    for place in places(model).values():
        place.seconds = {"skip": 0.0, "linear": 1.0, "zero": 1.0}
    assert set(searched(Darts("softmax", rate=0.1, latency=100.0), model, epochs=4)[1].values()) == {"skip"}
    with pytest.raises(ThriftyError, match=r"put choices\(engine=\.\.\.\) before"):
        searched(Darts(latency=1.0))


# -- resumption, bad input ----------------------------------------------------------------------------------------


def test_its_state_goes_on_where_it_was():
    data = parity(64)
    batch = ((data.tensors[0],), data.tensors[1])

    def begun(method):
        torch.manual_seed(0)
        return TrainingSession(Two(), [method], CrossEntropy(), steps=6)

    method = Darts("softmax")
    whole = begun(method)
    for _ in range(2):
        whole.step(batch)
    state = copy.deepcopy(whole.state_dict())
    kept = {name: a.detach().clone() for name, a in whole.memory(method)["logits"].items()}
    whole.step(batch)
    other = begun(method)
    other.load_state_dict(state)
    assert all(torch.equal(other.memory(method)["logits"][name].detach(), a) for name, a in kept.items())
    other.step(batch)
    for name, a in whole.memory(method)["logits"].items():
        assert torch.equal(a, other.memory(method)["logits"][name])


def test_hyperparameters_that_do_not_go_together_are_told():
    with pytest.raises(HyperparameterError, match="order=2, weights=norms"):
        searched(Darts(order=2, weights="norms"))
    with pytest.raises(HyperparameterError, match="anchor is for Dirichlet"):
        searched(Darts("softmax", anchor=1.0))
    with pytest.raises(ThriftyError, match="none names its node"):
        searched(Darts(edges=True))
    with pytest.raises(ThriftyError, match="has none: use weights=all"):
        fit(easy(), [Darts(weights="norms")], linear_data(), CrossEntropy(), settings=Train(steps=1))


@pytest.mark.parametrize("kind", ["softmax", "dirichlet", "gumbel", "path"])
def test_mixtures_sum_to_one_and_carry_gradients(kind):
    torch.manual_seed(0)
    logits = torch.randn(4, requires_grad=True)
    for progress in (0.0, 0.5, 1.0):
        weights = mixtures.drawn(kind, logits, progress)
        assert float(weights.sum()) == pytest.approx(1, abs=1e-5) and (weights >= 0).all()
    (weights * torch.arange(4.0)).sum().backward()
    assert logits.grad is not None and logits.grad.abs().max() > 0
    assert float(mixtures.mean(kind, logits).sum()) == pytest.approx(1, abs=1e-5)


def test_the_anchor_is_nothing_at_the_flat_distribution_and_grows_away_from_it():
    flat = torch.full((3,), -mixtures.LEAST)
    assert float(mixtures.anchored(flat)) == pytest.approx(0, abs=1e-5)
    assert float(mixtures.anchored(torch.tensor([3.0, 0.0, -2.0]))) > 0.1


def test_a_plain_model_is_given_choices():
    done = fit(testing.trained(), [Darts()], testing.workload.train, CrossEntropy(), settings=Train(steps=3))
    opened, decided = (plan.values for _, plan in done.plans)
    assert set(opened["opened"]) == set(decided["decided"]) == {"stem.0", "inner.0", "inner.3", "head.0", "head.2"}
    rows = Choices().list_layers(done.model, done.plans[-1][1])
    assert {row["layer"]: row["scheme"] for row in rows} == decided["decided"]
    assert all(type(row["bytes"]) is int and row["error"] is None for row in rows)
