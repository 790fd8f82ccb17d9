# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The runtime trees of one node: what is there, unpacking and checking one, switching to it, keeping the last.

``ROOT/runtime/DIGEST`` are trees that never change, ``ROOT/current`` is a symlink to one of them. A tree gets its
name only when every file in it is what the manifest says, so a half-installed one is never current.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import shutil
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ansible_collections.sparkrig.serving.plugins.module_utils._runtime import (
    Manifest,
    Target,
    manifest_from_json,
)
from ansible_collections.sparkrig.serving.plugins.module_utils._runtime_layout import (
    MANIFEST_NAME,
    Layout,
    TreeError,
    file_sha256,
    walk,
)

__all__ = [
    "NodeFacts",
    "alone",
    "bytes_needed",
    "check_node",
    "check_tree",
    "install",
    "load_manifest",
    "remove_tree",
    "switch",
]

_CHUNK_BYTES = 1 << 20
# What a file costs on disk beyond its bytes (half a block and its inode), and what we leave free for others.
_FILE_OVERHEAD_BYTES = 2560
_SPARE_BYTES = 256 * 1024 * 1024
_SHOWN = 3
_BLOCK_BYTES = 512
_NO_BLOCK = bytes(_BLOCK_BYTES)
# GNU tar's members that carry a name longer than a header can hold.
_LONG_NAMES = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)


@dataclass(frozen=True)
class NodeFacts:
    """What decides whether a tree runs on this node."""

    machine: str
    glibc: str
    # The version that /usr/bin/pythonMINOR reports, or None when there is no such program.
    python: str | None
    usual_python: str | None


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text))


def check_node(facts: NodeFacts, target: Target) -> str | None:
    """Why a tree for ``target`` cannot run here, in one sentence; None when it can."""
    if facts.machine != target.machine:
        return f"the runtime is for {target.machine} and this node is {facts.machine}: set runtime.machine"
    if facts.python is None:
        return (
            f"the runtime needs /usr/bin/python{target.python}, which this node does not have (its /usr/bin/python3 is"
            f" {facts.usual_python or 'missing'}): install python{target.python}, or build the runtime for the minor"
            " version that all nodes have (runtime.python)"
        )
    if _version(facts.python)[:2] != _version(target.python):
        return f"/usr/bin/python{target.python} of this node says that it is {facts.python}: reinstall it"
    if facts.glibc and _version(facts.glibc) < _version(target.glibc):
        return (
            f"the runtime needs glibc {target.glibc} or newer and this node has {facts.glibc}: upgrade the node, or set"
            f" runtime.glibc to {facts.glibc} if all wheels exist for it"
        )
    return None


def bytes_needed(tree_bytes: int, files: int, archive_bytes: int) -> int:
    """What must be free for a tree, for the archive if it still has to come, and for others."""
    return tree_bytes + files * _FILE_OVERHEAD_BYTES + archive_bytes + _SPARE_BYTES


def load_manifest(tree: Path) -> Manifest | None:
    """The manifest of a tree; None when there is none that can be trusted."""
    try:
        return manifest_from_json((tree / MANIFEST_NAME).read_bytes())
    except (OSError, ValueError):
        return None


def _some(paths: Iterable[str]) -> str:
    ordered = sorted(paths)
    more = f" and {len(ordered) - _SHOWN} more" if len(ordered) > _SHOWN else ""
    return ", ".join(ordered[:_SHOWN]) + more


def check_tree(tree: Path, expected_sha256: str, full: bool, manifest: Manifest | None = None) -> str | None:
    """What is wrong with a tree, in one sentence; None when it is as its manifest says.

    The quick look compares every path, size and mode (a third of a second), the full one hashes every file. Who has
    read the tree's manifest already gives it.
    """
    if not tree.is_dir():
        return f"{tree} is not there"
    manifest = manifest or load_manifest(tree)
    if manifest is None:
        return f"{tree} has no manifest that can be read"
    if manifest.tree_sha256 != expected_sha256:
        return f"{tree} is another tree: its manifest says {manifest.tree_sha256}, expected {expected_sha256}"
    states = ((path, item.stat(follow_symlinks=False)) for path, item in walk(tree))
    found = {path: (state.st_mode, state.st_size) for path, state in states}
    wanted = {entry.path: entry for entry in manifest.entries}
    missing = wanted.keys() - found.keys()
    if missing:
        return f"{tree} lacks {_some(missing)}"
    extra = found.keys() - wanted.keys()
    if extra:
        return f"{tree} has files that are not part of it: {_some(extra)}"
    for path, entry in wanted.items():
        if entry.link is not None:
            try:
                seen = os.readlink(tree / path)
            except OSError:
                return f"{tree}/{path} is not a symlink to {entry.link}"
            if seen != entry.link:
                return f"{tree}/{path} points to {seen}, expected {entry.link}"
            continue
        mode, size_bytes = found[path]
        if size_bytes != entry.size or mode != 0o100000 | entry.mode:
            return (
                f"{tree}/{path} has {size_bytes} bytes and mode {mode & 0o7777:04o}, expected"
                f" {entry.size} and {entry.mode:04o}"
            )
        if full and file_sha256(tree / path) != entry.sha256:
            return f"{tree}/{path} has other content than the manifest says"
    return None


def remove_tree(tree: Path) -> None:
    """Remove a read-only tree, whoever we are; one that is not there is fine."""
    if tree.is_symlink() or tree.is_file():
        tree.unlink()
        return
    if not tree.is_dir():
        return
    # Out of sight first: an interrupted removal must not leave half a tree under a good name.
    doomed = tree if tree.name.endswith(".partial") else tree.with_name(tree.name + ".removed.partial")
    if doomed != tree:
        remove_tree(doomed)
        tree.rename(doomed)
    for folder, _folders, _files in os.walk(doomed):
        os.chmod(folder, 0o700)
    shutil.rmtree(doomed)


class _Members:
    """The members of an archive, in their order, as type, size and content.

    A node unpacks tens of thousands of files, and the standard library's reader spends more time on each header than
    writing the file takes. Names are not read at all: the manifest has them in the same order, and every content is
    checked against it.
    """

    def __init__(self, handle: BinaryIO, what: str) -> None:
        self._handle = handle
        self._what = what

    def exactly(self, size: int) -> bytes:
        data = self._handle.read(size)
        if len(data) != size:
            raise TreeError(f"{self._what} is damaged: it ends too early; run again to ship it anew")
        return data

    def next(self) -> tuple[bytes, int, bytes] | None:
        """Type, size and link target of the next member, or None at the end."""
        while True:
            header = self.exactly(_BLOCK_BYTES)
            if header == _NO_BLOCK:
                return None
            if header[257:262] != b"ustar":
                raise TreeError(f"{self._what} is damaged: a header is not one; run again to ship it anew")
            raw = header[124:136]
            if raw[0] & 0x80:
                size = int.from_bytes(raw[1:], "big")
            else:
                digits = raw.strip(b"\0 ")
                if not re.match(rb"^[0-7]*$", digits):
                    raise TreeError(f"{self._what} is damaged: a size is {raw!r}; run again to ship it anew")
                size = int(digits or b"0", 8)
            kind = header[156:157]
            if kind in _LONG_NAMES:
                self.exactly(size)
                self.pad(size)
                continue
            return kind, size, header[157:257].rstrip(b"\0")

    def pad(self, size: int) -> None:
        self.exactly(-size % _BLOCK_BYTES)


def _write_file(path: Path, mode: int, size: int, members: _Members) -> str:
    total = hashlib.sha256()
    output = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    try:
        left = size
        while left:
            chunk = memoryview(members.exactly(min(left, _CHUNK_BYTES)))
            total.update(chunk)
            left -= len(chunk)
            while chunk:
                chunk = chunk[os.write(output, chunk) :]
    finally:
        os.close(output)
    members.pad(size)
    return total.hexdigest()


def _unpack(handle: BinaryIO, what: str, partial: Path, digest: str, expected_sha256: str) -> Manifest:
    """Unpack into ``partial``, checking each file as it passes; TreeError names the first that is wrong."""
    members = _Members(handle, what)
    first = members.next()
    if first is None or first[0] != tarfile.REGTYPE:
        raise TreeError(f"{what} does not start with {MANIFEST_NAME}")
    text = members.exactly(first[1])
    members.pad(first[1])
    try:
        manifest = manifest_from_json(text)
    except ValueError as exc:
        raise TreeError(f"{what}: {exc}") from exc
    if manifest.digest != digest or manifest.tree_sha256 != expected_sha256:
        raise TreeError(
            f"{what} holds the runtime {manifest.digest} with the tree {manifest.tree_sha256}, expected {digest}"
            f" with {expected_sha256}"
        )
    partial.mkdir()
    (partial / MANIFEST_NAME).write_bytes(text)
    (partial / MANIFEST_NAME).chmod(0o444)
    made = {""}
    for entry in manifest.entries:
        member = members.next()
        kind = tarfile.SYMTYPE if entry.link is not None else tarfile.REGTYPE
        if member is None or member[0] != kind or member[1] != entry.size:
            raise TreeError(f"{what} has something else where its manifest has {entry.path}")
        folder = os.path.dirname(entry.path)
        if folder not in made:
            os.makedirs(partial / folder, exist_ok=True)
            made.add(folder)
        if entry.link is not None:
            (partial / entry.path).symlink_to(entry.link)
        elif _write_file(partial / entry.path, entry.mode, entry.size, members) != entry.sha256:
            raise TreeError(f"{what} is damaged at {entry.path}: other content than its manifest says")
    if members.next() is not None:
        raise TreeError(f"{what} has more than its manifest says")
    for folder, _folders, _files in os.walk(partial):
        os.chmod(folder, 0o555)
    return manifest


def install(
    layout: Layout, archive: Path | Callable[[], BinaryIO], digest: str, expected_sha256: str, full: bool = False
) -> Manifest:
    """Unpack ``archive``, a file or what opens a stream, as the tree ``digest``; a damaged tree there is replaced.

    Whatever goes wrong, what was there stays as it was and nothing half-made is left. ``full`` is how closely a tree
    of that name is looked at before it counts as good.
    """
    layout.trees.mkdir(parents=True, exist_ok=True)
    # Two controllers at once: the second waits, and finds the tree.
    with alone(layout):
        return _install_alone(layout, archive, digest, expected_sha256, full)


@contextlib.contextmanager
def alone(layout: Layout, deadline: float | None = None) -> Iterator[None]:
    """Be the only process that works on the trees. TreeError when another one still does at *deadline*."""
    lock = os.open(layout.trees, os.O_RDONLY | os.O_DIRECTORY)
    try:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX if deadline is None else fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if deadline is not None and time.monotonic() >= deadline:
                    raise TreeError(
                        f"another process still unpacks to {layout.trees}: wait until it is done, then run again"
                    ) from None
                time.sleep(0.5)
        yield
    finally:
        os.close(lock)


def _install_alone(
    layout: Layout, archive: Path | Callable[[], BinaryIO], digest: str, expected_sha256: str, full: bool
) -> Manifest:
    tree = layout.tree(digest)
    manifest = load_manifest(tree)
    if manifest is not None and check_tree(tree, expected_sha256, full, manifest) is None:
        return manifest
    partial = layout.trees / f"{digest}.partial"
    remove_tree(partial)
    # Folders become 0755 until they are read-only; files get their own modes, which have no bit of this.
    before = os.umask(0o022)
    try:
        if isinstance(archive, Path):
            with archive.open("rb", buffering=_CHUNK_BYTES) as handle:
                manifest = _unpack(handle, f"the archive {archive}", partial, digest, expected_sha256)
        else:
            with archive() as handle:
                manifest = _unpack(handle, "what the other node sends", partial, digest, expected_sha256)
    except OSError as exc:
        remove_tree(partial)
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            raise TreeError(f"the disk of {layout.trees} filled up while the runtime {digest} was unpacked") from exc
        if not isinstance(archive, Path):
            raise TreeError(
                f"the runtime {digest} did not come whole from the node that hands it on ({exc}): run again, or set"
                " runtime_spread=controller"
            ) from exc
        raise TreeError(f"the runtime {digest} could not be unpacked to {layout.trees}: {exc}") from exc
    except BaseException:
        remove_tree(partial)
        raise
    finally:
        os.umask(before)
    remove_tree(tree)
    partial.rename(tree)
    return manifest


def switch(layout: Layout, digest: str) -> None:
    """Point ``current`` to a tree, in one step: a reader sees the old or the new one, never none."""
    if not layout.tree(digest).is_dir():
        raise TreeError(f"there is no runtime {digest} in {layout.trees} to switch to")
    partial = layout.root / ".current.partial"
    partial.unlink(missing_ok=True)
    partial.symlink_to(f"runtime/{digest}")
    partial.replace(layout.current)
