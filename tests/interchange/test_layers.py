"""Bytes of a layer, against the format's rule written out and against its own package."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from thrifty.interchange.layers import InterchangeError, Layer, Stored, from_words, layer_of, stored, tensors, to_words
from thrifty.numerics.grouped import rtn
from thrifty.numerics.modules import GroupedLinear, QuantLinear


def words_by_hand(row: list[int], bits: int) -> list[int]:
    """The numbers are digits of one number in base 2^bits, the first the lowest, cut into int32."""
    whole = sum(number << (bits * i) for i, number in enumerate(row))
    count = -(-len(row) * bits // 32)
    cut = [(whole >> (32 * i)) & 0xFFFFFFFF for i in range(count)]
    return [word - 2**32 if word >= 2**31 else word for word in cut]


@given(st.sampled_from([4, 8]), st.integers(1, 4), st.integers(1, 41), st.integers(0, 2**31))
def test_words_are_the_bits_in_order_and_come_back(bits: int, rows: int, n: int, seed: int) -> None:
    q = torch.randint(0, 2**bits, (rows, n), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    found = to_words(q, bits)
    assert found.dtype == torch.int32
    assert found.tolist() == [words_by_hand(row, bits) for row in q.tolist()]
    assert torch.equal(from_words(found, bits, n), q)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", [(5, 32), (16, 96), (1, 7)])
def test_words_are_those_of_the_package(bits: int, shape: tuple[int, int]) -> None:
    package = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    q = torch.randint(0, 2**bits, shape, dtype=torch.uint8)
    signed = (q.int() - 2 ** (bits - 1)).to(torch.int8)
    assert torch.equal(to_words(q, bits), package.pack_to_int32(signed, bits))
    assert torch.equal(to_words(q.T, bits).T, package.pack_to_int32(signed, bits, packed_dim=0))


def grouped(out: int, inputs: int, bits: int, group: int, symmetric: bool, bias: bool) -> GroupedLinear:
    made = rtn(torch.randn(out, inputs), bits, group)
    zero = torch.full_like(made.zero, 2 ** (bits - 1)) if symmetric else made.zero
    return GroupedLinear(made.q, made.scale, zero, bits, torch.randn(out) if bias else None)


def integers(out: int, inputs: int, bias: bool) -> QuantLinear:
    return QuantLinear(nn.Linear(inputs, out, bias), torch.ones(inputs))


STAGES = {
    "w4a16 g32": lambda: grouped(13, 96, 4, 32, False, True),
    "w4a16 g128 symmetric": lambda: grouped(8, 256, 4, 128, True, False),
    "w4a16, one group": lambda: grouped(9, 128, 4, 128, False, False),
    "w4a16, a row": lambda: grouped(9, 160, 4, 160, False, False),
    "w8a16": lambda: grouped(7, 101, 8, 101, False, True),
    "w8a16 symmetric": lambda: grouped(7, 32, 8, 32, True, True),
    "w8a8": lambda: integers(11, 37, True),
    "w8a8, no bias": lambda: integers(11, 37, False),
}


def place(layer: Layer) -> nn.Linear:
    inputs = layer.weight.shape[1] if isinstance(layer, QuantLinear) else layer.in_features
    return nn.Linear(inputs, layer.out_features, layer.bias is not None)


@pytest.mark.parametrize("name", STAGES)
def test_a_layer_comes_back_as_it_was(name: str) -> None:
    layer = STAGES[name]()
    again = layer_of("x", tensors(layer), stored(layer), place(layer))
    x = torch.randn(3, place(layer).in_features)
    assert torch.equal(layer(x), again(x))
    assert stored(again) == stored(layer)
    second = tensors(again)
    assert {name: t.tolist() for name, t in second.items()} == {name: t.tolist() for name, t in tensors(layer).items()}


@pytest.mark.parametrize("name", STAGES)
def test_the_package_reads_the_same_weight(name: str) -> None:
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme

    from thrifty.interchange.configuration import described

    layer = STAGES[name]()
    group = described({"x": stored(layer)}, [])["config_groups"]["group_0"]
    read = BaseCompressor.get_value_from_registry(group["format"]).decompress(
        {key: tensor for key, tensor in tensors(layer).items() if key != "bias"}, QuantizationScheme(**group))
    expected = layer.weight * layer.scale[:, None] if isinstance(layer, QuantLinear) else layer.dequantized()
    assert torch.equal(read["weight"], expected)


def test_what_is_stored_follows_from_the_numbers() -> None:
    found = {name: stored(make()) for name, make in STAGES.items()}
    assert found["w4a16 g32"] == Stored(4, 32, False, "float")
    assert found["w4a16, one group"] == Stored(4, 128, False, "float")
    assert found["w4a16, a row"] == Stored(4, None, False, "float")
    assert found["w8a16 symmetric"] == Stored(8, None, True, "float")
    assert found["w8a8"] == Stored(8, None, True, "int8")


@pytest.mark.parametrize(("change", "said"), [
    (lambda t: t.pop("weight_scale"), "has no weight_scale"),
    (lambda t: t.pop("weight_zero_point"), "has no weight_zero_point"),
    (lambda t: t.update(weight_g_idx=torch.arange(96)), "has weight_g_idx too"),
    (lambda t: t.update(weight_packed=t["weight_packed"][:, 1:]), r"weight_packed is int32 \[13, 11\] where int32 \[13, 12\]"),
    (lambda t: t.update(weight_packed=t["weight_packed"].long()), "weight_packed is int64"),
    (lambda t: t.update(weight_scale=t["weight_scale"].int()), r"where of floating point \[13, 3\]"),
    (lambda t: t.update(weight_scale=t["weight_scale"] * float("nan")), "holds NaN"),
    (lambda t: t.update(weight_shape=torch.tensor([13, 95])), r"weight_shape says \[13, 95\]"),
])
def test_tensors_that_do_not_fit_are_named(change: Any, said: str) -> None:
    layer = STAGES["w4a16 g32"]()
    found: dict[str, Tensor] = tensors(layer)
    change(found)
    with pytest.raises(InterchangeError, match=said):
        layer_of("x", found, stored(layer), place(layer))


def test_groups_divide_the_inputs() -> None:
    layer = STAGES["w4a16 g32"]()
    with pytest.raises(InterchangeError, match="96 inputs, not a multiple of the group size 64"):
        layer_of("x", tensors(layer), Stored(4, 64, False, "float"), place(layer))
