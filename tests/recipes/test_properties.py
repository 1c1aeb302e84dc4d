"""What can follow what, and what can go together within one training."""

from __future__ import annotations

import pytest

from thrifty.errors import RecipeError
from thrifty.recipes.properties import carry
from thrifty.recipes.recipe import Recipe

KNOWN = frozenset({"module", "float-weights", "trained"})


@pytest.mark.parametrize(("text", "says"), [
    ("train(sophia(hutchinson), compiled=True)", r"sophia requires a model without compiled-steps, which train\(compiled"),
    ("train(qat(w8a8), lora)", "qat requires a model without adapters, which lora gives it"),
    ("train(lora, qat(w8a8))", "qat requires a model without adapters, which lora gives it"),
    ("train(vera, ia3)", "ia3 requires a model without adapters, which vera gives it"),
])
def test_a_pair_that_cannot_go_together_is_told_before_it_runs(text, says):
    """In the order of the stages, whatever the text's."""
    with pytest.raises(RecipeError, match=says):
        carry(Recipe.parse(text), KNOWN)


@pytest.mark.parametrize("text", ["train(sophia(hutchinson))", "train(sophia, compiled=True)", "train(lora, bf16) | train(ia3)",
                                  "train(lora) | train(qat(w8a8))"])
def test_what_holds_during_a_training_holds_no_longer_than_it(text):
    assert not {"adapters", "compiled-steps", "rounded-steps"} & carry(Recipe.parse(text), KNOWN)
