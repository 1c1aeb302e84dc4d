"""What every optimizer shares."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from thrifty import Adafactor, AdamW, AdamW8bit, CrossEntropy, Lion, Muon, ScheduleFree, Soap, Sophia
from thrifty.recipes.session import Session
from thrifty.training.optimizers.optimizer import Optimizer, WrongOptimizer, optimizer_card
from thrifty.training.session import TrainingSession

EVERY = [AdamW(), Sophia(), Muon(), Soap(), Lion(), Adafactor(), ScheduleFree(), AdamW8bit()]


@dataclass(frozen=True)
class Plain(Optimizer):
    """Gradient descent, as an optimizer of one's own would be written."""

    weight_decay: float = 0.25
    name: ClassVar[str] = "plain"
    card = optimizer_card(trade_off="none", paper="none")

    def make(self, session: Session, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return torch.optim.SGD(groups, lr=0.1)


def session_of(method: Optimizer) -> TrainingSession:
    net = nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 4), nn.Linear(4, 3))
    return TrainingSession(net, [method], CrossEntropy(), steps=2)


def test_it_has_no_hyperparameter_and_is_not_made_itself() -> None:
    assert dataclasses.fields(Optimizer) == ()
    with pytest.raises(TypeError, match="abstract"):
        Optimizer()  # type: ignore[abstract]


@pytest.mark.parametrize("method", [*EVERY, Plain()], ids=lambda method: method.name)
def test_cards_differ_in_what_it_costs_and_where_it_comes_from_alone(method: Optimizer) -> None:
    assert method.stage == "optimizer"
    assert dataclasses.replace(method.card, trade_off="none", paper="none", refuses=frozenset()) == Plain.card
    assert method.card.refuses <= {"sharded", "split"}


@pytest.mark.parametrize("method", [*EVERY, Plain()], ids=lambda method: method.name)
def test_matrices_alone_are_decayed_and_the_state_names_its_method(method: Optimizer) -> None:
    session = session_of(dataclasses.replace(method, weight_decay=0.25))
    held = [(p, group["weight_decay"]) for group in session.optimizer.param_groups for p in group["params"]]
    assert sorted(id(p) for p, _ in held) == sorted(map(id, session.model.parameters()))
    assert all(decay == (0.25 if p.ndim > 1 else 0.0) for p, decay in held)
    state = session.optimizer.state_dict()
    assert state["made_by"] == method.name
    with pytest.raises(WrongOptimizer, match=f"this state is another, which {method.name} cannot resume from"):
        session.optimizer.load_state_dict({**state, "made_by": "another"})


def test_nothing_is_claimed_of_the_state_where_it_is_not_light() -> None:
    assert session_of(Plain()).claims() == ()


@pytest.mark.parametrize("method", EVERY, ids=lambda method: method.name)
def test_what_is_to_be_tuned_begins_with_the_learning_rate_and_is_there(method: Optimizer) -> None:
    assert method.tuned[0] == "lr" and all(hasattr(method, name) for name in method.tuned)
