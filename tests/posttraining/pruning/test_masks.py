"""Masks: which weights leave, what SparseGPT makes of the others, and that later trainings hold the zeros."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from tests.posttraining.pruning import shapes
from tests.posttraining.pruning.test_structures import context
from torch import Tensor, nn

from thrifty import LowRank, Prune, Quantize, testing
from thrifty.errors import EffectLost, NoEffect, RecipeError
from thrifty.numerics.gptq import DAMPING
from thrifty.numerics.observers import CalibrationError
from thrifty.posttraining.pruning.masks import by_wanda, from_matrix, to_matrix
from thrifty.posttraining.pruning.patterns import Pattern, lowest
from thrifty.posttraining.pruning.sparsegpt import sparsegpt
from thrifty.posttraining.pruning.zeros import zero_share
from thrifty.recipes.properties import carry
from thrifty.recipes.recipe import Recipe
from thrifty.recipes.transform import Plan
from thrifty.runs.checkpoint import MethodClaim
from thrifty.runs.phase import reprobe

PATTERNS = [Pattern(0.5), Pattern(0.3), Pattern.of("2:4", 0.5), Pattern.of("6:8", 0.5), Pattern.of("1:4", 0.5)]


def correlated(rows: int, columns: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    rising = torch.linspace(0.1, 2, columns, dtype=torch.float64)
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64) @ mix * rising


def naive_sparsegpt(weight: Tensor, x: Tensor, pattern: Pattern, block: int) -> Tensor:
    """Optimal brain surgery with all to the left held: the inverse of what is left of H anew for every column."""
    w = weight.clone()
    h = x.T @ x
    h = h + DAMPING * h.diagonal().mean() * torch.eye(len(h), dtype=h.dtype)
    inverse = [torch.linalg.inv(h[j:, j:]) for j in range(len(h))]
    lost = torch.zeros_like(w, dtype=torch.bool)
    for j in range(w.shape[1]):
        period = pattern.period if pattern.period > 1 else block
        if j % period == 0:
            width = min(period, w.shape[1] - j)
            scores = torch.stack([w[:, j + i] ** 2 / inverse[j + i][0, 0] for i in range(width)], dim=1)
            if pattern.period > 1:
                for row in range(len(w)):
                    order = sorted(range(width), key=lambda i, row=row: (float(scores[row, i]), i))
                    lost[row, [j + i for i in order[:round(pattern.share * width)]]] = True
            else:
                places = sorted((float(scores[r, i]), r, i) for r in range(len(w)) for i in range(width))
                for _, r, i in places[:round(pattern.share * len(places))]:
                    lost[r, j + i] = True
        for row in range(len(w)):
            if lost[row, j]:
                w[row, j:] -= w[row, j] / inverse[j][0, 0] * inverse[j][0]
                w[row, j] = 0
    return w


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize(("rows", "columns"), [(5, 24), (3, 136)])
def test_sparsegpt_agrees_with_the_naive_form(pattern: Pattern, rows: int, columns: int) -> None:
    x, weight = correlated(200, columns), torch.randn(rows, columns, dtype=torch.float64)
    found = sparsegpt(weight, x.T @ x, pattern)
    torch.testing.assert_close(found, naive_sparsegpt(weight, x, pattern, 128), rtol=1e-6, atol=1e-8)
    assert float((found == 0).double().mean()) == pytest.approx(pattern.share, abs=0.02)


@pytest.mark.parametrize("pattern", [Pattern(0.5, rows=True), *PATTERNS[2:]], ids=str)
def test_wanda_agrees_with_the_naive_form(pattern: Pattern) -> None:
    x, weight = correlated(50, 24), torch.randn(7, 24, dtype=torch.float64)
    want = weight.clone()
    period = pattern.period if pattern.period > 1 else 24
    for row in range(7):
        for start in range(0, 24, period):
            scores = [(abs(float(weight[row, j])) * float(x[:, j].norm()), j) for j in range(start, start + period)]
            for _, j in sorted(scores)[:round(pattern.share * period)]:
                want[row, j] = 0
    assert torch.equal(by_wanda("x", weight, x, pattern), want)


@pytest.mark.parametrize("structure", ["unstructured", "2:4"])
def test_what_is_weighed_by_data_loses_less_of_the_outputs(structure: str) -> None:
    x = correlated(400, 32).float()
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8)).eval()
    want, errors = model(x), {}
    for criterion in ("magnitude", "wanda", "sparsegpt"):
        masked = Prune(structure=structure, criterion=criterion)(model, [x[:200]])
        errors[criterion] = float((masked(x[200:]) - want[200:]).norm())
        assert zero_share(masked) == pytest.approx(0.5)
    assert errors["sparsegpt"] < errors["wanda"] < errors["magnitude"]


@pytest.mark.parametrize("criterion", ["magnitude", "wanda", "sparsegpt"])
def test_convolutions_are_masked_by_the_patches_that_they_read(criterion: str) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, 3, stride=2, padding=1)
    assert torch.equal(from_matrix(conv, to_matrix(conv)), conv.weight)
    x = torch.randn(3, 4, 9, 9)
    found = Prune(structure="2:4", criterion=criterion)(nn.Sequential(conv), [x])[0]
    assert zero_share(found) == 0.5
    neighbors = found.weight.permute(0, 2, 3, 1).reshape(-1, 4)  # input channels of one offset
    assert ((neighbors == 0).sum(1) == 2).all()
    if criterion == "wanda":
        patches = nn.functional.unfold(x, 3, padding=1, stride=2).movedim(1, -1).reshape(-1, 36)
        scores = conv.weight.detach().flatten(1).abs() * patches.norm(dim=0)
        lost = lowest(scores.reshape(6, 4, 9).transpose(1, 2), Pattern.of("2:4", 0.5)).transpose(1, 2).reshape(6, 4, 3, 3)
        assert torch.equal(found.weight == 0, lost)


def test_every_layer_of_gpt2_is_masked_but_tied_ones() -> None:
    pytest.importorskip("transformers")
    model, example = shapes.make("gpt2"), shapes.example("gpt2")
    method = Prune(structure="2:4", criterion="sparsegpt")
    plan = method.plan(model, context(example))
    assert len(plan.values["masked"]) == 8 and "another layer's too" in plan.values["left"]["model.lm_head"]
    weight = method.build(model, plan).get_parameter("model.transformer.h.0.mlp.c_fc.weight")
    assert ((weight.T.reshape(-1, 4) == 0).sum(1) == 2).all()


def test_zeros_are_held_while_it_trains_and_counted_when_it_is_quantized() -> None:
    method = Prune(structure="unstructured", criterion="wanda")
    model = testing.trained()
    masked = testing.apply(method, model)
    (claim,) = method.claims(model, masked)
    claims = (MethodClaim("prune", claim.checked("prune")),)
    zeros = {name: w == 0 for name, w in masked.named_parameters() if w.ndim > 1}
    recovered = testing.apply(testing.method_class("adamw")(), masked)  # type: ignore[arg-type]
    assert all(torch.equal(w == 0, zeros[name]) for name, w in recovered.named_parameters() if name in zeros)
    assert not torch.equal(recovered.head[0].weight, masked.head[0].weight)  # type: ignore[union-attr, index]
    reprobe(claims, recovered)
    data = [testing.stripes(16, 3).tensors[0]]
    reprobe(claims, Quantize("w8a8")(recovered, data))
    reprobe(claims, Quantize("w4a16", group=32)(recovered, data))
    with pytest.raises(EffectLost, match="share of zeros"):
        reprobe(claims, LowRank(ratio=0.2)(recovered, data))
    free = copy.deepcopy(masked)
    for module in free.modules():
        vars(module).pop("zeros_held", None)
    with pytest.raises(EffectLost, match="a later phase undid it"):
        reprobe(claims, testing.apply(testing.method_class("adamw")(), free))  # type: ignore[arg-type]


def test_a_factorization_after_a_mask_is_refused_before_anything_runs() -> None:
    with pytest.raises(RecipeError, match="put low_rank before prune"):
        carry(Recipe.parse('prune(structure="2:4") | train(epochs=1) | low_rank(ratio=0.2)'), testing.TRAINED)
    assert "masked" in carry(Recipe.parse("low_rank(ratio=0.2) | prune(structure=unstructured)"), testing.TRAINED)
    (phase,) = Recipe.parse('prune(0.5, structure="2:4", criterion=wanda)').phases
    assert str(phase) == "prune(ratio=0.5, criterion=wanda, structure='2:4')"
    assert Recipe.parse("(prune(ratio=0.3, importance=l1) | train(epochs=1)) * 2").phases[0] == Prune(ratio=0.3, importance="l1")


def test_zeros_are_held_while_it_trains_for_few_bits() -> None:
    method = Prune(structure="2:4")
    masked = testing.apply(method, testing.trained())
    claims = tuple(MethodClaim("prune", claim) for claim in method.claims(testing.trained(), masked))
    reprobe(claims, testing.apply(testing.method_class("qat")(), masked))  # type: ignore[arg-type]


def test_a_second_mask_takes_its_share_of_what_is_left() -> None:
    model = nn.Sequential(nn.Linear(16, 64))
    once = Prune(ratio=0.5, structure="unstructured")(model)
    twice = Prune(ratio=0.5, structure="unstructured")(once)
    assert zero_share(twice) == 0.75 and ((twice[0].weight == 0) >= (once[0].weight == 0)).all()


@pytest.mark.parametrize("structure", ["unstructured", "2:4", "width"])
@pytest.mark.parametrize("law", [law for law in testing.LAWS if law is not testing.check_agrees], ids=lambda law: law.__name__)
def test_every_structure_keeps_the_laws(structure: str, law: object) -> None:
    law(Prune(ratio=0.5, structure=structure))  # type: ignore[operator]


def test_bad_data_and_other_models_are_named() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)).eval()
    with pytest.raises(CalibrationError, match="layer '0' saw NaN"):
        Prune(structure="2:4", criterion="wanda")(model, [torch.full((2, 8), float("nan"))])
    with pytest.raises(NoEffect, match="no layer"):
        Prune(structure="2:4")(nn.Sequential(nn.Linear(6, 8)))
    plan = Prune(structure="2:4").plan(model, context((torch.ones(1, 8),)))
    assert json.loads(json.dumps(plan.values)) == plan.values
    with pytest.raises(Exception, match="another model"):
        Prune(structure="2:4").build(nn.Sequential(nn.Linear(4, 4)), Plan(plan.values, plan.tensors))
