"""Weights of transformers in and out, and their models made faster where they stand."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from thrifty.architectures.accelerate import Accelerated, accelerate
from thrifty.architectures.backbone import Backbone
from thrifty.architectures.blocks import Sizes
from thrifty.architectures.huggingface import from_huggingface, to_huggingface
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


def shaken(model: nn.Module) -> nn.Module:
    """Every weight random: nothing passes because a bias is 0 or a scale 1."""
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.2 * torch.randn_like(weight)
    return model.eval()


def ids(batch: int, tokens: int) -> Tensor:
    return torch.randint(1, 50, (batch, tokens), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("make", [mamba2, mamba, lambda: mamba2(use_bias=True, n_groups=1, conv_kernel=3),
                                  lambda: mamba2(tie_word_embeddings=True), lambda: mamba(use_bias=True)])
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
    with pytest.raises(ThriftyError, match="Linear is not a language model of mamba or mamba2"):
        from_huggingface(nn.Linear(2, 2))


@torch.no_grad()
def test_accelerated_models_compute_the_same() -> None:
    model = mamba2()
    faster = accelerate(copy.deepcopy(model))
    assert sum(isinstance(m, Accelerated) for m in faster.modules()) == 2
    assert faster.state_dict().keys() == model.state_dict().keys()
    given = ids(2, 70)
    torch.testing.assert_close(faster(given).logits, model(given).logits, rtol=1e-5, atol=1e-4)


@torch.no_grad()
def test_accelerated_models_generate_as_the_whole_sequence_says() -> None:
    """300 tokens with limits of dt, which the decoding of transformers leaves out."""
    faster = accelerate(mamba2())
    given = ids(2, 300)
    whole = faster(given).logits
    cache, parts = None, []
    for first, stop in [(0, 37), (37, 40), (40, 41), *((t, t + 1) for t in range(41, 300))]:
        done = faster(given[:, first:stop], cache_params=cache, use_cache=True)
        cache = done.cache_params
        parts.append(done.logits)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=1e-5, atol=1e-5 * float(whole.abs().max()))


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_accelerated_prefill_of_padded_prompts_keeps_the_unpadded_state(side: str) -> None:
    """transformers#48256: padding on the right was kept as the convolution's state, and let the state decay."""
    faster = accelerate(mamba2())
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


def test_accelerated_models_train_and_generate_by_transformers_own_loop() -> None:
    model = mamba2()
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
    with pytest.raises(NoEffect, match="no transformers Mamba-2 layer and no experts in Linear"):
        accelerate(nn.Linear(2, 2))


def test_experts_of_transformers_compute_by_our_kernels() -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    config = MixtralConfig(hidden_size=32, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
                           num_key_value_heads=1, num_local_experts=5, num_experts_per_tok=2, vocab_size=50)
    model = MixtralForCausalLM(config).eval()
    ids = torch.randint(50, (2, 9))
    faster = accelerate(copy.deepcopy(model))
    with torch.profiler.profile() as seen:
        torch.testing.assert_close(faster(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-5)
    assert sum(event.name == "thrifty::moe" for event in seen.events()) >= 2
    assert model.config._experts_implementation != "thrifty"
    for net in (model, faster):
        net(ids, labels=ids).loss.backward()
    for mine, theirs in zip(faster.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-5)
