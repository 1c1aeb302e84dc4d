"""Layers token by token, padded, in pieces, and against transformers' own with the same weights."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from thrifty.architectures.attention import Attention
from thrifty.architectures.convolution import causal
from thrifty.architectures.mamba import Mamba
from thrifty.architectures.mamba2 import Mamba2
from thrifty.architectures.mixer import Compaction, Mixer
from thrifty.errors import ThriftyError

WIDTH = 32
MIXERS = {
    "mamba2": lambda: Mamba2(WIDTH, state=16, head=8, groups=2, limits=(0.05, 0.4)),
    "mamba": lambda: Mamba(WIDTH, state=4),
    "attention": lambda: Attention(WIDTH, 4, 2),
}


@pytest.fixture(params=MIXERS)
def mixer(request: pytest.FixtureRequest) -> Mixer:
    torch.manual_seed(0)
    made = MIXERS[request.param]().eval()
    for weight in made.parameters():  # small weights would hide errors of the state
        if weight.dim() == 2:
            nn.init.normal_(weight, std=0.3)
    return made


@torch.no_grad()
def test_prompt_and_tokens_are_the_whole_over_300_tokens(mixer: Mixer) -> None:
    x = torch.randn(2, 300, WIDTH)
    cache = mixer.cache(2, 300)
    parts = [mixer(x[:, :77], cache), *(mixer(x[:, t : t + 1], cache) for t in range(77, 300))]
    torch.testing.assert_close(torch.cat(parts, 1), mixer(x), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_cached_calls_of_several_tokens_are_the_whole(mixer: Mixer) -> None:
    x = torch.randn(2, 150, WIDTH)
    cache = mixer.cache(2, 150)
    bounds = [0, 1, 3, 70, 71, 73, 150]
    parts = [mixer(x[:, a:b], cache) for a, b in itertools.pairwise(bounds)]
    torch.testing.assert_close(torch.cat(parts, 1), mixer(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_padding_leaves_what_there_is_without_it(mixer: Mixer, side: str) -> None:
    """Also where a row is shorter than the convolution, and what follows the prompt."""
    lengths, longest = [70, 33, 2], 70
    x = torch.randn(3, longest + 2, WIDTH)
    mask, padded = torch.zeros(3, longest, dtype=torch.bool), torch.full((3, longest, WIDTH), 9.0)
    for i, n in enumerate(lengths):
        place = slice(longest - n, longest) if side == "left" else slice(0, n)
        mask[i, place], padded[i, place] = True, x[i, :n]
    cache = mixer.cache(3, longest + 2)
    outputs = [mixer(padded, cache, mask), *(mixer(x[:, longest + t][:, None], cache) for t in range(2))]
    for i, n in enumerate(lengths):
        alone = torch.cat([x[i : i + 1, :n], x[i : i + 1, longest:]], 1)
        wanted = mixer(alone)[0]
        found = torch.cat([outputs[0][i, mask[i]], *(y[i] for y in outputs[1:])])
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_gradients_reach_every_weight(mixer: Mixer) -> None:
    mixer(torch.randn(2, 9, WIDTH)).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in mixer.parameters())


def test_compiles_whole(mixer: Mixer) -> None:
    x = torch.randn(1, 20, WIDTH)
    compiled = torch.compile(mixer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), mixer(x))


@torch.no_grad()
def test_exports(mixer: Mixer) -> None:
    x = torch.randn(1, 70, WIDTH)
    program = torch.export.export(mixer, (x,))
    assert not [n for n in program.graph.nodes if "thrifty" in str(n.target)]
    torch.testing.assert_close(program.module()(x), mixer(x), rtol=1e-4, atol=1e-4)


def test_bfloat16_trains_under_autocast(mixer: Mixer) -> None:
    x = torch.randn(2, 20, WIDTH)
    with torch.autocast("cpu", torch.bfloat16):
        y = mixer(x)
    y.float().sum().backward()
    with torch.no_grad():
        wanted = mixer(x)
    assert float((y.detach().float() - wanted).norm() / wanted.norm()) < 2e-2


def test_sizes_that_do_not_divide_are_named() -> None:
    with pytest.raises(ThriftyError, match="64 inner channels, which heads of 24 in 1 groups do not divide"):
        Mamba2(32, head=24)
    with pytest.raises(ThriftyError, match="attention of width 32"):
        Attention(32, 5)
    attention = Attention(32, 4)
    with pytest.raises(ThriftyError, match="KV cache holds 2 tokens, but 3 were given"):
        attention(torch.randn(1, 3, 32), attention.cache(1, 2))


# -- the convolution --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 2, 3, 7])
def test_the_convolutions_last_inputs_have_their_gradient_below_its_width(length: int) -> None:
    torch.manual_seed(0)
    x, weight, bias, before = (torch.randn(*s, dtype=torch.float64, requires_grad=True)
                               for s in ((2, length, 3), (3, 1, 4), (3,), (2, 3, 3)))
    assert torch.autograd.gradcheck(lambda *a: causal(*a), (x, weight, bias, before))
    lengths = torch.tensor([length, length - 1])
    assert torch.autograd.gradcheck(lambda *a: causal(*a, lengths), (x, weight, bias, before))


def test_rows_are_compacted_and_put_back() -> None:
    mask = torch.tensor([[False, True, True, False], [True, True, True, True]])
    rows, x = Compaction.of(mask), torch.randn(2, 4, 3)
    assert rows.lengths.tolist() == [2, 4] and torch.equal(rows.apply(x)[0, :2], x[0, 1:3])
    assert torch.equal(rows.undo(rows.apply(x) * rows.mask[..., None]), x * mask[..., None])


# -- the gated norm ---------------------------------------------------------------------------------------------


def test_the_gated_norms_gradients_include_the_gate() -> None:
    from thrifty.kernels.mamba2_step.naive import norm_gated

    torch.manual_seed(0)
    y, z, weight = (torch.randn(*s, dtype=torch.float64, requires_grad=True) for s in ((2, 5, 8), (2, 5, 8), (8,)))
    assert torch.autograd.gradcheck(lambda *a: norm_gated(*a, 2, 1e-5), (y, z, weight))


@torch.no_grad()
def test_one_token_of_mamba2_is_what_its_step_says() -> None:
    from thrifty.kernels.mamba2_step import naive

    layer = Mamba2(WIDTH, state=16, head=8, groups=2, limits=(0.05, 0.4)).eval()
    x, cache = torch.randn(2, 4, WIDTH), layer.cache(2, 4)
    layer(x[:, :3], cache)
    y, conv, state = naive.step(layer.in_proj(x[:, 3]), cache.conv, cache.state, layer.conv_weight[:, 0], layer.conv_bias,
                                layer.dt_bias, -layer.A_log.exp(), layer.D, layer.norm_weight, 2, layer.limits, layer.eps)
    torch.testing.assert_close(layer(x[:, 3:], cache)[:, 0], layer.out_proj(y))
    torch.testing.assert_close((cache.conv, cache.state), (conv, state))


