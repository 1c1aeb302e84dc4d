"""Which layers are adapted: patterns, the nearest names, and layers whose weight is read elsewhere."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from thrifty import CrossEntropy, Ia3, Lora, Recipe, Vera
from thrifty.errors import ThriftyError
from thrifty.recipes.hyperparameters import HyperparameterError, matches
from thrifty.training.peft.layers import chosen, hindrances
from thrifty.training.session import TrainingSession
from thrifty.workloads.embedded.python_lm import LanguageModel

pytest.importorskip("peft")
LINEAR = (nn.Linear,)


def lm() -> LanguageModel:
    return LanguageModel(vocabulary=40, width=16, layers=2, heads=2, hidden=32, context=8)


def pick(model: nn.Module, targets: str, kinds: tuple[type[nn.Module], ...] = LINEAR) -> list[str]:
    return list(chosen(model, targets, kinds, LINEAR, "lora"))


def test_all_linear_is_every_linear_layer() -> None:
    assert pick(lm(), "all-linear") == [f"blocks.{i}.{name}" for i in range(2)
                                       for name in ("attention.query", "attention.key", "attention.value",
                                                    "attention.out", "up", "down")] + ["head"]


@pytest.mark.parametrize(("targets", "count"), [
    ("query|value", 4), ("head", 1), (r"blocks\.0\..*", 6), ("out", 2), (r"blocks\.\d\.(up|down)", 4)])
def test_a_pattern_is_a_whole_name_or_its_end(targets: str, count: int) -> None:
    assert len(pick(lm(), targets)) == count


def test_a_name_is_no_end_of_a_longer_one() -> None:
    assert not matches("query", "blocks.0.subquery")
    model = nn.ModuleDict({"head": nn.Linear(4, 4), "other": nn.ModuleDict({"head": nn.Linear(4, 4)})})
    session = TrainingSession(model, [Lora(rank=2, targets=r"other\.head")], CrossEntropy(), steps=1)
    assert type(session.model["head"]) is nn.Linear


@pytest.mark.parametrize(("targets", "says"), [
    ("qurey", "matches no layer; nearest: blocks.1.attention.query"),
    ("norm1", "norm1 is LayerNorm, and it adapts Linear"),
    ("zzz", "matches no layer; nearest: "),
])
def test_a_pattern_without_a_layer_names_the_nearest(targets: str, says: str) -> None:
    with pytest.raises(ThriftyError, match=says):
        pick(lm(), targets)


def test_models_without_a_layer_to_adapt_say_so() -> None:
    with pytest.raises(ThriftyError, match="has none that it can adapt: name others with targets=..., such as '0'"):
        pick(nn.Sequential(nn.Conv2d(1, 2, 3)), "all-linear", (nn.Linear, nn.Conv2d))
    with pytest.raises(ThriftyError, match="train it in full"):
        pick(nn.Sequential(nn.LayerNorm(3)), "all-linear")
    with pytest.raises(ThriftyError, match=r"itself a single Linear: give nn.Sequential\(model\)"):
        pick(nn.Linear(3, 3), "all-linear")
    with pytest.raises(ThriftyError, match="the model has none to match"):
        pick(nn.Sequential(nn.LayerNorm(3)), "x")


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.body, self.head = nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 9, bias=False)
        self.head.weight = self.table.weight
        self.again = self.twin = nn.Linear(4, 4)
        self.scaled = torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.body(self.table(ids)))  # type: ignore[no-any-return]


def test_weights_that_others_read_are_left_alone_and_refused_by_name() -> None:
    model = Tied()
    layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    assert set(hindrances(model, layers)) == {"head", "again", "scaled"}
    assert pick(model, "all-linear") == ["body"]
    for name, why in (("head", "another layer reads the same weight"), ("again", "another layer"),
                      ("scaled", "computed by a parametrization")):
        with pytest.raises(ThriftyError, match=f"{name}, which cannot be adapted: .*{why}"):
            pick(model, name)


def test_what_is_no_regular_expression_is_refused_where_it_is_written() -> None:
    with pytest.raises(HyperparameterError, match=r"lora\(targets='\('\): targets must be a regular expression"):
        Lora(targets="(")
    recipe = Recipe.parse(r"train(adamw) | train(lora(targets='blocks\\.0\\..*'))")
    assert Recipe.parse(str(recipe)) == recipe
    assert recipe.methods()[1] == Lora(targets=r"blocks\.0\..*")


@pytest.mark.parametrize("method", [Ia3(targets="key|value|down", inputs="down"), Vera(rank=8, targets="query")])
def test_others_take_patterns_too(method: Ia3 | Vera) -> None:
    session = TrainingSession(lm(), [method], CrossEntropy(), steps=1)
    layers = {"query", "key", "value", "out", "up", "down"}
    adapted = {part for n, p in session.model.named_parameters() if p.requires_grad for part in n.split(".") if part in layers}
    assert adapted == ({"key", "value", "down"} if isinstance(method, Ia3) else {"query"})
