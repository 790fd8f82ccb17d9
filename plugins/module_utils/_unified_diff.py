# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Unified diffs, applied exactly: every line of every hunk stands where the diff says, or nothing is changed.

``patch(1)`` looks around for a place where a hunk nearly fits. A runtime that four machines must share is no
place for that, so this reads the same format and refuses everything that is not exact.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["FilePatch", "Hunk", "PatchError", "apply_patch", "is_applied", "parse_diff"]

_HUNK = re.compile(rb"^@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@")
_UNSUPPORTED = (
    b"GIT binary patch",
    b"Binary files ",
    b"rename from ",
    b"rename to ",
    b"copy from ",
    b"copy to ",
    b"old mode ",
    b"new mode ",
)
_NO_NEWLINE = b"\\ No newline at end of file"
_LONGEST_QUOTE = 100


class PatchError(ValueError):
    """A diff that cannot be read, or a hunk that does not apply."""


@dataclass(frozen=True)
class Hunk:
    """One hunk: the lines it expects from ``old_start`` on, and the lines that take their place."""

    number: int
    header: str
    old_start: int
    new_start: int
    old_lines: tuple[bytes, ...]
    new_lines: tuple[bytes, ...]


@dataclass(frozen=True)
class FilePatch:
    """All hunks for one file. ``old_path`` is None for a new file, ``new_path`` for one that is deleted."""

    old_path: str | None
    new_path: str | None
    hunks: tuple[Hunk, ...]

    @property
    def path(self) -> str:
        """The file that is meant, under the name that it has when the diff starts."""
        path = self.old_path if self.old_path is not None else self.new_path
        if path is None:
            raise PatchError("a file patch names no file: both sides are /dev/null")
        return path


def _quote(line: bytes) -> str:
    text = line.decode("utf-8", "replace").rstrip("\r\n")
    return repr(text if len(text) <= _LONGEST_QUOTE else text[: _LONGEST_QUOTE - 3] + "...")


def _path(line: bytes, number: int) -> str | None:
    """The path of a ``---`` or ``+++`` line without its ``a/`` or ``b/``; None for /dev/null."""
    raw = line[4:].split(b"\t", 1)[0].rstrip(b"\r\n").rstrip()
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise PatchError(f"line {number}: the file name {raw!r} is not UTF-8") from exc
    if text == "/dev/null":
        return None
    if text[:2] in ("a/", "b/"):
        text = text[2:]
    parts = text.split("/")
    if not text or text.startswith(("/", '"')) or ".." in parts or "." in parts or "" in parts:
        raise PatchError(f"line {number}: {text!r} is not a plain path below the root of the tree")
    return text


def _read_hunk(lines: list[bytes], start: int, number: int) -> tuple[Hunk, int]:
    header = lines[start]
    match = _HUNK.match(header)
    if match is None:
        raise PatchError(f"line {start + 1}: {_quote(header)} is not a hunk header (@@ -LINE,COUNT +LINE,COUNT @@)")
    old_start, new_start = int(match[1]), int(match[3])
    old_count = 1 if match[2] is None else int(match[2])
    new_count = 1 if match[4] is None else int(match[4])
    old: list[bytes] = []
    new: list[bytes] = []
    at = start + 1
    last = b""
    while len(old) < old_count or len(new) < new_count or (at < len(lines) and lines[at].startswith(b"\\")):
        if at >= len(lines):
            raise PatchError(
                f"line {start + 1}: hunk {number} ends too early: it promises {old_count} old and {new_count} new"
                f" lines and has {len(old)} and {len(new)}"
            )
        line = lines[at]
        mark, body = line[:1], line[1:]
        if line.startswith(_NO_NEWLINE):
            if last in (b" ", b"-") and old:
                old[-1] = old[-1].rstrip(b"\n")
            if last in (b" ", b"+") and new:
                new[-1] = new[-1].rstrip(b"\n")
        elif mark == b" " or line in (b"\n", b"\r\n"):
            # Editors strip the one space that an empty context line has.
            body = line if mark != b" " else body
            old.append(body)
            new.append(body)
        elif mark == b"-":
            old.append(body)
        elif mark == b"+":
            new.append(body)
        else:
            raise PatchError(f"line {at + 1}: {_quote(line)} starts with none of ' ', '+', '-' inside hunk {number}")
        last = mark
        at += 1
    if len(old) != old_count or len(new) != new_count:
        raise PatchError(
            f"line {start + 1}: hunk {number} promises {old_count} old and {new_count} new lines and has"
            f" {len(old)} and {len(new)}"
        )
    text = header.decode("utf-8", "replace").rstrip()
    return Hunk(number, text, old_start, new_start, tuple(old), tuple(new)), at


def parse_diff(text: bytes) -> tuple[FilePatch, ...]:
    """Read a unified diff; text around the file parts (mail headers, explanations) is skipped."""
    lines = text.splitlines(keepends=True) if b"\r" not in text else re.findall(rb"[^\n]*\n|[^\n]+", text)
    if lines and not lines[-1].endswith(b"\n"):
        lines[-1] += b"\n"
    patches: list[FilePatch] = []
    at = 0
    while at < len(lines):
        line = lines[at]
        if line.startswith(_UNSUPPORTED):
            raise PatchError(f"line {at + 1}: {_quote(line)}: only changes of text are supported")
        is_file = line.startswith(b"--- ") and at + 1 < len(lines) and lines[at + 1].startswith(b"+++ ")
        if not is_file:
            if line.startswith(b"@@ -"):
                raise PatchError(f"line {at + 1}: a hunk stands before any '--- FILE' and '+++ FILE'")
            at += 1
            continue
        old_path, new_path = _path(line, at + 1), _path(lines[at + 1], at + 2)
        if old_path is None and new_path is None:
            raise PatchError(f"line {at + 1}: both sides are /dev/null")
        if old_path is not None and new_path is not None and old_path != new_path:
            raise PatchError(f"line {at + 1}: {old_path!r} becomes {new_path!r}: renames are not supported")
        head, at = at + 1, at + 2
        hunks: list[Hunk] = []
        while at < len(lines) and lines[at].startswith(b"@@ -"):
            hunk, at = _read_hunk(lines, at, len(hunks) + 1)
            hunks.append(hunk)
        if not hunks:
            raise PatchError(f"line {head}: {old_path or new_path} has no hunk")
        patches.append(FilePatch(old_path, new_path, tuple(hunks)))
    if not patches:
        raise PatchError("there is no '--- FILE', '+++ FILE' in it: not a unified diff")
    return tuple(patches)


def _split(data: bytes) -> list[bytes]:
    """Lines with their ends; only LF ends a line, as in diff(1)."""
    lines = data.split(b"\n")
    tail = lines.pop()
    return [line + b"\n" for line in lines] + ([tail] if tail else [])


def _elsewhere(lines: list[bytes], wanted: tuple[bytes, ...], at: int) -> str:
    """A hint where else the wanted lines stand, if they do."""
    places = _places(lines, wanted)
    if not places:
        return ""
    nearest = min(places, key=lambda index: abs(index - at))
    return f" (the lines that it expects stand at line {nearest + 1}: the diff was made for another version)"


def _apply(patch: FilePatch, data: bytes, reverse: bool, moved: bool = False) -> bytes:
    lines = _split(data)
    result: list[bytes] = []
    done = 0
    for hunk in patch.hunks:
        wanted, put = (hunk.new_lines, hunk.old_lines) if reverse else (hunk.old_lines, hunk.new_lines)
        start = hunk.new_start if reverse else hunk.old_start
        # A side without lines names the line after which it stands.
        at = start - 1 if wanted else start
        if moved and wanted:
            places = _places(lines, wanted)
            at = places[0] if len(places) == 1 else at
        what = f"hunk {hunk.number} ({hunk.header})"
        if at < done:
            raise PatchError(f"{what} overlaps the hunk before it or is out of order")
        for offset, line in enumerate(wanted):
            where = at + offset
            if where >= len(lines):
                raise PatchError(
                    f"{what} does not apply: it expects {_quote(line)} at line {where + 1}, but the file ends at line"
                    f" {len(lines)}{_elsewhere(lines, wanted, at)}"
                )
            if lines[where] != line:
                raise PatchError(
                    f"{what} does not apply: line {where + 1} is {_quote(lines[where])}, the hunk expects"
                    f" {_quote(line)}{_elsewhere(lines, wanted, at)}"
                )
        if at > len(lines):
            raise PatchError(f"{what} does not apply: it adds after line {at}, but the file ends at line {len(lines)}")
        result += lines[done:at]
        result += put
        done = at + len(wanted)
    return b"".join(result + lines[done:])


def apply_patch(patch: FilePatch, data: bytes | None, moved: bool = False) -> bytes | None:
    """The new content of the file; None when the diff deletes it. ``data`` is None when there is no such file.

    With ``moved``, a hunk may stand at another line than it says, if all its lines stand there and nowhere else.
    Raises PatchError with the hunk, the line, what is there and what was expected.
    """
    if patch.old_path is None:
        if data is not None:
            raise PatchError("hunk 1 creates this file, but it is there already")
        return _apply(patch, b"", reverse=False)
    if data is None:
        raise PatchError(f"{patch.hunks[0].header} does not apply: there is no such file")
    result = _apply(patch, data, reverse=False, moved=moved)
    if patch.new_path is not None:
        return result
    if result:
        raise PatchError("the diff deletes this file, but lines would be left over")
    return None


def _places(lines: Sequence[bytes], wanted: Sequence[bytes], start: int = 0) -> list[int]:
    """Every index from ``start`` on where the lines ``wanted`` stand."""
    size = len(wanted)
    return [at for at in range(start, len(lines) - size + 1) if lines[at : at + size] == list(wanted)]


def _contains(patch: FilePatch, data: bytes) -> bool:
    """Whether what the diff makes stands in the file, in its order, and what it replaces stands nowhere any more."""
    lines = _split(data)
    done = 0
    for hunk in patch.hunks:
        old, new = hunk.old_lines, hunk.new_lines
        if not new:
            return False
        places = _places(lines, new, done)
        if not places:
            return False
        # The new lines may contain the old ones, as where a line is added behind the last.
        within = len(_places(list(new), old)) if old else 0
        if old and len(_places(lines, old)) > within * len(_places(lines, new)):
            return False
        done = places[0] + len(new)
    return True


def is_applied(patch: FilePatch, data: bytes | None) -> bool:
    """Whether the file is already as the diff would leave it.

    That is so when every hunk can be taken back exactly, or, since a newer version has its lines elsewhere, when the
    new lines of every hunk stand in the file in their order and the old ones stand nowhere.
    """
    if patch.new_path is None:
        return data is None
    if data is None:
        return False
    if patch.old_path is None:
        return data == b"".join(patch.hunks[0].new_lines)
    try:
        _apply(patch, data, reverse=True)
    except PatchError:
        return _contains(patch, data)
    return True
