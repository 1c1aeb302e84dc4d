"""Every method x base x way to execute, each pair of them covered: the same losses as eager, and a merge that keeps them."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.training.peft.nets import CONSTANT
from thrifty import AdamW, CrossEntropy, Ia3, Lora, PromptTuning, Vera
from thrifty.recipes.training_method import TrainingMethod
from thrifty.training.session import TrainingSession
from thrifty.workloads.embedded.python_lm import LanguageModel

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
pytest.importorskip("peft")
pytest.importorskip("bitsandbytes")

WAYS = ("eager", "compile", "checkpointing")
BASES = ("fp32", "bf16", "int8", "nf4")
METHODS = (Lora(rank=4), Lora(rank=4, variant="rslora"), Lora(rank=4, variant="dora"), Lora(rank=4, variant="pissa"),
           Ia3(targets="key|value|down", inputs="down"), Vera(rank=16))
CELLS = [(dataclasses.replace(method, base=base), WAYS[(i + j) % 3])
         for i, method in enumerate(METHODS) for j, base in enumerate(BASES)]


def test_the_cells_cover_every_pair() -> None:
    assert {(m.name, getattr(m, "variant", ""), way) for m, way in CELLS} == {
        (m.name, getattr(m, "variant", ""), way) for m in METHODS for way in WAYS}
    assert {(m.base, way) for m, way in CELLS} == {(base, way) for base in BASES for way in WAYS}


def execute(session: TrainingSession, way: str, blocks: Any) -> None:
    """Have the adapted model compiled, or its blocks computed again in the backward pass."""
    if way == "compile":
        session.model.compile()
    elif way == "checkpointing":
        for block in blocks:
            block.forward = _again(block.forward)


def _again(forward: Any) -> Any:
    return lambda *inputs, **named: checkpoint(forward, *inputs, use_reentrant=False, **named)


def losses(session: TrainingSession, ids: Tensor) -> list[float]:
    return [float(session.step(((ids,), ids))) for _ in range(3)]


def lm() -> LanguageModel:
    torch.manual_seed(1)
    return LanguageModel(vocabulary=40, width=16, layers=2, heads=2, hidden=32, context=8)


def trained(method: TrainingMethod, model: nn.Module, way: str, ids: Tensor, forward: Any) -> tuple[TrainingSession, list[float]]:
    torch.manual_seed(0)
    session = TrainingSession(model, [method, AdamW(lr=0.02)], CrossEntropy(), steps=3, settings=CONSTANT, forward=forward)
    execute(session, way, [m for m in session.model.modules() if type(m).__name__ in ("Block", "LlamaDecoderLayer")])
    return session, losses(session, ids)


@pytest.mark.parametrize(("method", "way"), CELLS, ids=lambda part: part if isinstance(part, str) else repr(part))
def test_a_cell(method: Any, way: str) -> None:
    torch._dynamo.reset()
    ids = torch.randint(0, 40, (4, 8))

    def forward(model: nn.Module, batch: Any) -> Any:
        return model(*batch[0])

    _, plain = trained(method, lm(), "eager", ids, forward)
    session, got = trained(method, lm(), way, ids, forward)
    assert got == pytest.approx(plain, rel=1e-3)
    assert got[-1] < got[0]
    for name, claim in session.claims():
        claim.checked(name)
    with torch.no_grad():
        before = session.model.eval()(ids)
        torch.testing.assert_close(session.finish()(ids), before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["prompt", "prefix"])
@pytest.mark.parametrize("way", WAYS)
def test_prompts(kind: str, way: str) -> None:
    """They have no base of their own: the language model's precision is the user's."""
    transformers = pytest.importorskip("transformers")
    torch._dynamo.reset()
    ids = torch.randint(0, 32, (4, 8))

    def llama() -> Any:
        torch.manual_seed(1)
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(
            hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, vocab_size=32,
            use_cache=kind == "prefix"))

    def forward(model: nn.Module, batch: Any) -> Any:
        return model(*batch[0]).logits

    _, plain = trained(PromptTuning(kind, tokens=3), llama(), "eager", ids, forward)
    if (kind, way) == ("prefix", "checkpointing"):
        # A layer that is computed again appends its keys to the prefix's cache a second time: it fails at once.
        with pytest.raises(RuntimeError, match="size of tensor"):
            trained(PromptTuning(kind, tokens=3), llama(), way, ids, forward)
        return
    _, got = trained(PromptTuning(kind, tokens=3), llama(), way, ids, forward)
    assert got == pytest.approx(plain, rel=1e-3)
