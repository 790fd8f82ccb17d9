# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Cut from a shared library or a program what only a debugger reads.

Wheels carry symbol tables and debug information (two thirds of vLLM's CPU libraries) that no loader maps. They
stand at the end of the file, so cutting them needs no binutils, no cross tools, and gives the same bytes everywhere.
"""

from __future__ import annotations

import struct

__all__ = ["strip_elf"]

_MAGIC = b"\x7fELF"
_CLASS64_LITTLE = b"\x02\x01"
_EXECUTABLE_OR_SHARED = (2, 3)
_SHF_ALLOC = 0x2
_SHT_NOBITS = 8
_HEADER_BYTES = 64
_PROGRAM_HEADER_BYTES = 56
_SECTION_HEADER_BYTES = 64


def strip_elf(data: bytes) -> bytes | None:
    """``data`` without what lies behind the last byte that is ever loaded; None when there is nothing to cut.

    None as well for anything that is not a 64-bit little-endian program or shared library of the plain kind: such a
    file is left as it is.
    """
    if len(data) < _HEADER_BYTES or data[:4] != _MAGIC or data[4:6] != _CLASS64_LITTLE:
        return None
    (kind,) = struct.unpack_from("<H", data, 16)
    program_at, section_at = struct.unpack_from("<QQ", data, 32)
    program_size, program_count, section_size, section_count = struct.unpack_from("<HHHH", data, 54)
    if kind not in _EXECUTABLE_OR_SHARED or not section_at or not section_count or not program_count:
        return None
    if program_size != _PROGRAM_HEADER_BYTES or section_size != _SECTION_HEADER_BYTES:
        return None
    if program_at + program_count * program_size > len(data) or section_at + section_count * section_size > len(data):
        return None
    end: int = max(_HEADER_BYTES, program_at + program_count * program_size)
    for index in range(program_count):
        offset, _address, _physical, size = struct.unpack_from("<QQQQ", data, program_at + index * program_size + 8)
        end = max(end, offset + size)
    for index in range(section_count):
        at = section_at + index * section_size
        (section_type,) = struct.unpack_from("<I", data, at + 4)
        flags, _address, offset, size = struct.unpack_from("<QQQQ", data, at + 8)
        if flags & _SHF_ALLOC and section_type != _SHT_NOBITS:
            end = max(end, offset + size)
    if end >= len(data):
        return None
    header = bytearray(data[:_HEADER_BYTES])
    # No section headers any more: their place, their number, and the index of their names.
    struct.pack_into("<Q", header, 40, 0)
    struct.pack_into("<HH", header, 60, 0, 0)
    return bytes(header) + data[_HEADER_BYTES:end]
