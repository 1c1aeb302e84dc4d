"""What goes with ranks does what it does with one process; what does not is refused before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.distributed import trainings
from tests.training.distributed.ranks import together
from thrifty import CrossEntropy, Train, fit
from thrifty.errors import RecipeError
from thrifty.posttraining.pruning.zeros import hold
from thrifty.recipes.properties import carry
from thrifty.recipes.ranks import Alone, Ranks
from thrifty.recipes.recipe import Recipe

TRAINED = frozenset({"module", "float-weights", "trained"})
STEPS = 4
EXACT = 1e-5
QUICK: dict[str, float] = {
    "train(zero3, lion)": EXACT,
    "train(zero3, distill)": EXACT,
    "train(zero2, lora)": EXACT,
    "train(ddp, ema)": EXACT,
    "train(zero3, bf16)": 2e-2,
    "train(zero3, qat(scheme=w8a8))": 1e-3,
    "train(zero3(reshard=always), checkpointing=blocks)": EXACT,
    "train(zero1, checkpointing=blocks, accumulate=3)": EXACT,
}
LONG = {"train(ddp, lora)": EXACT, "train(ddp, bf16)": 2e-2, "train(ddp, qat(scheme=w8a8))": 1e-3,
        "train(zero3(reshard=always), checkpointing=selective)": EXACT, "train(ddp, checkpointing=blocks, accumulate=3)": EXACT,
        "train(zero3, lora, accumulate=2)": EXACT,
        "train(zero3, adamw8bit)": 1e-3, "train(ddp, adamw8bit)": 1e-3, "train(zero3, compiled=True)": EXACT,
        "train(ddp, compiled=True)": EXACT, "train(zero3, compiled=True, checkpointing=blocks)": EXACT,
        "train(zero3, vera)": EXACT, "train(zero3, ia3)": EXACT, "train(ddp, schedule_free)": EXACT,
        "train(ddp, adafactor)": EXACT,
        "train(ddp, soap)": 2e-3}  # the last bits decide the basis of what its first gradients do not span


def losses(ranks: Ranks, text: str) -> torch.Tensor:
    (phase,) = Recipe.parse(text)
    assert isinstance(phase, Train)
    methods = [method for method in phase.methods if ranks.count > 1 or method.card.slot != "parallelism"]
    settings = phase.but(methods=(), steps=STEPS, schedule="constant", warmup=0.0)
    width = 128 if "adamw8bit" in text else trainings.WIDTH  # it leaves tensors of fewer than 4,096 numbers as they are
    done = fit(trainings.Tied(width), methods, trainings.text(), CrossEntropy(), batch_size=12, ranks=ranks, seed=5,
               settings=settings, teachers=lambda recipe: trainings.Tied().eval(), evaluate=lambda model: 0.0)
    for name, claim in done.claims:
        claim.checked(name)
    assert done.model.head.weight is done.model.embedding.weight
    return torch.tensor([loss for _, loss in done.history])


def quick(ranks: Ranks) -> dict[str, Any]:
    return {text: losses(ranks, text) for text in QUICK}


def long(ranks: Ranks) -> dict[str, Any]:
    return {text: losses(ranks, text) for text in LONG}


def compare(place: Path, name: str, bounds: dict[str, float]) -> None:
    first, second = together(place, 2, __name__, name, timeout=300).found(name)
    for text, bound in bounds.items():
        assert torch.equal(first[text], second[text]), text
        torch.testing.assert_close(first[text], losses(Alone(), text), rtol=bound, atol=0,
                                   msg=lambda why, text=text: f"{text}: {why}")


@pytest.mark.slow
def test_what_goes_with_ranks_trains_what_one_process_does(tmp_path: Path) -> None:
    for text in QUICK:
        carry(Recipe.parse(text), TRAINED)
    compare(tmp_path, "quick", QUICK)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_takes_long_with_ranks_trains_what_one_process_does(tmp_path: Path) -> None:
    for text in LONG:
        carry(Recipe.parse(text), TRAINED)
    compare(tmp_path, "long", LONG)


def masked(ranks: Ranks) -> list[int]:
    """Zeros that a training leaves of those that it was to hold, by method."""
    found = []
    for text in ("train(zero3)", "train(ddp)", "train(zero1)"):
        (phase,) = Recipe.parse(text)
        assert isinstance(phase, Train)
        model = trainings.Tied()
        for block in model.blocks:
            block.up.weight.data[::2] = 0  # type: ignore[union-attr, index, operator]
            hold(block.up)  # type: ignore[arg-type]
        done = fit(model, phase.methods, trainings.text(), CrossEntropy(), batch_size=12, ranks=ranks, settings=Train(steps=2))
        found.append(sum(int((block.up.weight == 0).sum()) for block in done.model.blocks))  # type: ignore[union-attr]
    return found


@pytest.mark.slow
def test_zeros_of_a_mask_are_held_on_shards_too(tmp_path: Path) -> None:
    for found in together(tmp_path, 2, __name__, "masked").found("masked"):
        assert found == [3 * trainings.WIDTH * trainings.WIDTH] * 3


@pytest.mark.parametrize(("text", "why"), [
    ("train(zero3, soap)", "soap requires a model without sharded, which zero3 gives it: each rank holds a part of the weights"),
    ("train(zero2, adafactor)", "adafactor requires a model without sharded"),
    ("train(zero1, ema)", "ema requires a model without sharded"),
    ("train(zero2, schedule_free)", "schedule_free requires a model without sharded"),
    ("train(zero3, sophia(hutchinson))", "sophia requires a model without sharded"),
    ("train(ddp, zero3)", "two methods that provide the parallelism: ddp and zero3; keep one"),
])
def test_what_does_not_go_with_ranks_is_refused(text: str, why: str) -> None:
    with pytest.raises(Exception, match=why.replace("(", r"\(").replace(")", r"\)")) as told:
        carry(Recipe.parse(text), TRAINED)
    assert isinstance(told.value, RecipeError) or "keep one" in str(told.value)
