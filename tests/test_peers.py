"""The silent failures reproduced in released toolkits, each against our own behavior."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from thrifty import testing
from thrifty.errors import EffectLost, NoEffect, RecipeError
from thrifty.posttraining.pruning.prune import Prune
from thrifty.posttraining.quantize import Quantize
from thrifty.recipes.claim import Claim
from thrifty.recipes.context import Context
from thrifty.recipes.properties import carry
from thrifty.recipes.recipe import Recipe
from thrifty.runs.checkpoint import MethodClaim
from thrifty.runs.phase import reprobe
from thrifty.studies.constraints import best
from thrifty.studies.frontier import frontier
from thrifty.studies.ledger import Ledger
from thrifty.studies.trial import ArtifactFigure, Drop, InferenceFigure, QualityFigure, Ratio, TrainingFigure, Trial


def trial(name: str, drop: float, speed: float, training: float = 1.0) -> Trial:
    return Trial(
        id=name, workload="w", workload_hash="h", recipe=name, seed=0, target={}, status="done",
        quality=QualityFigure("accuracy", True, 0.9 - drop, 0.9, Drop(drop, drop - 0.001, drop + 0.001)),
        training=TrainingFigure(training, None, None, None, None, None),
        inference=InferenceFigure("SingleStream", 1 / speed, 1 / speed, Ratio(speed, speed * 0.99, speed * 1.01, "faster", 5),
                                  Ratio(None), speed, None, None),
        artifact=ArtifactFigure("x", 100, True), ledger=Ledger(),
    )


def share_of_zeros(model: nn.Module) -> float:
    weights = torch.cat([p.flatten() for p in model.parameters()])
    return float((weights == 0).float().mean())


def test_quantize_then_prune_is_refused_rather_than_recorded():
    """One toolkit accepts quantize -> sparsify, records it, and leaves no zeros."""
    with pytest.raises(RecipeError, match="prune requires float-weights, which the earlier quantize removed"):
        carry(Recipe.parse("quantize(w8a8) | prune(ratio=0.5)"), testing.TRAINED)


def test_a_mask_that_is_not_there_is_an_error():
    """The same failure from the other side: what was claimed is probed on the model that really is."""
    with pytest.raises(NoEffect, match="changed nothing"):
        Claim("share of zeros", 0.0, share_of_zeros(testing.trained()), 0.4).checked("mask")
    claim = Claim("share of zeros", 0.0, 0.5, 0.45, probe=share_of_zeros)
    with pytest.raises(EffectLost):
        reprobe((MethodClaim("mask", claim),), testing.trained())


def test_goals_that_are_all_thresholds_are_not_ignored():
    """One toolkit ignores its goals when every one is a threshold, and returns whatever comes first."""
    assert best([trial("bad", 0.05, 9.0), trial("good", 0.001, 2.0)], max_drop="1pt").trial.id == "good"
    choice = best([trial("bad", 0.05, 9.0)], max_drop="1pt")
    assert choice.trial is None and choice.nearest.id == "bad"


def test_a_missing_measure_never_ranks_first():
    """One toolkit ranks a missing figure of a lower-is-better objective first."""
    whole = trial("whole", 0.001, 2.0)
    missing = dataclasses.replace(trial("missing", 0.001, 2.0), inference=None)
    found = frontier([missing, whole])
    assert [each.id for each in found.front] == ["whole"]
    assert best([missing, whole], max_drop="1pt").trial.id == "whole"


def bare() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)).eval()


def test_a_bare_sequential_is_a_model_like_any_other():
    """One toolkit fails on a bare nn.Sequential."""
    data = [torch.randn(8, 1, 12, 12)]
    model = bare()
    for method in (Prune(ratio=0.5), Quantize("w8a8")):
        after = method(model, data)
        assert after(data[0]).shape == (8, 10)
    assert testing.fingerprint(model) == testing.fingerprint(bare())


def test_prune_then_quantize_works_and_the_reverse_is_refused():
    """One toolkit accepts both orders and fails both when the model is to be stripped for export."""
    data = [torch.randn(8, 1, 12, 12)]
    pruned = Prune(ratio=0.5)(bare(), data)
    both = Quantize("w8a8")(pruned, data)
    torch.testing.assert_close(both(data[0]), pruned(data[0]), rtol=0.2, atol=0.1)
    with pytest.raises(RecipeError):
        carry(Recipe.parse("quantize(w8a8) | prune"), testing.TRAINED)


def test_a_trial_below_the_bar_is_never_the_answer():
    """One toolkit returns its best trial though it misses the target, and does not say so."""
    choice = best([trial("a", 0.02, 3.0), trial("b", 0.04, 5.0)], max_drop="1pt")
    assert choice.trial is None
    assert choice.nearest.id == "a"


def test_nothing_to_quantize_is_an_error():
    """Several toolkits finish with nothing quantized."""
    with pytest.raises(NoEffect):
        Quantize("w8a8")(nn.Sequential(nn.ReLU(), nn.Flatten()), [torch.randn(4, 3)])


def test_sparse_then_quantized_is_not_zero():
    """Sparse and quantized together gave zeros in one toolkit."""
    model = bare()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter[torch.rand_like(parameter) < 0.5] = 0
    data = [torch.randn(8, 1, 12, 12)]
    after = Quantize("w8a8")(model, data)
    assert after(data[0]).abs().sum() > 0
    torch.testing.assert_close(after(data[0]), model(data[0]), rtol=0.2, atol=0.1)


def test_context_without_data_is_refused():
    with pytest.raises(Exception, match="empty"):
        Context.of([])
