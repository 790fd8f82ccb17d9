# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The headers of safetensors files: every tensor's type, shape and place, without a byte of its data.

Private to the collection. A file is eight bytes with the length of the header, the header (JSON), and the data.
The header must describe the data without holes or overlaps and to the file's last byte; so whatever cut a file
short, or put something else in its place, shows here.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import typing as t
from dataclasses import dataclass

# The bits of one element of each type.
DTYPE_BITS: t.Mapping[str, int] = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "F8_E8M0": 8,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "F4": 4,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "I64": 64,
    "U64": 64,
    "F64": 64,
    "C64": 64,
}

_PREFIX_BYTES = 8
# What the safetensors library itself accepts. A damaged prefix may claim any number up to 2**64.
_HEADER_LIMIT_BYTES = 100_000_000


class Tensor(t.NamedTuple):
    """One tensor: type, shape, and where its bytes start and end in the data."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def size_bytes(self) -> int:
        return self.end - self.start


@dataclass(frozen=True)
class Header:
    """What one file holds. ``file_bytes`` is prefix, header and data; ``sha256`` is that of prefix and header."""

    tensors: t.Mapping[str, Tensor]
    file_bytes: int
    sha256: str


def header_length(prefix: bytes, file_bytes: int, file: str) -> int:
    """The length of the header that follows *prefix*, the first bytes of *file*."""
    if len(prefix) < _PREFIX_BYTES:
        raise ValueError(
            f"{file} is no safetensors file: it has {file_bytes} bytes, the length of its header alone takes 8; "
            "copy it again"
        )
    length = int.from_bytes(prefix[:_PREFIX_BYTES], "little")
    if length > _HEADER_LIMIT_BYTES:
        raise ValueError(
            f"{file} is no safetensors file, or a damaged one: it claims a header of {length} bytes, "
            f"{_HEADER_LIMIT_BYTES} is the most that is allowed; copy it again"
        )
    if _PREFIX_BYTES + length > file_bytes:
        raise ValueError(
            f"{file} is truncated: its header alone ends at byte {_PREFIX_BYTES + length}, the file at byte "
            f"{file_bytes}; copy it again"
        )
    return length


def _natural(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _checked(name: str, entry: object, file: str) -> tuple[tuple[int, ...], int]:
    """Shape and bits of one entry of the header, of which every field is looked at."""
    if not isinstance(entry, dict):
        raise ValueError(f"{file}: the header's entry for {name} is {entry!r}, not an object")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    bits = DTYPE_BITS.get(dtype) if isinstance(dtype, str) else None
    if bits is None:
        raise ValueError(f"{file}: {name} has the type {dtype!r}, which safetensors does not know")
    if not isinstance(shape, list) or not all(map(_natural, shape)):
        raise ValueError(f"{file}: {name} has the shape {shape!r}, not a list of whole numbers")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_natural, offsets)):
        raise ValueError(f"{file}: {name} has the offsets {offsets!r}, not two whole numbers")
    bits *= math.prod(shape)
    start, end = offsets
    if (end - start) * 8 != bits:
        raise ValueError(
            f"{file}: {name} takes {end - start} bytes, its type {dtype} and shape {shape} make {bits // 8}"
        )
    return tuple(shape), bits


def parse_header(text: bytes, file: str) -> dict[str, Tensor]:
    """The tensors of a header in the order of their data, which they must cover without holes or overlaps."""
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: its header is not JSON ({error}); copy it again") from error
    if not isinstance(entries, dict):
        raise ValueError(f"{file}: its header is a {type(entries).__name__}, not an object; copy it again")
    entries.pop("__metadata__", None)
    # A mixture of experts has the same few shapes thousands of times: each is checked in full once.
    known: dict[tuple[t.Any, ...], int] = {}
    tensors = []
    for name, entry in entries.items():
        try:
            dtype, shape, (start, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
            fine = type(start) is type(end) is int and start >= 0 and known.get((dtype, shape)) == (end - start) * 8
        except (KeyError, TypeError, ValueError):
            fine = False
        if not fine:
            shape, bits = _checked(name, entry, file)
            dtype, (start, end) = entry["dtype"], entry["data_offsets"]
            known[dtype, shape] = bits
        tensors.append((start, end, name, dtype, shape))
    tensors.sort()
    at = 0
    ordered = {}
    for start, end, name, dtype, shape in tensors:
        if start != at:
            what = "overlaps the tensor before it" if start < at else "leaves a hole before it"
            raise ValueError(f"{file}: {name} starts at byte {start} of the data, not at {at}, and so {what}")
        at = end
        ordered[name] = Tensor(dtype, shape, start, end)
    return ordered


def check_file_size(tensors: t.Mapping[str, Tensor], data_start: int, file_bytes: int, file: str) -> None:
    """Refuse a file that ends before, or after, the last of its tensors."""
    needed = data_start + max((tensor.end for tensor in tensors.values()), default=0)
    if file_bytes < needed:
        raise ValueError(
            f"{file} is truncated: its tensors end at byte {needed}, the file at byte {file_bytes}; copy it again"
        )
    if file_bytes > needed:
        raise ValueError(
            f"{file} is damaged: its tensors end at byte {needed}, and {file_bytes - needed} bytes follow that "
            "belong to none; copy it again"
        )


def read_header(path: str, file: str | None = None) -> Header:
    """The header of the file at *path*, which the messages call *file*."""
    file = path if file is None else file
    with open(path, "rb") as stream:
        file_bytes = os.fstat(stream.fileno()).st_size
        prefix = stream.read(_PREFIX_BYTES)
        text = stream.read(header_length(prefix, file_bytes, file))
    tensors = parse_header(text, file)
    check_file_size(tensors, _PREFIX_BYTES + len(text), file_bytes, file)
    return Header(tensors, file_bytes, hashlib.sha256(prefix + text).hexdigest())
