"""Read small weight tables from the safetensors format, trusting nothing in them.

The format: 8 bytes of header length (little-endian), a JSON header that gives each tensor's dtype,
shape and place, then the tensors' bytes without gaps. A file is of one dtype, float32 or uint16;
that is all bundles use.
"""

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from edgeseq_runtime.errors import BundleError

MAX_HEADER_BYTES = 1 << 20
_PREFIX_BYTES = 8

TensorType = Literal["F32", "U16"]
_NUMPY_TYPES: dict[TensorType, str] = {"F32": "<f4", "U16": "<u2"}


@dataclass(frozen=True)
class _Place:
    name: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_safetensors(data: bytes, name: str, dtype: TensorType = "F32") -> dict[str, npt.NDArray[Any]]:
    """Read all tensors of a file.

    Args:
        data: The file's content.
        name: What error messages call it.
        dtype: Of all its tensors.

    Returns:
        Read-only arrays by tensor name.

    Raises:
        BundleError: The file is cut short, malformed, or holds anything but ``dtype``.
    """
    if len(data) < _PREFIX_BYTES:
        raise BundleError(f"{name} is no safetensors file: {len(data)} bytes, expected at least 8")
    (header_bytes,) = struct.unpack("<Q", data[:_PREFIX_BYTES])
    if header_bytes > min(MAX_HEADER_BYTES, len(data) - _PREFIX_BYTES):
        raise BundleError(
            f"{name} is no safetensors file: a header of {header_bytes} bytes does not fit "
            f"into {len(data)} bytes, or exceeds the limit of {MAX_HEADER_BYTES}"
        )
    body = memoryview(data)[_PREFIX_BYTES + header_bytes :]
    places = _read_places(data[_PREFIX_BYTES : _PREFIX_BYTES + header_bytes], name, dtype)
    _check_cover(places, len(body), name)
    return {
        place.name: np.frombuffer(body[place.begin : place.end], dtype=_NUMPY_TYPES[dtype])
        .astype(_NUMPY_TYPES[dtype].lstrip("<"), copy=False)
        .reshape(place.shape)
        for place in places
    }


def _read_places(header: bytes, name: str, dtype: TensorType) -> list[_Place]:
    try:
        content = json.loads(header, object_pairs_hook=_refuse_repeats)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{name} has a header that is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise BundleError(f"{name} has a header of type {type(content).__name__}, expected an object")
    entries = {key: value for key, value in content.items() if key != "__metadata__"}
    return sorted(
        (_read_place(key, entry, name, dtype) for key, entry in entries.items()),
        key=lambda place: (place.begin, place.end),
    )


def _refuse_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name occurs twice")
    return result


def _read_place(tensor: str, entry: object, name: str, dtype: TensorType) -> _Place:
    where = f"{name}, tensor {tensor!r}"
    if not isinstance(entry, Mapping) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise BundleError(f"{where}: expected an object with dtype, shape and data_offsets, got {entry!r:.200}")
    if entry["dtype"] != dtype:
        raise BundleError(f"{where}: dtype is {entry['dtype']!r:.50}, expected {dtype!r}")
    shape = _natural_numbers(entry["shape"], f"{where}: shape")
    offsets = _natural_numbers(entry["data_offsets"], f"{where}: data_offsets")
    size = math.prod(shape) * np.dtype(_NUMPY_TYPES[dtype]).itemsize
    if len(offsets) != 2 or offsets[1] - offsets[0] != size:
        raise BundleError(f"{where}: data_offsets {list(offsets)} do not fit the shape {list(shape)} of {dtype}")
    return _Place(tensor, shape, *offsets)


def _natural_numbers(value: object, what: str) -> tuple[int, ...]:
    # bool is an int to Python, and true is no size; ten axes are more than any table has.
    if (
        not isinstance(value, list)
        or len(value) > 10
        or not all(type(number) is int and 0 <= number < 2**48 for number in value)
    ):
        raise BundleError(f"{what} is {value!r:.80}, expected a short list of numbers from 0")
    return tuple(value)


def _check_cover(places: list[_Place], body_bytes: int, name: str) -> None:
    """Refuse gaps, overlaps and missing ends: the tensors must tile the body exactly."""
    position = 0
    for place in places:
        if place.begin != position:
            raise BundleError(
                f"{name}, tensor {place.name!r}: begins at byte {place.begin}, expected {position} "
                "(gaps and overlaps are not allowed)"
            )
        position = place.end
    if position != body_bytes:
        raise BundleError(f"{name} holds {body_bytes} bytes of tensors, but its header describes {position}")
