"""The small safetensors reader believes nothing."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeseq_runtime.errors import BundleError
from edgeseq_runtime.safetensors import read_safetensors
from tiny_bundle import safetensors_bytes

TENSORS = {
    "weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "bias": np.array([0.5, -1.0], dtype=np.float32),
}


def pack(header: object, body: bytes = b"") -> bytes:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(encoded).to_bytes(8, "little") + encoded + body


def entry(**changes: object) -> dict[str, Any]:
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes


def test_tensors_are_read() -> None:
    read = read_safetensors(safetensors_bytes(TENSORS), "p")
    assert set(read) == set(TENSORS)
    for name, tensor in TENSORS.items():
        np.testing.assert_array_equal(read[name], tensor)
        assert read[name].dtype == np.float32
        assert not read[name].flags.writeable


def test_small_integers_are_read_where_they_are_expected() -> None:
    header = {"ids": entry(dtype="U16", shape=[2, 2])}
    body = np.array([[1, 65535], [0, 7]], dtype="<u2").tobytes()
    read = read_safetensors(pack(header, body), "p", "U16")["ids"]
    assert read.dtype == np.uint16
    assert read.tolist() == [[1, 65535], [0, 7]]
    with pytest.raises(BundleError, match="p, tensor 'ids': dtype is 'U16', expected 'F32'"):
        read_safetensors(pack(header, body), "p")
    with pytest.raises(BundleError, match=r"tensor 'ids': data_offsets \[0, 8\] do not fit the shape \[2, 4\] of U16"):
        read_safetensors(pack({"ids": entry(dtype="U16", shape=[2, 4])}, body), "p", "U16")


def test_metadata_empty_tensors_and_any_order_are_accepted() -> None:
    header = {
        "__metadata__": {"format": "np"},
        "b": entry(shape=[], data_offsets=[8, 12]),
        "none": entry(shape=[0, 4], data_offsets=[8, 8]),
        "a": entry(),
    }
    read = read_safetensors(pack(header, bytes(12)), "p")
    assert {name: tensor.shape for name, tensor in read.items()} == {
        "a": (2,), "b": (), "none": (0, 4),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "p is no safetensors file: 0 bytes, expected at least 8"),
        (b"\xff" * 8, "a header of 18446744073709551615 bytes does not fit into 8 bytes"),
        ((2 << 20).to_bytes(8, "little") + bytes(3 << 20), "exceeds the limit of 1048576"),
        (pack(b"{"), "p has a header that is not valid JSON"),
        (pack(b"[" * 100_000), "p has a header that is not valid JSON"),
        (pack([]), "p has a header of type list, expected an object"),
        (pack(b'{"a": 1, "a": 2}'), "a name occurs twice"),
        (pack({"a": 1}), "tensor 'a': expected an object with dtype, shape and data_offsets, got 1"),
        (pack({"a": entry(extra=1)}), "tensor 'a': expected an object with"),
        (pack({"a": entry(dtype="I64")}, bytes(8)), "tensor 'a': dtype is 'I64', expected 'F32'"),
        (pack({"a": entry(shape=[-2])}, bytes(8)), "tensor 'a': shape is [-2], expected a short"),
        (pack({"a": entry(shape=[True, 2])}, bytes(8)), "shape is [True, 2], expected a short list"),
        (pack({"a": entry(shape=[2.0])}, bytes(8)), "shape is [2.0], expected a short list"),
        (pack({"a": entry(shape=[1] * 11)}, bytes(8)), "expected a short list of numbers from 0"),
        (pack({"a": entry(shape=[2**60])}, bytes(8)), "expected a short list of numbers from 0"),
        (pack({"a": entry(data_offsets=[0])}, bytes(8)), "data_offsets [0] do not fit the shape [2]"),
        (pack({"a": entry(data_offsets=[8, 0])}, bytes(8)), "data_offsets [8, 0] do not fit"),
        (pack({"a": entry(shape=[3])}, bytes(8)), "data_offsets [0, 8] do not fit the shape [3]"),
        (pack({"a": entry(data_offsets=[4, 12])}, bytes(12)), "begins at byte 4, expected 0"),
        (pack({"a": entry(), "b": entry()}, bytes(8)), "tensor 'b': begins at byte 0, expected 8"),
        (pack({"a": entry()}, bytes(7)), "p holds 7 bytes of tensors, but its header describes 8"),
        (pack({"a": entry()}, bytes(9)), "p holds 9 bytes of tensors, but its header describes 8"),
    ],
)
def test_malformed_files_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(BundleError) as error:
        read_safetensors(data, "p")
    assert message in str(error.value)


def test_well_formed_file_is_accepted() -> None:
    """Control of the refusals: the entry they change is a good one."""
    assert read_safetensors(pack({"a": entry()}, bytes(8)), "p")["a"].shape == (2,)


@given(st.integers(0, 200), st.integers(1, 255))
def test_a_changed_byte_is_refused_or_harmless(position: int, change: int) -> None:
    """Whatever a byte of the file becomes, nothing but BundleError comes out."""
    data = bytearray(safetensors_bytes(TENSORS))
    data[position % len(data)] ^= change
    try:
        read = read_safetensors(bytes(data), "p")
    except BundleError:
        return
    assert sum(tensor.size for tensor in read.values()) == 8
