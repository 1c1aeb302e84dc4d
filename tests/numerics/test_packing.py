from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from thrifty.numerics.packing import PER_BYTES, pack, unpack


@given(st.sampled_from(sorted(PER_BYTES)), st.integers(1, 5), st.integers(1, 9), st.integers(0, 999))
def test_what_was_packed_comes_back(bits, rows, pieces, seed):
    q = torch.randint(0, 2**bits, (rows, pieces * PER_BYTES[bits][0]), generator=torch.Generator().manual_seed(seed))
    packed = pack(q, bits)
    assert packed.dtype == torch.uint8 and packed.shape == (rows, q.shape[1] * bits // 8)
    assert torch.equal(unpack(packed, bits), q.to(torch.uint8))


@given(st.sampled_from([3, 4]), st.integers(0, 999))
def test_numbers_stand_where_the_docstring_says(bits, seed):
    q = torch.randint(0, 2**bits, (PER_BYTES[bits][0] * 2,), generator=torch.Generator().manual_seed(seed))
    word = sum(int(x) << (i * bits) for i, x in enumerate(q.tolist()))
    assert bytes(pack(q, bits).tolist()) == word.to_bytes(len(q) * bits // 8, "little")


def test_numbers_that_do_not_end_with_a_byte_are_refused():
    with pytest.raises(ValueError, match="3 values of 4 bits do not fill whole bytes"):
        pack(torch.zeros(1, 3), 4)
