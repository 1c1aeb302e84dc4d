from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from thrifty.artifacts.arrays import ArraysError, from_npy, from_npz, to_npy, to_npz

NUMBERS = st.sampled_from(["bool", "int8", "uint16", "int64", "float16", "float32", ">f8", "complex64"])


@given(hnp.arrays(NUMBERS, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)), st.booleans())
def test_numbers_come_back_as_they_went(array, fortran):
    given_ = array.T.copy().T if fortran else array  # not np.asfortranarray, which gives a dimension to a number
    for found in (from_npy(to_npy(given_)), from_npz(to_npz({"a": given_}), 10**6)["a"]):
        assert found.dtype == array.dtype and found.shape == array.shape
        np.testing.assert_array_equal(found, array)


@given(st.binary(max_size=300), st.sampled_from([b"", b"\x93NUMPY\x01\x00v\x00", b"PK\x03\x04"]))
def test_no_bytes_are_an_error_of_another_kind(tail, head):
    for read in (from_npy, lambda content: from_npz(content, 1000)):
        try:
            read(head + tail)
        except ArraysError:
            continue


@pytest.mark.parametrize("array", [np.array([None]), np.array(["text"]), np.array([b"bytes"]), np.array(["2026"], "M8[Y]"),
                                   np.zeros(1, [("a", "f4")])])
def test_only_numbers(array):
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    with pytest.raises(ArraysError, match="only numbers are"):
        from_npy(stream.getvalue())


def test_a_limit_is_for_all_arrays_together():
    content = to_npz({"a": np.zeros(100), "b": np.zeros(100)})
    assert set(from_npz(content, 1856)) == {"a", "b"}
    with pytest.raises(ArraysError, match="would unpack to 1856 bytes; 1855 are allowed"):
        from_npz(content, 1855)
