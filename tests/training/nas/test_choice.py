"""Choices: a weighed sum of options, decided in groups."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.training.nas.spaces import Two
from thrifty.errors import NoEffect, ThriftyError
from thrifty.training.nas.choice import Choice, decide, decisions, places, skips
from thrifty.training.nas.choices import Choices, choices


def test_a_choice_is_the_weighed_sum_of_its_options():
    place = Choice({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3), "skip": nn.Identity()})
    x = torch.randn(5, 3)
    each = [option(x) for option in place.options]
    torch.testing.assert_close(place(x), sum(each) / 3)
    place.mixture = torch.tensor([0.5, 0.2, 0.3])
    torch.testing.assert_close(place(x), 0.5 * each[0] + 0.2 * each[1] + 0.3 * each[2])
    place.auxiliary = 0.25
    torch.testing.assert_close(place(x), 0.5 * each[0] + 0.2 * each[1] + 0.3 * each[2] + 0.25 * x)


def test_of_a_single_path_one_option_runs():
    ran = []
    options = {name: nn.Linear(3, 3) for name in "ab"}
    for name, option in options.items():
        option.register_forward_hook(lambda *_, name=name: ran.append(name))
    place = Choice(options)
    place.mixture, place.chosen = torch.tensor([0.0, 1.0]), 1
    place(torch.ones(1, 3))
    assert ran == ["b"]


def test_partial_channels_pass_what_is_not_chosen_among_and_shuffle():
    place = Choice({"double": lambda width: Doubled(width), "skip": lambda width: nn.Identity()}, channels=8, partial=4)
    place.mixture = torch.tensor([1.0, 0.0])
    x = torch.arange(8.0)[None, :, None, None]
    found = place(x).flatten().tolist()
    assert sorted(found) == [0.0, 2.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0] and found != sorted(found)
    assert place.options[0].width == 2 and place.decided("double").width == 8


class Doubled(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, x):
        return 2 * x


def test_groups_are_decided_alike():
    model = Two(group="cell")
    (one,) = decisions(model)
    assert one.places == ("first", "second")
    decided = decide(model, {"cell": "linear"})
    assert isinstance(decided.first, nn.Sequential) and not places(decided)
    assert skips({"a": "skip", "b": "linear"}) == 0.5


def test_what_cannot_be_chosen_among_is_told():
    with pytest.raises(ThriftyError, match="a search space of one"):
        Choice({"only": nn.Identity()})
    with pytest.raises(ThriftyError, match=r"different shapes, which cannot be summed: a \(2, 3\), b \(2, 4\)"):
        Choice({"a": nn.Linear(3, 3), "b": nn.Linear(3, 4)})(torch.ones(2, 3))
    with pytest.raises(ThriftyError, match="give channels="):
        Choice({"a": lambda width: nn.Identity(), "b": nn.Identity()})
    with pytest.raises(ThriftyError, match="divisible by 3"):
        Choice({"a": lambda width: nn.Identity(), "b": lambda width: nn.Identity()}, channels=8, partial=3)
    with pytest.raises(ThriftyError, match="the genotype names 'conv'"):
        decide(Two(), {"first": "conv", "second": "skip"})
    model = nn.Sequential(*[Choice({"a": nn.Identity(), other: nn.Identity()}, "g") for other in "bc"])
    with pytest.raises(ThriftyError, match="group 'g' have different options"):
        decisions(model)


# -- from a plain model -------------------------------------------------------------------------------------------


def test_a_plain_model_gets_choices_that_keep_what_it_was():
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.Flatten(),
                        nn.Linear(8 * 16, 10))
    x = torch.randn(2, 3, 4, 4)
    space = choices(net)
    assert [place.names for place in places(space).values()] == [
        ("as it is", "1x1", "separable"), ("as it is", "1x1", "separable", "skip"), ("as it is", "low rank")]
    space(x).sum().backward()
    kept = decide(space, dict.fromkeys(places(space), "as it is"))
    torch.testing.assert_close(kept(x), net(x))


@pytest.mark.parametrize("seed", range(2))
def test_what_is_built_from_a_plan_is_built_again_alike(seed):
    net = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 16))
    first, again = (choices(net, seed=seed)(torch.ones(1, 16)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, choices(net, seed=seed + 1)(torch.ones(1, 16)))


def test_a_model_without_a_layer_to_choose_for_is_told_so():
    with pytest.raises(NoEffect, match="a search space of one has nothing to search"):
        choices(nn.Sequential(nn.ReLU()))
    with pytest.raises(NoEffect, match="'body'"):
        Choices(layers="body")(nn.Sequential(nn.Linear(8, 8)))
