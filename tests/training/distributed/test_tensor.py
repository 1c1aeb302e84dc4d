"""Ranks that split matrices train what one process does; a plan that cannot be followed is refused."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.training.distributed import trainings
from tests.training.distributed.ranks import together
from thrifty import AdamW, CrossEntropy, Train, Zero3, fit
from thrifty.architectures.backbone import Backbone
from thrifty.architectures.blocks import Sizes
from thrifty.architectures.moe.router import Router
from thrifty.errors import ThriftyError
from thrifty.recipes.properties import carry
from thrifty.recipes.ranks import Alone, Ranks
from thrifty.recipes.recipe import Recipe
from thrifty.search.planner import plan
from thrifty.training.distributed.kept import RanksKeeper
from thrifty.training.distributed.teams import Teams
from thrifty.training.distributed.tensor import planned
from thrifty.training.session import TrainingSession
from thrifty.workloads.embedded.python_lm import LanguageModel

STEPS, BOUND = 6, 1e-6


class Planned(trainings.Tied):
    """Biases, a tied vocabulary that nothing divides, a frozen layer, and one that nothing reaches."""

    tp_plan = {"blocks.*.up": "colwise", "blocks.*.down": "rowwise"}


def mixture() -> nn.Module:
    """Its experts' bias stands still: it moves by what each team sees."""
    torch.manual_seed(0)
    made = Backbone(trainings.VOCABULARY, "attention moe mlp moe", Sizes(width=16, heads=4, hidden=24, experts=6))
    for module in made.modules():
        if isinstance(module, Router):
            module.rate = 0.0
    return made


def transformer() -> nn.Module:
    torch.manual_seed(0)
    return LanguageModel(vocabulary=trainings.VOCABULARY, width=16, layers=2, heads=4, hidden=32, context=8)


def backbone() -> nn.Module:
    torch.manual_seed(0)
    sizes = Sizes(width=16, heads=4, kv_heads=4, hidden=32)
    return Backbone(trainings.VOCABULARY, "attention mlp attention mlp", sizes, tied=True)


class Logits(nn.Module):
    """A model of transformers in another module."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, ids: Tensor) -> Tensor:
        return self.body(input_ids=ids, use_cache=False).logits  # type: ignore[no-any-return]


def qwen() -> nn.Module:
    """With norms of each head, whose weights are whole and whose values are split."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    return Logits(Qwen3ForCausalLM(Qwen3Config(
        vocab_size=trainings.VOCABULARY, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=4, tie_word_embeddings=True, bos_token_id=None, eos_token_id=None)))


MODELS: dict[str, Callable[[], nn.Module]] = {"planned": Planned, "transformer": transformer, "backbone": backbone, "qwen": qwen,
                                              "mixture": mixture}
TWO = (("planned", "zero3(tensor=2)", "sgd"), ("transformer", "zero3(tensor=2)", "adamw"),
       ("mixture", "zero3(tensor=2)", "adamw"))
FOUR = (("mixture", "zero3(tensor=2)", "sgd"), ("mixture", "zero1(tensor=2)", "adamw"),
        ("planned", "zero3(tensor=2, reshard=always)", "adamw"), ("planned", "zero1(tensor=2)", "sgd"),
        ("transformer", "zero2(tensor=4)", "sgd"), ("transformer", "zero3(tensor=2)", "sophia"),
        ("qwen", "zero3(tensor=2)", "sgd"), ("qwen", "zero3(tensor=2)", "adamw"), ("backbone", "zero2(tensor=2)", "sgd"),
        ("backbone", "zero1(tensor=2)", "adamw"), ("planned", "zero2(tensor=2)", "sophia"))


def trained(ranks: Ranks, name: str, parallel: str, optimizer: str) -> dict[str, Any]:
    (phase,) = Recipe.parse(f"train({parallel})")
    assert isinstance(phase, Train)
    methods = [trainings.OPTIMIZERS[optimizer], *(phase.methods if ranks.count > 1 else ())]
    with trainings.certain():
        done = fit(MODELS[name](), methods, trainings.text(), CrossEntropy(), batch_size=13, ranks=ranks, seed=5,
                   evaluate=lambda model: 0.0, settings=Train(
                       steps=STEPS, clip=1.0, schedule="constant", warmup=0.1, accumulate=2,
                       checkpointing="blocks" if "always" in parallel else "none"))
    for said, claim in done.claims:
        claim.checked(said)
    again = done.model(trainings.text().tensors[0][:5])  # whole again, alone
    return {"losses": torch.tensor([loss for _, loss in done.history], dtype=torch.float64), "again": again.detach(),
            "flops": done.flops, "weights": {name: p.detach().clone() for name, p in done.model.named_parameters()}}


def all_of(ranks: Ranks, cases: tuple[tuple[str, str, str], ...]) -> list[dict[str, Any]]:
    return [trained(ranks, *case) for case in cases]


two, four = (functools.partial(all_of, cases=cases) for cases in (TWO, FOUR))


def compare(place: Path, count: int, name: str, cases: tuple[tuple[str, str, str], ...]) -> None:
    of_ranks = together(place, count, __name__, name, timeout=120).found(name)
    for i, case in enumerate(cases):
        first, want = of_ranks[0][i], trained(Alone(), *case)
        for other in of_ranks[1:]:
            assert torch.equal(first["losses"], other[i]["losses"]), case
            assert all(torch.equal(x, other[i]["weights"][n]) for n, x in first["weights"].items()), case
        difference = float(((first["losses"] - want["losses"]).abs() / want["losses"]).max())
        print(case, f"{difference:.1e}", first["flops"] / want["flops"])
        assert difference <= BOUND * (10 if case[2] == "sophia" else 1), (case, difference)
        members = 4 if "tensor=4" in case[1] else 2  # who each compute what is not split
        assert 0.95 < first["flops"] / want["flops"] < members, case
        started = dict(MODELS[case[0]]().named_parameters())
        for n, x in first["weights"].items():
            torch.testing.assert_close(x, want["weights"][n], rtol=1e-3, atol=1e-4, msg=f"{case} {n}")
            assert torch.equal(x, started[n]) == torch.equal(want["weights"][n], started[n]), (case, n)
        torch.testing.assert_close(first["again"], want["again"], rtol=1e-3, atol=1e-4)


def test_two_ranks_that_split_matrices_train_what_one_process_does(tmp_path: Path) -> None:
    compare(tmp_path, 2, "two", TWO)


@pytest.mark.slow
def test_four_ranks_split_matrices_and_share_out_the_rest(tmp_path: Path) -> None:
    compare(tmp_path, 4, "four", FOUR)


def gone_on(ranks: Ranks) -> list[float]:
    """Losses of a training whose state is kept after two steps, and of one that goes on from there."""
    rows, target = trainings.text().tensors
    parts = [((rows[8 * i:8 * i + 8],), target[8 * i:8 * i + 8]) for i in range(4)]
    losses: list[float] = []
    for taken in (parts, parts[2:]):
        session = TrainingSession(Planned(), [AdamW(lr=3e-3), Zero3(tensor=2)], CrossEntropy(), steps=4, ranks=ranks)
        keeper = RanksKeeper(Path(os.environ["KEPT_HERE"]), ranks, aside=False)
        if taken is not parts:
            keeper.restore(session, "this")
        for i, (inputs, part) in enumerate(taken):
            losses.append(float(session.step(((inputs[0],), part))))
            if taken is parts and i == 1:
                keeper.keep(session, "this", {})
        keeper.close()
    return losses


@pytest.mark.slow
def test_a_kept_state_is_taken_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEPT_HERE", str(tmp_path / "kept"))
    for losses in together(tmp_path, 2, __name__, "gone_on").found("gone_on"):
        assert losses[2:4] == losses[4:] and losses[3] < losses[0]


# -- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "why"), [
    ("train(zero3(tensor=2), muon)", "muon requires a model without split, which zero3 gives it: each rank multiplies by a part"),
    ("train(zero3(tensor=2), adamw8bit)", "adamw8bit requires a model without split"),
    ("train(zero2(tensor=2), compiled=True)", "zero2 requires a model without compiled-steps"),
    ("train(zero2(tensor=2), lora)", "zero2 requires a model without adapters"),
    ("train(zero3(tensor=2), packing=True)", "zero3 requires a model without packed-rows"),
])
def test_what_does_not_go_with_split_matrices_is_refused(text: str, why: str) -> None:
    with pytest.raises(ThriftyError, match=why):
        carry(Recipe.parse(text), frozenset({"module", "float-weights", "trained"}))


def test_a_plan_that_cannot_be_followed_is_refused() -> None:
    with pytest.raises(ThriftyError, match="Tied brings no plan of which matrices to split: give its class tp_plan"):
        fit(trainings.Tied(), [Zero3(tensor=2)], trainings.text(), CrossEntropy())  # one process: as a rehearsal does it
    with pytest.raises(ThriftyError, match=r"tensor=5 does not divide the 24 outputs of blocks\.0\.up: give a divisor"):
        planned(Planned(), 5)
    with pytest.raises(ThriftyError, match=r"tensor=8 does not divide the 4 heads of blocks\.0\.attention"):
        planned(transformer(), 8)
    with pytest.raises(ThriftyError, match=r"tensor=4 does not divide the 6 experts of blocks\.1\.mixer\.experts"):
        planned(mixture(), 4)
    odd = Planned()
    odd.tp_plan = {"blocks.*.up": "packed_colwise"}
    with pytest.raises(ThriftyError, match=r"splits blocks\.0\.up by 'packed_colwise', which Thrifty does not know"):
        planned(odd, 2)
    odd.tp_plan = {"blocks.*.norm": "colwise"}
    with pytest.raises(ThriftyError, match=r"blocks\.0\.norm is LayerNorm, but only nn\.Linear can be split"):
        planned(odd, 2)
    for method, count, why in ((Zero3(tensor=4), 6, r"zero3\(tensor=4\) does not divide 6 ranks: give tensor that do"),
                               (Zero3(tensor=2, replicas=2), 4, "leaves everything on each of 4 ranks"),
                               (Zero3(tensor=2, offload=True), 2, "one rank or team shards nothing")):
        with pytest.raises(ThriftyError, match=why):
            method.require_ranks(count)
    with pytest.raises(ThriftyError, match="is not predicted yet"):
        plan("src/thrifty/testing.py:workload", "train(zero3(tensor=2))", 2)


def test_a_team_is_one_rank_to_a_training() -> None:
    alone = Teams(Alone(), 1)
    assert (alone.index, alone.count, alone.processes, alone.gather("x"), alone.any(True)) == (0, 1, 1, ["x"], True)
    assert alone.sum(torch.ones(2)).tolist() == [1.0, 1.0]
    assert [Zero3(tensor=2).parts(count) for count in (1, 2, 4)] == [1, 1, 2]
