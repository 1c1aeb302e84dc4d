from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.utils.flop_counter import FlopCounterMode

from tests.generated_models import draw
from thrifty.compilers.parity import as_tuple
from thrifty.training.flops import _OWN, FlopCount, count_flops


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9))
def test_a_matrix_product_is_two_for_each_multiply_add(m, k, n):
    result, count = count_flops(lambda: torch.ones(m, k) @ torch.ones(k, n))
    assert count.flops == 2 * m * k * n
    assert result.shape == (m, n)


def test_backward_is_counted_too():
    layer, x = nn.Linear(8, 4), torch.randn(16, 8)
    _, forward = count_flops(lambda: layer(x))
    _, both = count_flops(lambda: layer(x).sum().backward())
    assert both.flops == 2 * forward.flops  # the input needs no gradient: one product forward, one backward


def test_a_convolution_counts_its_window():
    conv, x = nn.Conv2d(3, 5, 3, bias=False), torch.randn(2, 3, 7, 6)
    assert count_flops(lambda: conv(x))[1].flops == 2 * 2 * 5 * 5 * 4 * 3 * 9


def test_operators_without_a_formula_are_named():
    assert "aten.exp" in count_flops(lambda: torch.randn(4).exp())[1].uncounted
    assert count_flops(lambda: torch.ones(2, 2) @ torch.ones(2, 2))[1].uncounted == ()


@given(st.integers(1, 3), st.integers(1, 3))
def test_attention_is_the_products_it_is_made_of_however_few_heads_its_keys_have(heads, times):
    query = torch.randn(2, heads * times, 17, 16, requires_grad=True)
    key, value = (torch.randn(2, heads, 23, 16, requires_grad=True) for _ in range(2))

    def attend():
        return nn.functional.scaled_dot_product_attention(query, key, value, enable_gqa=times > 1)

    products = 2 * 2 * heads * times * 17 * 23 * 16
    _, forward = count_flops(attend)
    assert forward.flops == 2 * products
    assert not [name for name in forward.uncounted if "attention" in name]
    _, both = count_flops(lambda: attend().sum().backward())
    assert both.flops in (6 * products, 7 * products)  # written out, or a kernel that takes the scores again


@given(st.integers(1, 3), st.booleans(), st.booleans())
def test_an_lstm_is_counted_as_its_cells_are(layers, bidirectional, batch_first):
    lstm = nn.LSTM(6, 8, num_layers=layers, bidirectional=bidirectional, batch_first=batch_first)
    x = torch.randn(3, 5, 6)  # 15 steps in all, whichever dimension is the batch
    directions = 1 + bidirectional
    cells = 2 * 15 * directions * sum(4 * 8 * ((6 if layer == 0 else 8 * directions) + 8) for layer in range(layers))
    _, forward = count_flops(lambda: lstm(x)[0])
    assert forward.flops == cells
    assert not [name for name in forward.uncounted if "rnn" in name or "lstm" in name]
    _, both = count_flops(lambda: lstm(x)[0].sum().backward())
    assert both.flops == 3 * cells


def test_a_recurrent_cell_and_its_layer_count_alike():
    lstm, cell = nn.LSTM(6, 8), nn.LSTMCell(6, 8)
    _, whole = count_flops(lambda: lstm(torch.randn(1, 3, 6)))
    _, step = count_flops(lambda: cell(torch.randn(3, 6)))
    assert whole.flops == step.flops > 0


@pytest.mark.parametrize("seed", range(0, 60, 5))
def test_models_are_counted_as_torch_counts_them(seed):
    """Forward, backward and in inference mode, where composite operators arrive whole."""
    drawn = draw(seed)
    torch.manual_seed(seed)
    model, requests = drawn.make().eval(), drawn.asked(3, 1)

    def both():
        outputs = [x for x in as_tuple(model(*requests)) if isinstance(x, Tensor) and x.requires_grad]
        if outputs:
            sum(x.real.float().sum() for x in outputs).backward()

    def inferred():
        with torch.inference_mode():
            model(*requests)

    # Parametrizations cannot be computed in inference mode under torch's counter.
    parametrized = any(is_parametrized(module) for module in model.modules())
    for call in (both,) if parametrized else (both, inferred):
        with FlopCounterMode(display=False, custom_mapping=_OWN) as theirs:
            call()
        assert count_flops(call)[1].flops == theirs.get_total_flops()


def test_a_composite_operator_is_named_by_its_parts():
    with torch.inference_mode():
        _, count = count_flops(lambda: nn.functional.linear(torch.ones(2, 4), torch.ones(3, 4)))
    assert count == FlopCount(48.0, ())
