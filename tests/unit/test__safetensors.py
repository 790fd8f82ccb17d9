# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import re
import struct
import typing as t
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.sparkrig.serving.plugins.module_utils._safetensors import (
    Tensor,
    header_length,
    parse_header,
    read_header,
)


def entry(dtype: str, shape: list[t.Any], start: t.Any, end: t.Any) -> dict[str, t.Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


GOOD = {"__metadata__": {"format": "pt"}, "b": entry("F32", [2], 12, 20), "a": entry("BF16", [2, 3], 0, 12)}


def file_of(header: object, data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def test_tensors_come_in_the_order_of_their_data() -> None:
    tensors = parse_header(json.dumps(GOOD).encode(), "x")
    assert list(tensors.items()) == [("a", Tensor("BF16", (2, 3), 0, 12)), ("b", Tensor("F32", (2,), 12, 20))]
    assert tensors["a"].size_bytes == 12


def test_scalars_empty_tensors_and_repeated_shapes() -> None:
    header = {
        "s": entry("F32", [], 0, 4),
        "e": entry("BF16", [0, 7], 4, 4),
        "t": entry("F32", [], 4, 8),
        "u": entry("F4", [3, 2], 8, 11),
    }
    assert list(parse_header(json.dumps(header).encode(), "x")) == ["s", "e", "t", "u"]


@pytest.mark.parametrize(
    ("header", "sentence"),
    [
        ([], "x: its header is a list, not an object; copy it again"),
        ({"a": 1}, "x: the header's entry for a is 1, not an object"),
        ({"a": entry("F99", [1], 0, 4)}, "x: a has the type 'F99', which safetensors does not know"),
        ({"a": {"shape": [1], "data_offsets": [0, 4]}}, "x: a has the type None, which safetensors does not know"),
        ({"a": entry("F32", [-1], 0, 4)}, "x: a has the shape [-1], not a list of whole numbers"),
        ({"a": entry("F32", [1.0], 0, 4)}, "x: a has the shape [1.0], not a list of whole numbers"),
        ({"a": entry("F32", [1], -4, 0)}, "x: a has the offsets [-4, 0], not two whole numbers"),
        ({"a": {**entry("F32", [1], 0, 4), "data_offsets": [0]}}, "x: a has the offsets [0], not two whole numbers"),
        ({"a": entry("F32", [1], 0, float("nan"))}, "x: a has the offsets [0, nan], not two whole numbers"),
        ({"a": entry("F32", [float("nan")], 0, 4)}, "x: a has the shape [nan], not a list of whole numbers"),
        ({"a": entry("F32", [float("inf")], 0, 4)}, "x: a has the shape [inf], not a list of whole numbers"),
        ({"a": entry("F32", [True], 0, 4)}, "x: a has the shape [True], not a list of whole numbers"),
        (
            {"a": entry("U8", [2**60], 0, 4)},
            f"x: a takes 4 bytes, its type U8 and shape [{2**60}] make {2**60}",
        ),
        ({"a": entry("F32", [2], 0, 4)}, "x: a takes 4 bytes, its type F32 and shape [2] make 8"),
        ({"a": entry("F32", [1], 4, 0)}, "x: a takes -4 bytes, its type F32 and shape [1] make 4"),
        (
            {"a": entry("F32", [1], 0, 4), "b": entry("F32", [1], 2, 6)},
            "x: b starts at byte 2 of the data, not at 4, and so overlaps the tensor before it",
        ),
        (
            {"a": entry("F32", [1], 0, 4), "b": entry("F32", [1], 8, 12)},
            "x: b starts at byte 8 of the data, not at 4, and so leaves a hole before it",
        ),
        (
            {"a": entry("F32", [1], 0, 4), "b": entry("F32", [1], 4, 9)},
            "x: b takes 5 bytes, its type F32 and shape [1] make 4",
        ),
    ],
)
def test_bad_headers(header: object, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        parse_header(json.dumps(header).encode(), "x")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "has 0 bytes, the length of its header alone takes 8; copy it again"),
        (b"1234567", "has 7 bytes, the length of its header alone takes 8; copy it again"),
        (
            struct.pack("<Q", 2**60) + b"{}",
            "claims a header of 1152921504606846976 bytes, 100000000 is the most that is allowed; copy it again",
        ),
        (struct.pack("<Q", 100) + b"{}", "is truncated: its header alone ends at byte 108, the file at byte 10; copy"),
        (struct.pack("<Q", 2) + b"{x", "its header is not JSON"),
        (file_of(GOOD, b"x" * 19), "is truncated: its tensors end at byte"),
        (file_of(GOOD, b"x" * 23), "and 3 bytes follow that belong to none; copy it again"),
    ],
)
def test_bad_files(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(sentence)) as raised:
        read_header(str(path), "model.safetensors")
    assert str(raised.value).startswith("model.safetensors")


def test_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(file_of(GOOD, b"x" * 20))
    header = read_header(str(path))
    assert list(header.tensors) == ["a", "b"]
    assert header.file_bytes == path.stat().st_size
    path.write_bytes(file_of(GOOD, b"y" * 20))
    assert read_header(str(path)).sha256 == header.sha256


def test_header_may_be_the_whole_file() -> None:
    assert header_length(struct.pack("<Q", 2), 10, "x") == 2


@given(st.binary(max_size=200))
def test_any_bytes_are_a_header_or_one_sentence(text: bytes) -> None:
    try:
        parse_header(text, "x")
    except ValueError as error:
        assert str(error).startswith("x: ")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
)
ENTRIES = st.fixed_dictionaries(
    {"dtype": st.sampled_from(["F32", "BF16", "F4", "?"]) | JSON, "shape": JSON, "data_offsets": JSON}
)


@given(st.dictionaries(st.text(max_size=4), ENTRIES | JSON, max_size=3))
def test_any_json_is_a_header_or_one_sentence(header: dict[str, t.Any]) -> None:
    try:
        parse_header(json.dumps(header).encode(), "x")
    except ValueError as error:
        assert str(error).startswith("x: ")


@given(st.lists(st.tuples(st.sampled_from(["F32", "BF16", "U8"]), st.lists(st.integers(0, 5), max_size=3)), max_size=6))
def test_what_covers_its_data_is_accepted(tensors: list[tuple[str, list[int]]]) -> None:
    header = {}
    offset = 0
    for number, (dtype, shape) in enumerate(tensors):
        size = {"F32": 4, "BF16": 2, "U8": 1}[dtype]
        for length in shape:
            size *= length
        header[f"t{number}"] = entry(dtype, shape, offset, offset + size)
        offset += size
    parsed = parse_header(json.dumps(header).encode(), "x")
    assert {name: (tensor.dtype, list(tensor.shape)) for name, tensor in parsed.items()} == {
        f"t{number}": (dtype, shape) for number, (dtype, shape) in enumerate(tensors)
    }
