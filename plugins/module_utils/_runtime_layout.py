# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a node keeps its runtimes, which ones it switched to, and one quick look at a tree.

This is all that a run needs that finds everything as it must be. A node compiles what a module imports anew each time,
so what changes a tree is apart, in ``_runtime_nodes``.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "MANIFEST_NAME",
    "Head",
    "Layout",
    "Record",
    "TreeError",
    "file_row",
    "file_sha256",
    "link_row",
    "load_record",
    "look_sha256",
    "manifest_head",
    "rows_of",
    "stale_trees",
    "store_record",
    "walk",
]

MANIFEST_NAME = "manifest.json"
_DIGEST = re.compile(r"^[0-9a-f]{16}$")
_CHUNK_BYTES = 1 << 20
# Where a manifest goes on after its entries. No text in them can hold it, because JSON escapes the quotes of a text.
_AFTER_ENTRIES = b'"format":'


class TreeError(ValueError):
    """A tree that is not, or cannot be made, what it must be."""


@dataclass(frozen=True)
class Layout:
    """Where a node keeps its runtimes."""

    root: Path
    record: Path

    @property
    def trees(self) -> Path:
        return self.root / "runtime"

    @property
    def current(self) -> Path:
        return self.root / "current"

    def tree(self, digest: str) -> Path:
        if not _DIGEST.match(digest):
            raise TreeError(f"{digest!r} is not the digest of a runtime (16 hexadecimal digits)")
        return self.trees / digest

    def current_digest(self) -> str | None:
        """The digest that ``current`` points to; None when it is not there or not ours."""
        try:
            target = os.readlink(self.current)
        except OSError:
            return None
        folder, _slash, name = target.rpartition("/")
        return name if folder == "runtime" and _DIGEST.match(name) else None

    def digests(self) -> tuple[str, ...]:
        """Every tree that has its final name."""
        if not self.trees.is_dir():
            return ()
        return tuple(sorted(item.name for item in self.trees.iterdir() if _DIGEST.match(item.name)))


@dataclass(frozen=True)
class Record:
    """Which trees were switched to, the latest last."""

    history: tuple[str, ...]

    @property
    def previous(self) -> str | None:
        return self.history[-2] if len(self.history) > 1 else None

    def switched_to(self, digest: str) -> Record:
        if self.history and self.history[-1] == digest:
            return self
        return Record((*(item for item in self.history if item != digest), digest))


@dataclass(frozen=True)
class Head:
    """A manifest without its entries."""

    digest: str
    tree_sha256: str
    versions: dict[str, str]


def load_record(path: Path) -> Record:
    """What was switched to so far. A record that cannot be read counts as empty: it only says what may be removed."""
    try:
        history = json.loads(path.read_text())["history"]
        return Record(tuple(item for item in history if isinstance(item, str) and _DIGEST.match(item)))
    except (OSError, ValueError, KeyError, TypeError):
        return Record(())


def store_record(path: Path, record: Record) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"current": record.history[-1] if record.history else None, "previous": record.previous}
    text = json.dumps({**content, "history": list(record.history)}, indent=2) + "\n"
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    partial.replace(path)


def stale_trees(digests: Iterable[str], record: Record, keep: int) -> tuple[str, ...]:
    """The trees beyond the ``keep`` that were last switched to."""
    kept = set(record.history[-keep:])
    return tuple(digest for digest in digests if digest not in kept)


def file_row(path: str, mode: int, size: int) -> str:
    """What a look sees of a file."""
    return f"{path}\0{mode:o}\0{size}"


def link_row(path: str, link: str) -> str:
    """What a look sees of a symlink."""
    return f"{path}\0link\0{link}"


def look_sha256(manifest: bytes, rows: Iterable[str]) -> str:
    """One hash over a manifest and over what a look sees of every path, whatever their order."""
    total = hashlib.sha256(hashlib.sha256(manifest).digest())
    # No path and no target of a symlink has a NUL in it, so nothing else gives the same text.
    total.update("\0\0".join(sorted(rows)).encode("utf-8", "surrogateescape"))
    return total.hexdigest()


def walk(tree: Path) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Every file and symlink of a tree but its manifest. OSError where it cannot be looked at.

    Texts instead of ``Path``: a tree has 35,000 of them.
    """
    folders = [""]
    while folders:
        folder = folders.pop()
        with os.scandir(f"{tree}/{folder}") as items:
            for item in items:
                path = f"{folder}{item.name}"
                if item.is_dir(follow_symlinks=False):
                    folders.append(f"{path}/")
                elif path != MANIFEST_NAME:
                    yield path, item


def rows_of(tree: Path) -> Iterator[str]:
    """What a look sees of every path of a tree but its manifest. OSError where it cannot be looked at."""
    for path, item in walk(tree):
        if item.is_symlink():
            yield link_row(path, os.readlink(item.path))
        else:
            state = item.stat(follow_symlinks=False)
            yield file_row(path, state.st_mode, state.st_size)


def file_sha256(path: Path) -> str:
    """The hash of a file, as hex digits."""
    total = hashlib.sha256()
    with path.open("rb") as handle:
        for chunk in iter(lambda: handle.read(_CHUNK_BYTES), b""):
            total.update(chunk)
    return total.hexdigest()


def manifest_head(text: bytes) -> Head:
    """The head of a manifest that is known to be right; ValueError when it has none."""
    begin, end = text.find(b'"entries":'), text.rfind(_AFTER_ENTRIES)
    if min(begin, end) < 0:
        raise ValueError("the manifest has no entries")
    raw = json.loads(text[:begin] + text[end:])
    return Head(str(raw["digest"]), str(raw["tree_sha256"]), dict(raw["versions"]))
