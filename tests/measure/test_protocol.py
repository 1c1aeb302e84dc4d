from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from thrifty.measure.protocol import Message, decode, encode

numbers = st.sampled_from(["?", "i1", "u1", "<i4", "<i8", "<f2", "<f4", "<f8", "<c8"])
arrays = numbers.flatmap(
    lambda dtype: arrays_of.arrays(dtype, arrays_of.array_shapes(min_dims=0, min_side=0))
)


def carried(header: dict[str, Any], sent: list[np.ndarray]) -> Message:
    stream = io.BytesIO(b"".join(encode(header, sent)))

    def read(n: int) -> bytearray:
        data = bytearray(stream.read(n))
        if len(data) < n:
            raise EOFError
        return data

    message = decode(read)
    assert not stream.read()
    return message


@given(
    st.lists(arrays, max_size=3), st.dictionaries(st.text(max_size=4).filter("arrays".__ne__), st.integers())
)
def test_messages_arrive_as_sent(sent: list[np.ndarray], header: dict[str, int]) -> None:
    found, received = carried(header, sent)
    assert found == header
    assert [(x.dtype, x.shape) for x in received] == [(x.dtype, x.shape) for x in sent]
    assert all(a.tobytes() == b.tobytes() for a, b in zip(sent, received, strict=True))


def test_strided_arrays_arrive_in_order_and_writable() -> None:
    sent = np.arange(12).reshape(3, 4).T[::2]
    (received,) = carried({}, [sent])[1]
    assert np.array_equal(received, sent)
    received[0, 0] = 7


@pytest.mark.parametrize("bad", [np.array([object()]), np.array(["text"]), np.array([1], ">i4")])
def test_only_native_numbers_travel(bad: np.ndarray) -> None:
    with pytest.raises(TypeError, match="numbers"):
        list(encode({}, [bad]))


def test_a_foreign_stream_is_refused() -> None:
    with pytest.raises(ValueError, match="does not follow this protocol"):
        decode(lambda n: bytearray(b"\xff" * n))
