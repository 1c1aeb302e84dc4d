"""What all adapters share: the base stands still, merging keeps the outputs and the structure, claims are peft's counts."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from tests.training.peft.nets import adapted, answers, batch, mlp
from thrifty import AdamW, Bf16, CrossEntropy, Distill, Ema, Ia3, Lora, Recipe, Vera, testing
from thrifty.errors import MissingExtra, NoEffect, RecipeError, ThriftyError
from thrifty.recipes.phases import Train
from thrifty.recipes.properties import carry
from thrifty.training.loop import fit
from thrifty.training.peft import adapter, held
from thrifty.training.peft.adapter import Adapter
from thrifty.training.session import TrainingSession

peft = pytest.importorskip("peft")

METHODS = [Lora(), Lora(variant="rslora"), Lora(variant="dora"), Lora(variant="pissa"), Ia3(), Ia3(inputs="2"),
           Vera(rank=16)]


@pytest.mark.parametrize("method", METHODS, ids=repr)
@pytest.mark.parametrize("base", ["fp32", "bf16", "int8", "nf4"])
def test_merged_equals_unmerged_and_the_structure_is_the_bases(method: Adapter, base: str) -> None:
    if base in ("int8", "nf4"):
        pytest.importorskip("bitsandbytes")
    fresh, x = mlp(), batch()[0][0]
    method = dataclasses.replace(method, base=base)
    session = adapted(method, mlp())
    before = answers(session.model, x)
    model = session.finish()
    torch.testing.assert_close(answers(model, x), before, rtol=1e-5, atol=1e-5)
    assert str(model) == str(fresh)
    assert {n: (p.shape, p.dtype, p.requires_grad) for n, p in model.named_parameters()} == {
        n: (p.shape, p.dtype, p.requires_grad) for n, p in fresh.named_parameters()}
    assert not torch.allclose(before, answers(fresh, x), atol=1e-3), "nothing was learnt"
    assert not hasattr(model, "peft_config")


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_only_adapters_move_and_their_share_is_pefts_count(method: Adapter) -> None:
    session = adapted(method, mlp(), steps=2)
    of_base = {n: p for n, p in session.model.named_parameters() if "base_layer" in n}
    assert of_base and not any(p.requires_grad for p in of_base.values())
    assert all(p.grad is None for p in of_base.values())
    share, moved = (claim for _, claim in session.claims())
    theirs = peft.get_peft_model(mlp(), session.model.peft_config["default"])
    trainable, everything = theirs.get_nb_trainable_parameters()
    assert share.after == pytest.approx(trainable / everything, abs=1e-12)
    assert (share.before, moved.before, moved.after) == (1.0, 0.0, 1.0)
    assert share.checked("x") and moved.checked("x")


@pytest.mark.parametrize("base", ["fp32", "bf16"])
@pytest.mark.parametrize("method", [Lora(rank=4), Ia3(), Vera(rank=8)], ids=lambda method: method.name)
def test_an_average_is_merged_too(method: Adapter, base: str) -> None:
    torch.manual_seed(0)
    model = mlp()
    methods = [dataclasses.replace(method, base=base), AdamW(lr=0.02), Ema(decay=0.5)]
    session = TrainingSession(model, methods, CrossEntropy(), steps=4)
    for _ in range(4):
        session.step(batch())
    (x,), _ = batch()
    averaged, last = answers(session.evaluated(), x), answers(session.model, x)
    assert not torch.allclose(averaged, last, atol=1e-4)
    left = session.finish()
    torch.testing.assert_close(answers(left, x), averaged, rtol=1e-4, atol=1e-5)
    assert left.state_dict().keys() == mlp().state_dict().keys() and all(p.requires_grad for p in left.parameters())


def test_adapters_that_never_moved_are_no_effect() -> None:
    session = TrainingSession(mlp(), [Lora()], CrossEntropy(), steps=1)
    with pytest.raises(NoEffect, match="lora changed nothing: share of adapters that moved was 0 and is 0"):
        for name, claim in session.claims():
            claim.checked(name)


def test_what_was_frozen_before_is_frozen_after_and_stays_as_it_was() -> None:
    model = mlp()
    model[0].requires_grad_(False)
    session = adapted(Lora(targets="2|4"), model)
    done = session.finish()
    assert [p.requires_grad for p in done.parameters()] == [False, False, True, True, True]
    assert torch.equal(done[0].weight, mlp()[0].weight)


def test_running_statistics_stand_still_through_evaluations() -> None:
    model = testing.trained()
    before = {n: b.clone() for n, b in model.named_buffers()}
    session = TrainingSession(model, [Lora(rank=2)], CrossEntropy(), steps=2)
    for _ in range(2):
        session.model.train()  # as the loop does after an evaluation
        session.step(((testing.stripes(16, 0).tensors[0],), testing.stripes(16, 0).tensors[1]))
    assert all(torch.equal(b, before[n]) for n, b in session.finish().named_buffers())


def test_a_transformer_layers_fast_path_does_not_pass_the_adapter_by() -> None:
    """In eval mode torch's encoder layer hands its linear layers' weights to one fused kernel."""
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
            self.head = nn.Linear(16, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.layer(x).mean(1))  # type: ignore[no-any-return]

    x = torch.randn(8, 3, 16)
    session = adapted(Lora(rank=4, targets="linear1|linear2"), Encoder(), data=((x,), torch.arange(8) % 5))
    seen = answers(session.model, x)
    with torch.enable_grad():
        torch.testing.assert_close(seen, session.model.eval()(x).detach(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(answers(session.finish(), x), seen, rtol=1e-5, atol=1e-5)
    with pytest.raises(ThriftyError, match="layer.self_attn.out_proj, which cannot be adapted: nn.MultiheadAttention"):
        TrainingSession(Encoder(), [Lora(targets="out_proj")], CrossEntropy(), steps=1)
    with pytest.raises(ThriftyError, match="none that it can"):
        TrainingSession(nn.MultiheadAttention(8, 2), [Lora()], CrossEntropy(), steps=1)


def test_factors_whose_neutral_value_is_one_are_not_decayed() -> None:
    for method, names in ((Ia3(), "ia3_l"), (Lora(variant="dora"), "magnitude"), (Vera(rank=4), "lambda_d")):
        session = TrainingSession(mlp(), [method, AdamW(weight_decay=0.5)], CrossEntropy(), steps=1)
        by_id = {id(p): n for n, p in session.model.named_parameters()}
        for group in session.optimizer.param_groups:
            for p in group["params"]:
                assert names not in by_id[id(p)] or group["weight_decay"] == 0.0


@pytest.mark.parametrize("method", [Lora(rank=4), Ia3(), Vera(rank=16)], ids=repr)
def test_it_composes_with_a_precision_and_a_teacher(method: Adapter) -> None:
    (x,), y = batch(64)
    teacher = mlp(3)
    student = copy.deepcopy(teacher)
    done = fit(student, [method, Bf16(), Distill(), AdamW(lr=0.01)], TensorDataset(x, y), CrossEntropy(),
               settings=Train(epochs=2), batch_size=16, teachers=lambda text: teacher)
    claims = {(name, claim.what): claim.checked(name).after for name, claim in done.claims}
    assert claims["bf16", "share of forward FLOPs in bfloat16"] > 0.5
    assert done.model[0].weight.dtype == torch.float32


def test_the_next_phase_trains_everything_again() -> None:
    (x,), y = batch(64)
    model = fit(mlp(), [Lora(rank=4)], TensorDataset(x, y), CrossEntropy(), batch_size=32).model
    before = copy.deepcopy(model.state_dict())
    after = fit(model, [AdamW(lr=0.01)], TensorDataset(x, y), CrossEntropy(), batch_size=32).model.state_dict()
    assert not any(torch.equal(after[name], before[name]) for name in before)


def test_recipes_refuse_what_cannot_be_adapted() -> None:
    known = frozenset({"module", "float-weights"})
    with pytest.raises(RecipeError, match="lora requires a trained model"):
        carry(Recipe.parse("train(lora)"), known)
    with pytest.raises(RecipeError, match="float-weights, which the earlier quantize removed"):
        carry(Recipe.parse("train(adamw) | quantize(w8a8) | train(lora)"), known)
    with pytest.raises(RecipeError, match="ia3 requires a model without adapters, which lora gives it.*keep one of lora and ia3"):
        carry(Recipe.parse("train(adamw) | train(lora, ia3)"), known)
    carry(Recipe.parse("train(adamw) | train(lora(rank=4)) | prune(ratio=0.5) | train(ia3) | quantize(w8a8)"), known)


def test_an_adapted_model_is_refused() -> None:
    model = peft.inject_adapter_in_model(peft.LoraConfig(target_modules=["2"]), mlp())
    with pytest.raises(ThriftyError, match=r"already adapted \(2 is an adapter's layer\): merge that one first"):
        TrainingSession(model, [Lora()], CrossEntropy(), steps=1)


def test_a_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtra, match=r"thrifty\[peft\]"):
        adapter.load_peft()
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(MissingExtra, match=r"thrifty\[qlora\]"):
        held.Held(nn.Linear(4, 4), "nf4")
