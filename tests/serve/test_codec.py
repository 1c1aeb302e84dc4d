"""Bodies of every kind: what is right comes through unchanged, what is wrong has a status and never an exception."""

from __future__ import annotations

import io
import json
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from thrifty.serve import codec, json_arrays
from thrifty.serve.codec import JSON, NPY, NPZ, SAFETENSORS, BodyError

ONE = [{"name": "x", "dtype": "float32", "shape": [-1, 3]}]
TWO = [{"name": "ids", "dtype": "int64", "shape": [-1, -1]}, {"name": "mask", "dtype": "bool", "shape": [-1, -1]}]
LIMIT = 10**6


def refused(status, media, body, specs=ONE, limit=LIMIT):
    with pytest.raises(BodyError) as caught:
        codec.decode(media, body, specs, limit)
    assert caught.value.status == status, caught.value
    return str(caught.value)


@pytest.mark.parametrize("media", [JSON, NPZ, SAFETENSORS])
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_what_is_written_is_read(media, data):
    shape = data.draw(hnp.array_shapes(min_dims=2, max_dims=2, max_side=4))
    dtypes = ("float32", "float64", "int64", "int32", "uint8", "bool")
    arrays = {f"a{i}": data.draw(hnp.arrays(data.draw(st.sampled_from(dtypes)), shape)) for i in range(2)}
    arrays = {name: np.nan_to_num(x) if x.dtype.kind == "f" else x for name, x in arrays.items()}
    specs = [{"name": name, "dtype": str(x.dtype), "shape": [-1, -1]} for name, x in arrays.items()]
    told, body = codec.encode(media, arrays)
    assert told == media
    body = body.replace(b'"outputs"', b'"inputs"') if media == JSON else body
    for found, wanted in zip(codec.decode(media, body, specs, LIMIT), arrays.values(), strict=True):
        np.testing.assert_array_equal(found, wanted)
        assert found.dtype == wanted.dtype and found.flags.writeable


def test_json_by_place_and_by_name():
    x = [[1, 2.5, 3]]
    for inputs in ([x], {"x": x}):
        (found,) = codec.decode(JSON, json.dumps({"inputs": inputs}).encode(), ONE, LIMIT)
        np.testing.assert_array_equal(found, np.array(x, "float32"))
    ids, mask = codec.decode(JSON, b'{"inputs": {"mask": [[true, false]], "ids": [[1, 9007199254740993]]}}', TWO, LIMIT)
    assert ids[0, 1] == 2**53 + 1 and mask.dtype == bool


def test_an_npy_is_the_one_input():
    x = np.asfortranarray(np.arange(6, dtype="float32").reshape(2, 3))
    media, body = codec.encode(NPY, {"y": x})
    assert media == NPY and codec.sniffed(codec.BINARY, body) == NPY
    np.testing.assert_array_equal(codec.decode(NPY, body, ONE, LIMIT)[0], x)
    assert codec.encode(NPY, {"a": x, "b": x})[0] == NPZ
    assert codec.sniffed(codec.BINARY, codec.encode(NPZ, {"a": x})[1]) == NPZ
    assert codec.sniffed(codec.BINARY, codec.encode(SAFETENSORS, {"a": x})[1]) == SAFETENSORS


@pytest.mark.parametrize("body", [
    b"", b"{", b"[]", b"null", b'"inputs"', b"{}", b'{"input": []}', b'{"inputs": 3}', b'{"inputs": [[[1,2,3]]], "x": 1}',
    b"\xff\xfe", b"[" * 100_000, b'{"inputs": [[[' + b"9" * 5000 + b"]]]}", b'{"inputs": [[[1,2,]]]}', b'{"inputs": [[[1,,2]]]}',
    b'{"inputs": [[[1,2,3]]]', b'{"inputs": [[[1,2,3', b'{"inputs": [[[1 2,3]]]}', b'{"inputs": [[[01,2,3]]]}',
    b'{"inputs": [[[1,2,3]]]} x', b'{"inputs" [[[1,2,3]]]}', b"{'inputs': [[[1,2,3]]]}", b'{"inputs": {x: [[1,2,3]]}}',
    b'{"inputs": [[[1,2,3]]], "inputs": [[[1,2,3]]]}', b'{"inputs": [[[1,2,\xff]]]}', b'{"inputs": [[[1,2,3],]]}'])
def test_json_that_is_none_is_malformed(body):
    refused(400, JSON, body)


@pytest.mark.parametrize(("inputs", "says"), [
    ([], "list of 1 arrays but has 0"), ([[[1, 2, 3]], 1], "has 2 elements"), ({}, "the inputs are x, but the body has none"),
    ({"y": [[1, 2, 3]]}, "the inputs are x"), ([[1, 2, 3]], "shape"), ([[[1, 2]]], "shape"), ([[[1, 2, 3], [1, 2]]], "shape"),
    ([[["1", 2, 3]]], "holds str"), ([[[None, 2, 3]]], "holds NoneType"), ([[[True, 2, 3]]], "holds bool"),
    ([[[{}, 2, 3]]], "holds dict"), ([[]], "shape"), ([[[1e39, 2, 3]]], "not finite"), ([[[10**400, 2, 3]]], "not an array"),
    ([[["x" * 10_000, *[1] * 10_000]]], "holds str"), ([[[1, 2, 3, 4]]], "4 elements or more"), ([[[[1], 2, 3]]], "too deeply"),
    ([[[1, 2, 3], []]], "0 elements"), ([[1, 2, 3], [1, 2, 3]], "list of dimension"), ({"x": [[1, 2, 3]], "y": 0},
        "but the body has 'y'"),
    ([[["x" * 40_000, 2, 3]]], "over 16384 characters"), ([[[]]], "0 elements")])
def test_json_that_does_not_fit_is_said(inputs, says):
    assert says in refused(422, JSON, json.dumps({"inputs": inputs}).encode())


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_json_is_read_as_the_whole_parser_reads_it(data):
    """Whatever the white space, the pieces' size and the spelling of numbers."""
    shape = data.draw(hnp.array_shapes(min_dims=0, max_dims=4, max_side=4))
    number = data.draw(st.sampled_from([("float64", st.floats(-1e30, 1e30)), ("int64", st.integers(-2**63, 2**63 - 1)),
                                        ("bool", st.booleans()), ("uint8", st.integers(0, 255))]))
    count = int(np.prod(shape))
    x = np.array(data.draw(st.lists(number[1], min_size=count, max_size=count)), number[0]).reshape(shape)
    space = data.draw(st.sampled_from(["", " ", "\n\t", "  \r\n"]))
    body = json.dumps({"inputs": {"x": x.tolist()}}, separators=(f"{space},{space}", f"{space}:{space}"), indent=data.draw(
        st.sampled_from([None, 1])))
    specs = [{"name": "x", "dtype": number[0], "shape": [data.draw(st.sampled_from([n, -1])) for n in shape]}]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_arrays, "PIECE", data.draw(st.sampled_from([80, 200, 2**15])))
        (found,) = codec.decode(JSON, (space + body + space).encode(), specs, LIMIT)
    np.testing.assert_array_equal(found, x)
    assert found.dtype == x.dtype


def test_json_is_stopped_at_what_is_allowed():
    many = {"inputs": [[[0.5, 0, 0]] * 1000]}
    assert "more values than allowed" in refused(422, JSON, json.dumps(many).encode(), limit=11_999)
    assert codec.decode(JSON, json.dumps(many).encode(), ONE, 12_000)[0].shape == (1000, 3)
    few = [{"name": "x", "dtype": "float32", "shape": [-1, 3], "varies": [[0, "batch", 1, 8]]}]
    assert "9 elements or more" in refused(422, JSON, json.dumps(many).encode(), few)


def test_large_answers_are_the_same_text(monkeypatch):
    arrays = {"a": np.arange(60, dtype="float32").reshape(3, 4, 5) / 7, "b": np.arange(9), "c": np.array([np.nan] * 9),
        "d": np.array(1.5)}
    whole = codec.encode(JSON, arrays)[1]
    monkeypatch.setattr(codec, "AT_ONCE", 2)
    assert codec.encode(JSON, arrays)[1] == whole
    assert json.loads(whole)["outputs"]["a"] == arrays["a"].tolist()


@pytest.mark.parametrize(("ids", "says"), [([[1.0]], "holds float"), ([[2**63]], "not an array"), ([[True]], "holds bool")])
def test_whole_numbers_are_whole(ids, says):
    assert says in refused(422, JSON, json.dumps({"inputs": {"ids": ids, "mask": [[True]]}}).encode(), TWO)


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_what_is_not_finite_is_refused_in_every_format(literal):
    assert "not finite" in refused(422, JSON, f'{{"inputs": [[[{literal}, 0, 0]]]}}'.encode())
    x = np.array([[float(literal), 0, 0]], "float32")
    for media in (NPY, NPZ, SAFETENSORS):
        assert "not finite" in refused(422, media, codec.encode(media, {"x": x})[1])


def test_answers_that_are_not_finite_are_null_in_json():
    x = np.array([[np.nan, np.inf, 1.0]], "float32")
    assert json.loads(codec.encode(JSON, {"y": x})[1]) == {"outputs": {"y": [[None, None, 1.0]]}}
    assert np.isnan(np.load(io.BytesIO(codec.encode(NPY, {"y": x})[1]))[0, 0])


def saved(array, save=np.save):
    stream = io.BytesIO()
    save(stream, array, allow_pickle=True)
    return stream.getvalue()


class Never:
    def __reduce__(self):
        return pytest.fail, ("it was unpickled",)


@pytest.mark.parametrize("media", [NPY, NPZ, SAFETENSORS])
@pytest.mark.parametrize("body", [b"", b"nothing", pickle.dumps(Never()), b"\x93NUMPY\x01\x00", b"PK\x03\x04",
                                  b"\xff" * 8 + b"{}", saved(np.array([Never()], dtype=object)),
                                  saved(np.array(["text"])), saved(np.zeros((1, 3), "float32"))[:-1]])
def test_binary_that_is_none_is_malformed(media, body):
    refused(400, media, body)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from([JSON, NPY, NPZ, SAFETENSORS]), st.data())
def test_no_body_is_an_exception_of_another_kind(media, data):
    whole = bytearray(codec.encode(media, {"x": np.ones((2, 3), "float32")})[1].replace(b"outputs", b"inputs"))
    for at in data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=4)):
        whole[at] = data.draw(st.integers(0, 255))
    body = bytes(whole[: data.draw(st.integers(0, len(whole)))]) if data.draw(st.booleans()) else bytes(whole)
    try:
        (found,) = codec.decode(media, body, ONE, LIMIT)
        assert found.dtype == np.float32 and found.shape[1:] == (3,)
    except BodyError as error:
        assert error.status in (400, 422)


def test_what_unpacks_to_too_much_is_not_unpacked():
    stream = io.BytesIO()
    np.savez_compressed(stream, x=np.zeros((10**7, 3), "float32"))
    assert len(stream.getvalue()) < LIMIT and "would unpack to" in refused(400, NPZ, stream.getvalue())
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999, 3), }"
    assert "bytes follow a header" in refused(400, NPY, b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)


def test_compressed_archives_are_read():
    stream = io.BytesIO()
    np.savez_compressed(stream, x=np.ones((2, 3), "float32"))
    assert codec.decode(NPZ, stream.getvalue(), ONE, LIMIT)[0].shape == (2, 3)


def test_nothing_to_answer_is_refused():
    assert "empty" in refused(422, NPY, codec.encode(NPY, {"x": np.zeros((0, 3), "float32")})[1])


def test_kinds_of_bodies():
    assert codec.media_of(None) == JSON and codec.media_of("Application/X-NPY") == NPY
    with pytest.raises(BodyError, match="known: application/json") as caught:
        codec.media_of("text/html")
    assert caught.value.status == 415
