"""LoRA and its kin, against the math written out and against peft on its own."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.training.peft.nets import CONSTANT, adapted, answers, batch, mlp
from thrifty import (
    Adafactor,
    AdamW,
    AdamW8bit,
    CrossEntropy,
    Ema,
    Lion,
    Lora,
    Muon,
    ScheduleFree,
    Soap,
    Sophia,
    save_adapter,
)
from thrifty.errors import ThriftyError
from thrifty.recipes.training_method import TrainingMethod
from thrifty.training.peft.lora import size
from thrifty.training.session import TrainingSession

peft = pytest.importorskip("peft")


def naive(x: Tensor, weight: Tensor, bias: Tensor, a: Tensor, b: Tensor, s: float, m: Tensor | None) -> Tensor:
    """y = x W'^T + bias with W' = W + s B A, or m (W + s B A) / |W + s B A| by rows."""
    whole = weight + s * sum(torch.outer(b[:, i], a[i]) for i in range(a.shape[0]))
    if m is not None:
        whole = m[:, None] * whole / whole.pow(2).sum(1, keepdim=True).sqrt()
    return x @ whole.T + bias


@settings(max_examples=12)
@given(st.integers(2, 9), st.integers(2, 9), st.integers(1, 12), st.floats(0.5, 40),
       st.sampled_from(["plain", "rslora", "dora", "pissa"]))
def test_the_layer_computes_the_formula(inner: int, out: int, rank: int, alpha: float, variant: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(11, inner), nn.Linear(inner, out))
    largest = min(11, inner)
    if rank > max(largest, min(inner, out)):
        with pytest.raises(ThriftyError, match="choose a rank up to"):
            TrainingSession(model, [Lora(rank=rank)], CrossEntropy(), steps=1)
        return
    session = TrainingSession(model, [Lora(rank=rank, alpha=alpha, variant=variant)], CrossEntropy(), steps=1)
    s = alpha / (math.sqrt(rank) if variant == "rslora" else rank)
    x = torch.randn(5, 11)
    expected = x
    with torch.no_grad():
        for layer in session.model:
            layer.lora_B["default"].weight.normal_()
            m = layer.lora_magnitude_vector["default"].weight if variant == "dora" else None
            base = layer.base_layer
            a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            assert a.shape[0] == min(rank, size(base))
            expected = naive(expected, base.weight, base.bias, a, b, s, m)
    torch.testing.assert_close(answers(session.model, x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("variant", ["plain", "rslora", "dora", "pissa"])
def test_it_begins_as_the_base(variant: str) -> None:
    (x,), _ = batch()
    session = TrainingSession(mlp(), [Lora(rank=3, variant=variant)], CrossEntropy(), steps=1)
    torch.testing.assert_close(answers(session.model, x), answers(mlp(), x), rtol=1e-5, atol=1e-5)


def test_principal_components_are_those_of_the_singular_value_decomposition() -> None:
    session = TrainingSession(mlp(), [Lora(rank=3, alpha=3, variant="pissa", targets="2")], CrossEntropy(), steps=1)
    layer, weight = session.model[2], mlp()[2].weight.detach()
    u, s, v = torch.linalg.svd(weight)
    principal = u[:, :3] @ torch.diag(s[:3]) @ v[:3]
    got = (layer.lora_B["default"].weight @ layer.lora_A["default"].weight).detach()
    torch.testing.assert_close(got, principal, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer.base_layer.weight.detach(), weight - principal, rtol=1e-4, atol=1e-5)


def test_a_loop_over_pefts_own_model_gives_the_same_weights() -> None:
    (x,), y = batch()
    ours = adapted(Lora(rank=4, alpha=8), mlp(), steps=5)
    base = mlp()
    torch.manual_seed(0)
    theirs = peft.get_peft_model(base, peft.LoraConfig(r=4, lora_alpha=8, target_modules=["0", "2", "4"]))
    optimizer = torch.optim.AdamW([p for p in theirs.parameters() if p.requires_grad], lr=0.02, weight_decay=0.01)
    for _ in range(5):
        optimizer.zero_grad()
        nn.functional.cross_entropy(theirs(x), y).backward()
        optimizer.step()
    torch.testing.assert_close(answers(ours.finish(), x), answers(theirs.merge_and_unload(), x), rtol=1e-4, atol=1e-5)


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.conv, self.head = nn.Embedding(20, 6), nn.Conv2d(1, 4, 3, padding=1), nn.Linear(24, 5)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.conv(self.table(ids)[:, None]).mean(2).flatten(1))  # type: ignore[no-any-return]


@pytest.mark.parametrize("variant", ["plain", "rslora", "dora"])
def test_convolutions_and_embeddings_by_pattern(variant: str) -> None:
    ids = torch.randint(0, 20, (16, 7))
    session = adapted(Lora(rank=4, variant=variant, targets="table|conv|head"), Mixed(), data=((ids,), torch.arange(16) % 5))
    assert {name for name, claim in session.claims() if claim.checked(name)} == {"lora"}
    before = answers(session.model, ids)
    torch.testing.assert_close(answers(session.finish(), ids), before, rtol=1e-5, atol=1e-5)


def test_what_does_not_suit_is_refused() -> None:
    for method, says in (
        (Lora(rank=25), r"largest layer it would adapt has rank 24; choose a rank up to 24"),
        (Lora(variant="pissa", targets="conv"), "conv is Conv2d, and it adapts Linear, Conv1D"),
        (Lora(base="bf16", targets="conv"), "conv is Conv2d: choose other targets, or base=fp32"),
    ):
        with pytest.raises(ThriftyError, match=says):
            TrainingSession(mlp() if method.rank == 25 else Mixed(), [method], CrossEntropy(), steps=1)


def test_dropout_is_drawn_in_training_alone() -> None:
    (x,), _ = batch()
    model = adapted(Lora(rank=4, dropout=0.5), mlp()).model
    assert torch.equal(answers(model, x), answers(model, x))
    model.train()
    with torch.no_grad():
        assert not torch.equal(model(x), model(x))


def normed(seed: int = 1) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(13, 24), nn.LayerNorm(24), nn.ReLU(), nn.Linear(24, 24, bias=False), nn.RMSNorm(24),
                         nn.Tanh(), nn.Linear(24, 5))


def test_norms_are_trained_as_peft_would_at_their_own_rate() -> None:
    (x,), y = batch()
    session, base = adapted(Lora(rank=4, alpha=8, norms=4), normed(), steps=5), normed()
    torch.manual_seed(0)
    theirs = peft.get_peft_model(base, peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=["0", "3", "6"], modules_to_save=["1", "4"]))
    share = {claim.what: claim.after for _, claim in session.claims()}["share of trainable parameters"]
    trainable, everything = theirs.get_nb_trainable_parameters()
    assert share == pytest.approx(trainable / everything, abs=1e-12)
    named = {name: p for name, p in theirs.named_parameters() if p.requires_grad}
    norms = {name for name in named if "modules_to_save" in name}
    assert len(norms) == 3
    optimizer = torch.optim.AdamW([
        {"params": [p for name, p in named.items() if name not in norms]},
        {"params": [named[name] for name in norms], "lr": 0.08, "weight_decay": 0.0}], lr=0.02, weight_decay=0.01)
    for _ in range(5):
        optimizer.zero_grad()
        nn.functional.cross_entropy(theirs(x), y).backward()
        optimizer.step()
    before = answers(session.model, x)
    done = session.finish()
    torch.testing.assert_close(answers(done, x), before, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(answers(done, x), answers(theirs.merge_and_unload(), x), rtol=1e-4, atol=1e-5)
    assert str(done) == str(normed()) and all(p.requires_grad for p in done.parameters())
    assert not torch.equal(done[1].weight, normed()[1].weight) and not torch.equal(done[4].weight, normed()[4].weight)


@pytest.mark.parametrize("optimizer", [Adafactor(lr=0.01), AdamW(lr=0.01), Lion(lr=0.01), Muon(lr=0.01),
                                       pytest.param(AdamW8bit(lr=0.01), marks=pytest.mark.slow),
                                       ScheduleFree(lr=0.01), Soap(lr=0.01), Sophia(lr=0.01)], ids=lambda method: method.name)
def test_every_optimizer_gives_norms_their_rate(optimizer: TrainingMethod) -> None:
    session = TrainingSession(normed(), [Lora(rank=4, norms=4), optimizer], CrossEntropy(), steps=3, settings=CONSTANT)
    norms = {id(p) for name, p in session.model.named_parameters() if p.requires_grad and "modules_to_save" in name}
    rates = {id(p): float(group["lr"]) for group in session.optimizer.param_groups for p in group["params"]}
    assert len(norms) == 3 and len(rates) > 3
    for key, rate in rates.items():
        assert rate == pytest.approx(0.04 if key in norms else 0.01)
    session.step(batch())
    assert session.model[1].weight.isfinite().all()


@pytest.mark.parametrize("method", [Lora(rank=3, norms=2, variant="dora"), Lora(rank=3, norms=2, base="bf16")], ids=repr)
def test_norms_are_left_with_every_variant_and_base(method: Lora) -> None:
    (x,), _ = batch()
    session = adapted(method, normed())
    trained = answers(session.model, x)
    torch.testing.assert_close(answers(session.finish(), x), trained, rtol=1e-5, atol=1e-5)


def test_norms_stay_with_the_adapter_that_peft_loads(tmp_path: Path) -> None:
    (x,), _ = batch()
    model = adapted(Lora(rank=3, norms=2), normed()).model
    save_adapter(model, tmp_path)
    loaded = peft.PeftModel.from_pretrained(normed(), tmp_path)
    torch.testing.assert_close(answers(loaded, x), answers(model, x), rtol=1e-5, atol=1e-5)


def test_an_average_of_norms_is_left_too() -> None:
    torch.manual_seed(0)
    session = TrainingSession(normed(), [Lora(rank=4, norms=4), AdamW(lr=0.02), Ema(decay=0.5)], CrossEntropy(), steps=4)
    for _ in range(4):
        session.step(batch())
    (x,), _ = batch()
    averaged, last = answers(session.evaluated(), x), answers(session.model, x)
    assert not torch.allclose(averaged, last, atol=1e-4)
    torch.testing.assert_close(answers(session.finish(), x), averaged, rtol=1e-4, atol=1e-5)


def test_norms_that_are_not_there_or_cannot_be_told_apart() -> None:
    with pytest.raises(ThriftyError, match=r"lora\(norms=4\) trains the norms too, but the model has none"):
        TrainingSession(mlp(), [Lora(norms=4)], CrossEntropy(), steps=1)
    model = nn.Sequential()
    model.add_module("norm", nn.LayerNorm(13))
    model.add_module("prenorm", nn.Linear(13, 5))
    with pytest.raises(ThriftyError, match="prenorm, which is not a norm, ends like one"):
        TrainingSession(model, [Lora(rank=2, norms=4)], CrossEntropy(), steps=1)
    adapted(Lora(rank=2), model)


@pytest.mark.parametrize("kind", ["Llama", "GPT2"])
def test_hugging_face_models(kind: str) -> None:
    """GPT-2 holds its weights transposed, and its head shares the embedding's, which no adapter may touch."""
    transformers = pytest.importorskip("transformers")
    config = {"Llama": lambda: transformers.LlamaConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                                                        num_attention_heads=2, vocab_size=32),
              "GPT2": lambda: transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=32, n_positions=16)}[kind]()
    model = getattr(transformers, f"{kind}{'ForCausalLM' if kind == 'Llama' else 'LMHeadModel'}")(config)
    ids = torch.randint(0, 32, (4, 8))
    session = TrainingSession(model, [Lora(rank=2, norms=2), AdamW(lr=0.02)], CrossEntropy(), steps=3,
                  forward=lambda model, batch: model(*batch[0]).logits)
    for _ in range(3):
        session.step(((ids,), ids))
    assert ("lm_head" in session.memory(session.methods[0])["names"]) == (kind == "Llama")
    with torch.no_grad():
        before = session.model.eval()(ids).logits
        torch.testing.assert_close(session.finish()(ids).logits, before, rtol=1e-4, atol=1e-5)
