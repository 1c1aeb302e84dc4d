"""Weights of transformers in and out, and their models made faster where they stand."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from thrifty.architectures.accelerate import accelerate
from thrifty.architectures.accelerated import Stand
from thrifty.architectures.backbone import Backbone
from thrifty.architectures.blocks import Sizes
from thrifty.architectures.huggingface import from_huggingface, to_huggingface
from thrifty.compilers.capture import capture
from thrifty.errors import NoEffect, ThriftyError


def mamba2(**changes: Any) -> nn.Module:
    torch.manual_seed(0)
    config = transformers.Mamba2Config(**{
        "num_heads": 8, "head_dim": 8, "hidden_size": 32, "state_size": 16, "n_groups": 2, "num_hidden_layers": 2,
        "vocab_size": 50, "chunk_size": 16, "time_step_limit": (0.05, 0.6), "pad_token_id": 0} | changes)
    return shaken(transformers.Mamba2ForCausalLM(config))


def mamba(**changes: Any) -> nn.Module:
    torch.manual_seed(0)
    return shaken(transformers.MambaForCausalLM(transformers.MambaConfig(**{
        "hidden_size": 32, "state_size": 4, "num_hidden_layers": 2, "vocab_size": 50} | changes)))


def jamba(**changes: Any) -> nn.Module:
    """Mamba, attention with experts, Mamba, Mamba with experts."""
    torch.manual_seed(0)
    return shaken(transformers.JambaForCausalLM(transformers.JambaConfig(**{
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
        "num_experts": 4, "attn_layer_period": 4, "attn_layer_offset": 1, "mamba_d_state": 8, "mamba_dt_rank": 4,
        "vocab_size": 50, "pad_token_id": 0} | changes)))


def mixtral(**changes: Any) -> nn.Module:
    torch.manual_seed(0)
    return shaken(transformers.MixtralForCausalLM(transformers.MixtralConfig(**{
        "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
        "num_local_experts": 5, "num_experts_per_tok": 2, "vocab_size": 50} | changes)))


def shaken(model: nn.Module) -> nn.Module:
    """Every weight random: nothing passes because a bias is 0 or a scale 1."""
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.2 * torch.randn_like(weight)
    return model.eval()


def ids(batch: int, tokens: int) -> Tensor:
    return torch.randint(1, 50, (batch, tokens), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("make", [mamba2, mamba, lambda: mamba2(use_bias=True, n_groups=1, conv_kernel=3),
                                  lambda: mamba2(tie_word_embeddings=True), lambda: mamba(use_bias=True), jamba,
                                  lambda: jamba(attn_layer_period=3, attn_layer_offset=0, expert_layer_period=1,
                                                expert_layer_offset=0, mamba_proj_bias=True, tie_word_embeddings=True),
                                  mixtral, lambda: mixtral(rope_parameters={"rope_type": "default", "rope_theta": 500.0})])
@torch.no_grad()
def test_weights_go_in_and_out(make: Any) -> None:
    model = make()
    ours = from_huggingface(model)
    given = ids(2, 70)
    wanted = model(given).logits
    torch.testing.assert_close(ours(given), wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))
    back = to_huggingface(ours)
    assert type(back) is type(model) and back.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(a, b) for a, b in zip(back.state_dict().values(), model.state_dict().values(), strict=True))


@torch.no_grad()
def test_what_transformers_have_no_model_for_is_refused() -> None:
    with pytest.raises(ThriftyError, match="no model with the pattern 'mamba2 attention'"):
        to_huggingface(Backbone(10, "mamba2 attention", Sizes(32, heads=4, head=8, state=4)))
    with pytest.raises(ThriftyError, match="one layer of so many"):
        to_huggingface(Backbone(10, "attention moe mamba gated_mlp mamba gated_mlp attention moe attention moe", Sizes(
            32, heads=4, rotary=0, weighting="scores", scan_eps=1e-6)))
    with pytest.raises(ThriftyError, match="Linear is not a language model of mamba, mamba2, mixtral, jamba: give Mamba"):
        from_huggingface(nn.Linear(2, 2))
    with pytest.raises(ThriftyError, match="sliding_window=8"):
        from_huggingface(mixtral(sliding_window=8))


@torch.no_grad()
def test_a_balanced_router_does_not_go_out_silently() -> None:
    ours = from_huggingface(mixtral())
    ours.get_buffer("blocks.1.mixer.experts.router.bias")[2] = 0.1
    with pytest.raises(ThriftyError, match=r"router.bias balances .* train with Sizes\(rate=0\)"):
        to_huggingface(ours)


@torch.no_grad()
def test_a_backbone_generates_as_jamba_does() -> None:
    model, prompt = jamba(), ids(2, 9)
    wanted = model.generate(prompt, max_new_tokens=6, do_sample=False)[:, 9:]
    assert torch.equal(from_huggingface(model).generate(prompt, 6), wanted)


@pytest.mark.parametrize(("make", "layers"), [(mamba2, 2), (mamba, 2), (jamba, 3)])
@torch.no_grad()
def test_accelerated_models_compute_the_same(make: Any, layers: int) -> None:
    model = make()
    faster = accelerate(copy.deepcopy(model))
    assert sum(isinstance(m, Stand) for m in faster.modules()) == layers
    assert faster.state_dict().keys() == model.state_dict().keys()
    given = ids(2, 70)
    torch.testing.assert_close(faster(given).logits, model(given).logits, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("make", "cached"), [(mamba2, "cache_params"), (mamba, "cache_params"), (jamba, "past_key_values")])
@torch.no_grad()
def test_accelerated_models_generate_as_the_whole_sequence_says(make: Any, cached: str) -> None:
    """300 tokens with limits of dt, which the decoding of transformers leaves out."""
    faster = accelerate(make())
    given = ids(2, 300)
    whole = faster(given).logits
    cache, parts = None, []
    for first, stop in [(0, 37), (37, 40), (40, 41), *((t, t + 1) for t in range(41, 300))]:
        done = faster(given[:, first:stop], **{cached: cache}, use_cache=True)
        cache = done[cached]
        parts.append(done.logits)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-5, atol=2e-5 * float(whole.abs().max()))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("make", [mamba2, mamba])
@torch.no_grad()
def test_accelerated_prefill_of_padded_prompts_keeps_the_unpadded_state(make: Any, side: str) -> None:
    """transformers#48256: padding on the right was kept as the convolution's state, and let the state decay."""
    faster = accelerate(make())
    given, mask = ids(1, 20), torch.zeros(1, 29, dtype=torch.int64)
    place = slice(9, 29) if side == "left" else slice(0, 20)
    padded = torch.zeros(1, 29, dtype=torch.int64)
    padded[:, place], mask[:, place] = given, 1
    cache = faster(padded, attention_mask=mask, use_cache=True).cache_params
    alone = faster(given, use_cache=True).cache_params
    for layer in range(2):
        torch.testing.assert_close(cache.layers[layer].recurrent_states[0], alone.layers[layer].recurrent_states[0],
                                   rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(cache.layers[layer].conv_states[0], alone.layers[layer].conv_states[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("make", [mamba2, jamba])
def test_accelerated_models_train_and_generate_by_transformers_own_loop(make: Any) -> None:
    model = make()
    faster = accelerate(copy.deepcopy(model))
    given = ids(2, 40)
    for one in (model, faster):
        one(given, labels=given).loss.backward()
    for (name, a), b in zip(model.named_parameters(), faster.parameters(), strict=True):
        assert a.grad is not None and b.grad is not None
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-4, atol=1e-5 * float(a.grad.abs().max()) + 1e-6, msg=name)
    answer = faster.generate(given, max_new_tokens=5, do_sample=False)
    assert torch.equal(answer[:, :40], given)
    logits = faster(answer[:, :-1]).logits[:, 39:]
    assert torch.equal(logits.argmax(-1), answer[:, 40:])


def test_a_model_without_such_layers_is_left() -> None:
    with pytest.raises(NoEffect, match="no transformers Mamba or Mamba-2 layer and no experts in Linear"):
        accelerate(nn.Linear(2, 2))


def test_experts_of_transformers_compute_by_our_kernels() -> None:
    model, given = mixtral(), ids(2, 9)
    faster = accelerate(copy.deepcopy(model))
    with torch.profiler.profile() as seen:
        torch.testing.assert_close(faster(given).logits, model(given).logits, rtol=1e-4, atol=1e-4)
    assert sum(event.name == "thrifty::moe" for event in seen.events()) >= 2
    assert model.config._experts_implementation != "thrifty"
    for net in (model, faster):
        net(given, labels=given).loss.backward()
    for mine, theirs in zip(faster.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("make", "tokens"), [(mixtral, 9), (mixtral, 1), (jamba, 9)])
def test_models_export_in_torch_operators_alone_and_are_left_as_they_were(make: Any, tokens: int) -> None:
    """One token of two experts reads the matrices of those; nine tokens pass through all."""
    model, given = make(), ids(1, tokens)
    classes = [type(module) for module in model.modules()]
    program = capture(Logits(model), (given,), {})
    assert {node.target.namespace for node in program.graph.nodes if hasattr(node.target, "namespace")} == {"aten"}
    with torch.no_grad():
        torch.testing.assert_close(program.module()(given), model(given).logits, rtol=1e-4, atol=1e-4)
    assert [type(module) for module in model.modules()] == classes
    assert model.config._experts_implementation != "thrifty"


class Logits(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, ids: Tensor) -> Tensor:
        return self.body(input_ids=ids, use_cache=False).logits
