"""The layer against transformers' Mixtral, its definition, and what compilers and exports make of it."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from thrifty.architectures.moe import MoE, Router
from thrifty.errors import ThriftyError


def by_definition(layer: MoE, x: torch.Tensor) -> torch.Tensor:
    """One token at a time."""
    out = torch.zeros_like(x)
    for t, token in enumerate(x):
        scores = layer.router.weight.to(x.dtype) @ token
        scores = scores.softmax(-1) if layer.router.score == "softmax" else scores.sigmoid()
        chosen = (scores + layer.router.bias.to(x.dtype)).topk(layer.router.top_k).indices
        total = {"shares": scores[chosen].sum(), "scores": 1.0}[layer.router.weighting]
        for e in chosen:
            gate, up = (layer.gate_up[e] @ token).chunk(2)
            out[t] += layer.router.scale * scores[e] / total * (layer.down[e] @ (F.silu(gate) * up))
        if layer.shared_up is not None:
            gate, up = layer.shared_up(token).chunk(2)
            out[t] += layer.shared_down(F.silu(gate) * up)
    return out


@pytest.mark.parametrize("given", [
    {}, {"score": "sigmoid", "scale": 2.5}, {"weighting": "scores"}, {"top_k": 1}, {"top_k": 5}, {"shared": 7},
], ids=str)
def test_it_is_the_definition(given):
    torch.manual_seed(0)
    layer, x = MoE(6, 8, **{"experts": 5, "top_k": 2} | given).double().eval(), torch.randn(11, 6, dtype=torch.float64)
    layer.router.bias.copy_(torch.randn(5) * 0.2)
    torch.testing.assert_close(layer(x), by_definition(layer, x), rtol=1e-5, atol=1e-6)  # scores are float32
    torch.testing.assert_close(layer(x[None]), layer(x)[None])


def mixtral(experts=6, top_k=2):
    transformers = pytest.importorskip("transformers")
    from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

    torch.manual_seed(1)
    block = MixtralSparseMoeBlock(transformers.MixtralConfig(
        hidden_size=32, intermediate_size=48, num_local_experts=experts, num_experts_per_tok=top_k)).eval()
    for weight in block.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    return block


def test_it_is_transformers_mixtral_forward_and_backward():
    block, layer = mixtral(), MoE(32, 48, 6, 2).eval()
    with torch.no_grad():
        layer.router.weight.copy_(block.gate.weight)
        layer.gate_up.copy_(block.experts.gate_up_proj)
        layer.down.copy_(block.experts.down_proj)
    x = torch.randn(3, 5, 32)
    want, got = block(x), layer(x)
    want = want[0] if isinstance(want, tuple) else want
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    want.square().sum().backward()
    got.square().sum().backward()
    for mine, theirs in ((layer.router.weight, block.gate.weight), (layer.gate_up, block.experts.gate_up_proj),
                         (layer.down, block.experts.down_proj)):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [1, 7])
def test_exported_compiled_and_eager_agree(tokens):
    torch.manual_seed(0)
    layer, x = MoE(8, 16, 16, 8, shared=4).eval(), torch.randn(tokens, 8)
    want = layer(x)
    exported = torch.export.export(layer, (x,), strict=False)
    assert not any("thrifty" in str(node.target) for node in exported.graph.nodes)  # an artifact needs no more than torch
    torch.testing.assert_close(exported.module()(x), want)
    torch.testing.assert_close(torch.compile(layer, fullgraph=True)(x), want)
    torch.compiler.reset()


def test_compiled_it_sends_tokens_to_their_experts_alone():
    """Dynamo of torch 2.11 takes `torch.compiler.is_exporting()` for true, and a program for export has all experts for all."""
    layer, x, seen = MoE(8, 16, 4, 2).eval(), torch.randn(5, 8), []

    def keep(graph, example):
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    torch.compile(layer, fullgraph=True, backend=keep)(x)
    torch.compiler.reset()
    assert any("grouped_linear" in name for name in seen) and not any("einsum" in name for name in seen)


def test_all_tokens_to_one_expert():
    layer, x = MoE(8, 16, 4, 1).eval(), torch.randn(64, 8)
    layer.router.bias[2] = 100.0
    layer(x).sum().backward()
    assert (layer.gate_up.grad[[0, 1, 3]] == 0).all() and layer.gate_up.grad[2].abs().sum() > 0


def test_balancing_stands_still_in_eval_and_evens_the_load_in_training():
    torch.manual_seed(0)
    router, x = Router(8, 4, 1, rate=0.01), torch.randn(256, 8) + 2.0
    with torch.no_grad():
        router.weight[1] += 0.3  # nearly all go to it
    router.eval()
    first = router(x).ends.diff(prepend=torch.zeros(1, dtype=torch.int64))
    assert int(first[1]) > 200 and not router.bias.any() and not router.seen.any() and router.shares == []
    router.train()
    loads = [router(x).ends.diff(prepend=torch.zeros(1, dtype=torch.int64)) for _ in range(400)]
    assert int(sum(loads[-50:]).max()) < 50 * int(first.max()) / 2 and sum(router.shares) == pytest.approx(1)
    kept = router.bias.clone()
    router.eval()(x)
    assert torch.equal(router.bias, kept)
    assert router.weight.grad is None and not router.bias.requires_grad


def test_weights_come_from_the_scores_and_not_from_the_balance():
    router, x = Router(8, 4, 2, weighting="scores").eval(), torch.randn(5, 8)
    router.bias.copy_(torch.tensor([5.0, 5.0, 0.0, 0.0]))
    routing = router(x)
    assert set(routing.chosen.flatten().tolist()) == {0, 1}
    torch.testing.assert_close(routing.weights, (x @ router.weight.T).softmax(-1).gather(1, routing.chosen))


@pytest.mark.parametrize("top_k", [0, 5])
def test_more_experts_than_there_are_is_refused(top_k):
    with pytest.raises(ThriftyError, match="1 to 4"):
        MoE(8, 16, 4, top_k)


def test_under_autocast_products_are_in_sixteen_bits_and_scores_are_not():
    torch.manual_seed(0)
    layer, x = MoE(16, 32, 4, 2).eval(), torch.randn(9, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer.router(x).weights.dtype == torch.float32
        y = layer(x)
    assert y.dtype == torch.bfloat16
    assert (y.float() - layer(x)).norm() <= 2e-2 * layer(x).norm()


def test_weights_of_one_teach_the_router_what_scores_would():
    x = torch.randn(5, 8)
    one, plain = (Router(8, 4, 2, weighting=weighting).eval() for weighting in ("ones", "scores"))
    plain.load_state_dict(one.state_dict())
    assert (one(x).weights == 1).all()
    by = torch.randn(5, 2)
    for router in (one, plain):
        (router(x).weights * by).sum().backward()
    torch.testing.assert_close(one.weight.grad, plain.weight.grad)
