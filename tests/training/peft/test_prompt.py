"""Prompt and prefix tuning of a small Llama."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.training.peft.nets import mlp
from thrifty import AdamW, CrossEntropy, PromptTuning
from thrifty.errors import ThriftyError
from thrifty.training.session import TrainingSession

transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")


def llama() -> Any:
    torch.manual_seed(1)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, vocab_size=32))


def logits(model: Any, batch: Any) -> Tensor:
    found: Tensor = model(*batch[0]).logits
    return found


@pytest.mark.parametrize("kind", ["prompt", "prefix"])
def test_the_prompt_alone_learns_and_the_base_stands_still(kind: str) -> None:
    ids = torch.randint(0, 32, (8, 7))
    base = llama()
    before = {n: p.detach().clone() for n, p in base.named_parameters()}
    session = TrainingSession(base, [PromptTuning(kind, tokens=3), AdamW(lr=0.05)], CrossEntropy(), steps=20, forward=logits)
    losses = [float(session.step(((ids,), ids))) for _ in range(20)]
    assert losses[-1] < losses[0]
    assert logits(session.model, ((ids,), ids)).shape == (8, 7, 32)
    assert all(torch.equal(p, before[n]) for n, p in base.named_parameters())
    share, moved = (claim.checked(name) for name, claim in session.claims())
    theirs, everything = session.model.tuned.get_nb_trainable_parameters()
    assert theirs == 3 * 16 * (1 if kind == "prompt" else 4)
    assert share.after == pytest.approx(theirs / everything)
    assert moved.after >= 1
    assert all(p.requires_grad for n, p in session.finish().named_parameters() if "base_model" in n)


def test_a_prompt_is_embeddings_before_the_inputs() -> None:
    ids = torch.randint(0, 32, (2, 5))
    model = TrainingSession(llama(), [PromptTuning(tokens=3)], CrossEntropy(), steps=1, forward=logits).model.eval()
    learnt = model.tuned.prompt_encoder["default"].embedding.weight
    base = llama().eval()
    with torch.no_grad():
        rows = torch.cat([learnt.expand(2, 3, 16), base.get_input_embeddings()(ids)], 1)
        torch.testing.assert_close(model(ids).logits, base(inputs_embeds=rows).logits[:, 3:], rtol=1e-4, atol=1e-5)


def test_other_models_are_refused_with_the_reason() -> None:
    with pytest.raises(ThriftyError, match="needs a Hugging Face causal language model, but this is Sequential"):
        TrainingSession(mlp(), [PromptTuning()], CrossEntropy(), steps=1)
    adapted = peft.inject_adapter_in_model(peft.LoraConfig(target_modules=["q_proj"]), llama())
    with pytest.raises(ThriftyError, match="already adapted"):
        TrainingSession(adapted, [PromptTuning()], CrossEntropy(), steps=1)
