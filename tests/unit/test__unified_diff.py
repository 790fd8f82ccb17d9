# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Unified diffs: what difflib and diff(1) write is read back, and what does not fit exactly is refused."""

from __future__ import annotations

import difflib

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ansible_collections.sparkrig.serving.plugins.module_utils._unified_diff import (
    FilePatch,
    PatchError,
    apply_patch,
    is_applied,
    parse_diff,
)

OLD = b"one\ntwo\nthree\nfour\nfive\n"
NEW = b"one\ntwo\n3\nfour\nfive\n"
DIFF = b"""It says three where 3 would do.

--- a/dir/numbers.txt
+++ b/dir/numbers.txt
@@ -2,3 +2,3 @@ heading
 two
-three
+3
 four
"""


def only(text: bytes) -> FilePatch:
    (patch,) = parse_diff(text)
    return patch


def make_diff(old: bytes, new: bytes, context: int = 3) -> bytes:
    """What diff -u writes, with its note about a missing newline."""
    lines = []
    for line in difflib.diff_bytes(
        difflib.unified_diff, split(old), split(new), b"a/f", b"b/f", n=context, lineterm=b"\n"
    ):
        lines.append(line if line.endswith(b"\n") else line + b"\n\\ No newline at end of file\n")
    return b"".join(lines)


def split(data: bytes) -> list[bytes]:
    parts = data.split(b"\n")
    return [part + b"\n" for part in parts[:-1]] + ([parts[-1]] if parts[-1] else [])


def test_one_hunk_is_read_and_applied() -> None:
    patch = only(DIFF)
    assert patch.path == "dir/numbers.txt"
    assert [(hunk.old_start, hunk.new_start, len(hunk.old_lines)) for hunk in patch.hunks] == [(2, 2, 3)]
    assert apply_patch(patch, OLD) == NEW
    assert is_applied(patch, NEW)
    assert not is_applied(patch, OLD)


text = st.lists(st.sampled_from([b"a", b"b", b"c", b"", b"\tx", b"-y", b"+z", b"\xff\xfe", b"w\r"]), max_size=12)


@given(text, text, st.booleans(), st.booleans(), st.integers(min_value=0, max_value=3))
def test_what_difflib_writes_is_undone_and_redone(
    old_lines: list[bytes], new_lines: list[bytes], old_end: bool, new_end: bool, context: int
) -> None:
    old = b"\n".join(old_lines) + (b"\n" if old_end and old_lines else b"")
    new = b"\n".join(new_lines) + (b"\n" if new_end and new_lines else b"")
    assume(old != new)
    patch = only(make_diff(old, new, context))
    assert apply_patch(patch, old) == new
    assert is_applied(patch, new)


def test_git_headers_signatures_and_stripped_blank_context_are_understood() -> None:
    diff = (
        b"From 123 Mon Sep 17\nSubject: x\n---\n f | 2 +-\n\ndiff --git a/f b/f\nindex 1..2 100644\n"
        b"--- a/f\n+++ b/f\n@@ -1,3 +1,3 @@\n a\n\n-b\n+c\n--\n2.39.2\n"
    )
    # The last two lines are git's signature: the hunk's counts say that they are not part of it.
    assert apply_patch(only(diff), b"a\n\nb\n") == b"a\n\nc\n"


def test_files_are_created_and_deleted() -> None:
    create = only(b"--- /dev/null\n+++ b/new\n@@ -0,0 +1,2 @@\n+a\n+b\n")
    assert apply_patch(create, None) == b"a\nb\n"
    assert is_applied(create, b"a\nb\n")
    assert not is_applied(create, None)
    assert not is_applied(create, b"a\nb\nc\n")
    with pytest.raises(PatchError, match="creates this file, but it is there"):
        apply_patch(create, b"")
    delete = only(b"--- a/old\n+++ /dev/null\n@@ -1,2 +0,0 @@\n-a\n-b\n")
    assert apply_patch(delete, b"a\nb\n") is None
    assert is_applied(delete, None)
    assert not is_applied(delete, b"a\nb\n")
    with pytest.raises(PatchError, match="lines would be left over"):
        apply_patch(delete, b"a\nb\nc\n")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"zero\nzero\n" + NEW, True),
        (b"zero\n" + OLD, False),
        (b"zero\n" + NEW + OLD, False),
        (b"3\n", False),
        (b"", False),
    ],
    ids=["moved", "moved and not there", "both", "without context", "empty"],
)
def test_what_a_newer_version_has_elsewhere_is_recognised(data: bytes, expected: bool) -> None:
    assert is_applied(only(DIFF), data) is expected


def test_two_hunks_that_moved_are_recognised_only_in_their_order() -> None:
    diff = b"--- a/f\n+++ b/f\n@@ -1 +1,2 @@\n a\n+b\n@@ -8 +9,2 @@\n x\n+y\n"
    assert is_applied(only(diff), b"0\na\nb\n1\nx\ny\n")
    assert not is_applied(only(diff), b"0\nx\ny\na\nb\n")
    assert not is_applied(only(diff), b"0\na\nb\n1\nx\n")
    assert not is_applied(only(diff), b"0\na\nb\na\nx\ny\n")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"one\ntwo\ndrei\nfour\nfive\n", "line 3 is 'drei', the hunk expects 'three'"),
        (b"zero\n" + OLD, "stand at line 3: the diff was made for another version"),
        (b"one\ntwo\n", "expects 'three' at line 3, but the file ends at line 2"),
        (None, "there is no such file"),
        (NEW, "line 3 is '3', the hunk expects 'three'"),
        (OLD.replace(b"\n", b"\r\n"), "hunk 1"),
    ],
    ids=["changed", "moved", "short", "missing", "applied already", "other line ends"],
)
def test_a_hunk_that_does_not_fit_is_refused(data: bytes | None, words: str) -> None:
    with pytest.raises(PatchError) as caught:
        apply_patch(only(DIFF), data)
    assert words in str(caught.value)


def test_a_hunk_that_adds_behind_the_end_is_refused() -> None:
    patch = only(b"--- a/f\n+++ b/f\n@@ -9,0 +10 @@\n+x\n")
    with pytest.raises(PatchError, match="adds after line 9, but the file ends at line 5"):
        apply_patch(patch, OLD)


def test_hunks_out_of_order_are_refused() -> None:
    patch = only(b"--- a/f\n+++ b/f\n@@ -4 +4 @@\n-four\n+4\n@@ -2 +2 @@\n-two\n+2\n")
    with pytest.raises(PatchError, match="hunk 2 .* overlaps the hunk before it"):
        apply_patch(patch, OLD)


@pytest.mark.parametrize(
    ("diff", "words"),
    [
        (b"", "not a unified diff"),
        (b"hello\nworld\n", "not a unified diff"),
        (b"@@ -1 +1 @@\n-a\n+b\n", "a hunk stands before any"),
        (b"--- a/f\n+++ b/f\nnothing\n", "f has no hunk"),
        (b"--- a/f\n+++ b/f\n@@ -1,2 +1,2 @@\n a\n", "ends too early: it promises 2 old and 2 new"),
        (b"--- a/f\n+++ b/f\n@@ -1,1 +1,2 @@\n-a\n-b\n+c\n+d\n", "promises 1 old and 2 new lines and has 2 and 2"),
        (b"--- a/f\n+++ b/f\n@@ -1,2 +1,2 @@\n a\n*b\n", "starts with none of"),
        (b"--- a/f\n+++ b/f\n@@ -x +1 @@\n", "is not a hunk header"),
        (b"--- a/f\n+++ b/f\n@@ -1,y +1 @@\n", "is not a hunk header"),
        (b"--- a/f\n+++ b/g\n@@ -1 +1 @@\n-a\n+b\n", "renames are not supported"),
        (b"rename from a\nrename to b\n", "only changes of text"),
        (b"GIT binary patch\n", "only changes of text"),
        (b"old mode 100644\nnew mode 100755\n", "only changes of text"),
        (b"--- a/../f\n+++ b/../f\n@@ -1 +1 @@\n-a\n+b\n", "not a plain path"),
        (b"--- /etc/passwd\n+++ /etc/passwd\n@@ -1 +1 @@\n-a\n+b\n", "not a plain path"),
        (b"--- a/\xff\n+++ b/\xff\n@@ -1 +1 @@\n-a\n+b\n", "is not UTF-8"),
        (b"--- /dev/null\n+++ /dev/null\n@@ -1 +1 @@\n-a\n+b\n", "both sides are /dev/null"),
    ],
)
def test_a_diff_that_cannot_be_read_is_refused(diff: bytes, words: str) -> None:
    with pytest.raises(PatchError) as caught:
        parse_diff(diff)
    assert words in str(caught.value)
