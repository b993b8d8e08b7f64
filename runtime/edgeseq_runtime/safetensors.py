"""Read small weight tables from the safetensors format, trusting nothing in them.

The format: 8 bytes of header length (little-endian), a JSON header that gives each tensor's dtype,
shape and place, then the tensors' bytes without gaps. Only float32 is read;
that is all bundles use.
"""

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from edgeseq_runtime.arrays import FloatArray
from edgeseq_runtime.errors import BundleError

MAX_HEADER_BYTES = 1 << 20
_PREFIX_BYTES = 8
_FLOAT32_BYTES = 4


@dataclass(frozen=True)
class _Place:
    name: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_safetensors(data: bytes, name: str) -> dict[str, FloatArray]:
    """Read all tensors of a file.

    Args:
        data: The file's content.
        name: What error messages call it.

    Returns:
        Read-only float32 arrays by tensor name.

    Raises:
        BundleError: The file is cut short, malformed, or holds anything but float32.
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
    places = _read_places(data[_PREFIX_BYTES : _PREFIX_BYTES + header_bytes], name)
    _check_cover(places, len(body), name)
    return {
        place.name: np.frombuffer(body[place.begin : place.end], dtype="<f4")
        .astype(np.float32, copy=False)
        .reshape(place.shape)
        for place in places
    }


def _read_places(header: bytes, name: str) -> list[_Place]:
    try:
        content = json.loads(header, object_pairs_hook=_refuse_repeats)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{name} has a header that is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise BundleError(f"{name} has a header of type {type(content).__name__}, expected an object")
    entries = {key: value for key, value in content.items() if key != "__metadata__"}
    return sorted(
        (_read_place(key, entry, name) for key, entry in entries.items()),
        key=lambda place: (place.begin, place.end),
    )


def _refuse_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name occurs twice")
    return result


def _read_place(tensor: str, entry: object, name: str) -> _Place:
    where = f"{name}, tensor {tensor!r}"
    if not isinstance(entry, Mapping) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise BundleError(f"{where}: expected an object with dtype, shape and data_offsets, got {entry!r:.200}")
    if entry["dtype"] != "F32":
        raise BundleError(f"{where}: dtype is {entry['dtype']!r:.50}, expected 'F32'")
    shape = _natural_numbers(entry["shape"], f"{where}: shape")
    offsets = _natural_numbers(entry["data_offsets"], f"{where}: data_offsets")
    if len(offsets) != 2 or offsets[1] - offsets[0] != math.prod(shape) * _FLOAT32_BYTES:
        raise BundleError(f"{where}: data_offsets {list(offsets)} do not fit the shape {list(shape)} of float32")
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
