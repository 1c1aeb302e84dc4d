"""LoRA on experts: one A and one B for every matrix of every expert, in the orientation of the definition."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from thrifty import AdamW, CrossEntropy, Lora
from thrifty.architectures.moe import MoE
from thrifty.errors import ThriftyError
from thrifty.training.session import TrainingSession

pytest.importorskip("peft")


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.moe, self.head = nn.Linear(12, 12), MoE(12, 10, 4, 2, rate=0), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.head(x + self.moe(x))


def mixtral() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = transformers.MixtralForCausalLM(transformers.MixtralConfig(
                hidden_size=32, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
                num_local_experts=4, num_experts_per_tok=2, vocab_size=50))

        def forward(self, ids: Tensor) -> Tensor:
            return self.body(input_ids=ids, use_cache=False).logits[:, -1]

    return Last()


def batch_of(model: nn.Module) -> tuple[tuple[Tensor], Tensor]:
    torch.manual_seed(1)
    if isinstance(model, Classifier):
        return (torch.randn(32, 12),), torch.randint(3, (32,))
    return (torch.randint(50, (8, 9)),), torch.randint(50, (8,))


@pytest.mark.parametrize("make", [Classifier, mixtral])
def test_every_expert_is_adapted_and_merged_as_defined(make: Any) -> None:
    torch.manual_seed(0)
    model, rank, alpha = make(), 3, 6.0
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    stacked = [name for name, p in before.items() if p.dim() == 3]
    session = TrainingSession(model, [AdamW(lr=0.05), Lora(rank=rank, alpha=alpha, experts=True)], CrossEntropy(), steps=3)
    for _ in range(3):
        session.step(batch_of(model))
    wrappers = [m for m in session.model.modules() if hasattr(m, "parameter_name")]
    assert len(wrappers) == len(stacked)
    wanted = {}
    for wrapper in wrappers:
        a, b = wrapper.lora_A["default"].weight.detach(), wrapper.lora_B["default"].weight.detach()
        experts = 4
        assert a.shape[0] == b.shape[1] == experts * rank
        deltas = torch.stack([sum(torch.outer(b[:, r * experts + e], a[e * rank + r]) for r in range(rank))
                              for e in range(experts)]) * alpha / rank
        wanted.setdefault(wrapper.parameter_name, []).append(deltas)
    counted = next(claim for _, claim in session.claims() if claim.what == "experts' matrices with adapters")
    assert counted.after == 4 * len(stacked)
    done = session.finish()
    after = dict(done.named_parameters())
    assert after.keys() == before.keys()
    for name in stacked:
        delta = after[name] - before[name]
        assert delta.flatten(1).abs().amax(1).gt(0).all(), "every expert moved"
        assert any(torch.allclose(delta, each, atol=1e-5) for each in wanted[name.rpartition(".")[2]])
    assert torch.equal(after[next(n for n in before if "router" in n or "gate.weight" in n)],
                       before[next(n for n in before if "router" in n or "gate.weight" in n)])


@pytest.mark.parametrize(("method", "says"), [
    (Lora(rank=2, experts=True, dropout=0.1), "dropout=0.1"), (Lora(rank=2, experts=True, variant="dora"), "variant=dora"),
    (Lora(rank=11, experts=True), "choose a rank up to 10"),
])
def test_what_does_not_suit_experts_is_refused(method: Lora, says: str) -> None:
    with pytest.raises(ThriftyError, match=says):
        TrainingSession(Classifier(), [AdamW(), method], CrossEntropy(), steps=1)


def test_a_model_without_experts_is_told() -> None:
    with pytest.raises(ThriftyError, match="no experts in tensors of three dimensions"):
        TrainingSession(nn.Sequential(nn.Linear(4, 4)), [AdamW(), Lora(rank=2, experts=True)], CrossEntropy(), steps=1)
