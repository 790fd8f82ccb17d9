# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Cutting symbols off shared libraries: what is loaded stays byte for byte, everything odd is left alone."""

from __future__ import annotations

import ctypes
import struct
from pathlib import Path

import pytest

from ansible_collections.sparkrig.serving.plugins.module_utils._runtime_elf import strip_elf

LOADED = b"code and data that is mapped".ljust(64, b".")
DEBUG = b"debug information" * 10


def make_elf(kind: int = 3, note_behind: bool = False) -> bytes:
    """A shared library in outline: header, one segment, then debug information and the section headers."""
    start = 64 + 56
    at = start + len(LOADED)
    sections_at = at + len(DEBUG)
    header = b"\x7fELF\x02\x01\x01".ljust(16, b"\0") + struct.pack(
        "<HHIQQQIHHHHHH", kind, 62, 1, 0, 64, sections_at, 0, 64, 56, 1, 64, 3, 2
    )
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, 0, 0, start + len(LOADED), start + len(LOADED), 4096)

    def section(kind: int, flags: int, offset: int, size: int) -> bytes:
        return struct.pack("<IIQQQQIIQQ", 0, kind, flags, 0, offset, size, 0, 0, 1, 0)

    table = section(0, 0, 0, 0) + section(8, 2, 1 << 40, 1 << 40)
    table += section(1, 2 if note_behind else 0, at, len(DEBUG))
    return header + segment + LOADED + DEBUG + table


def test_what_is_loaded_stays_and_the_rest_goes() -> None:
    data = make_elf()
    stripped = strip_elf(data)
    assert stripped is not None
    assert stripped.endswith(LOADED)
    assert stripped[64:] == data[64 : len(stripped)]
    assert struct.unpack_from("<Q", stripped, 40) == (0,)
    assert struct.unpack_from("<HH", stripped, 60) == (0, 0)
    assert strip_elf(stripped) is None


def test_a_section_that_is_loaded_is_kept_wherever_it_stands() -> None:
    stripped = strip_elf(make_elf(note_behind=True))
    assert stripped is not None
    assert stripped.endswith(DEBUG)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"#!/bin/sh\n",
        b"\x7fELF",
        make_elf()[:100],
        make_elf()[:-1],
        make_elf(kind=1),
        make_elf().replace(b"\x7fELF\x02\x01", b"\x7fELF\x01\x01"),
        make_elf().replace(b"\x7fELF\x02\x01", b"\x7fELF\x02\x02"),
    ],
    ids=["empty", "script", "magic only", "cut early", "cut late", "object file", "32 bits", "big endian"],
)
def test_anything_else_is_left_alone(data: bytes) -> None:
    assert strip_elf(data) is None


def test_a_real_library_still_loads(tmp_path: Path) -> None:
    libc = next(
        Path(line.split()[-1]) for line in Path("/proc/self/maps").read_text().splitlines() if "/libc.so" in line
    )
    source = next((path for path in libc.parent.glob("libz.so.1.*")), libc.parent / "libm.so.6")
    stripped = strip_elf(source.read_bytes())
    assert stripped is not None
    copy = tmp_path / "libcopy.so"
    copy.write_bytes(stripped)
    library = ctypes.CDLL(str(copy))
    function = "zlibVersion" if "libz" in source.name else "cosf"
    assert getattr(library, function) is not None
