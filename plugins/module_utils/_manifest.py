# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The manifest of a model folder: the SHA-256 of every file, and by what a file that was hashed is known again.

Private to the collection. Hashing hundreds of gigabytes takes minutes, so it is done once; size, time of the last
change and inode then say in a millisecond whether a file is still the one that was hashed. They do not show a bit
that flipped on the disk: that takes a hash again, on demand.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import os
import stat
import threading
import time
import typing as t
from dataclasses import dataclass, replace
from functools import partial

# Both are hidden, so that they are no part of the checkpoint.
MANIFEST_FILE = ".sparkrig-manifest.json"
PARTIAL_SUFFIX = ".sparkrig-part"

_VERSION = 1
_BUFFER_BYTES = 1 << 20
_HEX = frozenset("0123456789abcdef")

# Weights in these formats are unpickled or run code when they are loaded, or cannot be checked by their headers.
UNSAFE_PATTERNS = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle", "*.npy", "*.npz", "*.h5", "*.msgpack")


class Stat(t.NamedTuple):
    """By what a file is known again."""

    size_bytes: int
    mtime_ns: int
    inode: int


@dataclass(frozen=True)
class Entry:
    """One file as it was hashed. ``hashed_at`` is in seconds; ``damaged`` when a later hash was another one."""

    stat: Stat
    sha256: str
    hashed_at: float
    damaged: bool = False


@dataclass(frozen=True)
class Comparison:
    """The files of a folder beside its manifest, by name.

    ``known`` are those whose hash holds, ``unknown`` those that have to be hashed, ``damaged`` those that have
    changed without a trace, ``gone`` those that the manifest has and the folder lacks.
    """

    known: t.Sequence[str]
    unknown: t.Sequence[str]
    damaged: t.Sequence[str]
    gone: t.Sequence[str]


def check_name(name: object, file: str) -> str:
    """*name* if it is that of a file below the folder."""
    parts = name.split("/") if isinstance(name, str) else [""]
    if any(part in ("", ".", "..") or "\0" in part or "\\" in part for part in parts):
        raise ValueError(f"{file} names the file {name!r}, which does not lie below its folder; delete {file}")
    return "/".join(parts)


def size_text(size_bytes: int) -> str:
    """A size for people; 2**30 bytes are one GiB."""
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size_bytes >= factor:
            return f"{size_bytes / factor:.1f} {unit}"
    return f"{size_bytes} B"


def partial_name(name: str) -> str:
    """Under which name a file grows until it is whole."""
    folder, _slash, last = name.rpartition("/")
    return f"{folder}/.{last}{PARTIAL_SUFFIX}" if folder else f".{last}{PARTIAL_SUFFIX}"


def list_folder(folder: str) -> dict[str, str]:
    """The files of a model folder: name below it to real path. What is hidden (.cache, .git) is no part of it."""
    if not os.path.isdir(folder):
        raise ValueError(f"{folder} is no folder on this node; put the checkpoint there, or correct the path")
    found = {}
    for where, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            if not name.startswith("."):
                path = os.path.join(where, name)
                found[os.path.relpath(path, folder)] = os.path.realpath(path)
    return dict(sorted(found.items()))


def stat_of(path: str) -> Stat:
    """What is known of the file at *path* without reading it. Only a regular file has bytes to trust."""
    try:
        seen = os.stat(path)
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist: a link to it leads nowhere; copy the file there") from None
    if not stat.S_ISREG(seen.st_mode):
        raise ValueError(f"{path} is no regular file; a checkpoint holds nothing else, take it away")
    return Stat(seen.st_size, seen.st_mtime_ns, seen.st_ino)


def unsafe_files(names: t.Iterable[str], allowed: t.Iterable[str]) -> list[str]:
    """The files in formats that nobody should load unseen, but for those that *allowed* (patterns) lets pass."""
    patterns = tuple(allowed)

    def matches(name: str, wanted: t.Iterable[str]) -> bool:
        return any(fnmatch.fnmatchcase(os.path.basename(name).lower(), pattern.lower()) for pattern in wanted)

    return [name for name in names if matches(name, UNSAFE_PATTERNS) and not matches(name, patterns)]


def scan(folder: str) -> dict[str, Stat]:
    """Every file of a folder by name; an empty mapping when there is no such folder."""
    if not os.path.isdir(folder):
        return {}
    found = {}
    for name, path in list_folder(folder).items():
        try:
            name.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{folder} has a file with the name {name!r}, which is no UTF-8; rename it") from None
        found[name] = stat_of(path)
    return found


def compare(seen: t.Mapping[str, Stat], entries: t.Mapping[str, Entry]) -> Comparison:
    """What of a folder is as it was when it was hashed."""
    same = {name for name, seen_stat in seen.items() if name in entries and entries[name].stat == seen_stat}
    damaged = {name for name in same if entries[name].damaged}
    return Comparison(
        known=tuple(sorted(same - damaged)),
        unknown=tuple(sorted(seen.keys() - same)),
        damaged=tuple(sorted(damaged)),
        gone=tuple(sorted(entries.keys() - seen.keys())),
    )


def content_digest(files: t.Mapping[str, tuple[int, str]]) -> str:
    """One digest of all files, name to (size, SHA-256): equal on two nodes when every byte is."""
    lines = [f"{sha256}  {files[name][0]}  {name}\n" for name in sorted(files) for sha256 in (files[name][1],)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def partials(folder: str) -> dict[str, str]:
    """What an interrupted copy has left: name of the file to path of its part."""
    found = {}
    for where, _folders, names in os.walk(folder):
        for name in names:
            if name.startswith(".") and name.endswith(PARTIAL_SUFFIX):
                whole = os.path.join(where, name[1 : -len(PARTIAL_SUFFIX)])
                found[os.path.relpath(whole, folder)] = os.path.join(where, name)
    return found


def nearest(folder: str) -> str:
    """*folder*, or its nearest parent that exists."""
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    return folder


def look(folder: str, seen: t.Mapping[str, Stat], entries: t.Mapping[str, Entry]) -> dict[str, t.Any]:
    """What there is to know of a folder, of what lies in it (`scan`) and what its manifest says (`read_manifest`)."""
    state = compare(seen, entries)
    known = {name: entries[name].sha256 for name in state.known}
    where = nearest(folder)
    room = os.statvfs(where)
    complete = len(known) == len(seen) and bool(seen)
    return {
        "path": folder,
        "exists": bool(seen),
        "files": {name: {"size_bytes": one.size_bytes, "sha256": known.get(name)} for name, one in seen.items()},
        "damaged": {name: entries[name].sha256 for name in state.damaged},
        "partial_bytes": {name: os.path.getsize(path) for name, path in partials(folder).items()},
        "digest": content_digest({n: (seen[n].size_bytes, known[n]) for n in known}) if complete else None,
        "device": os.stat(where).st_dev,
        "free_bytes": room.f_bavail * room.f_frsize,
    }


def manifest_text(entries: t.Mapping[str, Entry]) -> bytes:
    """The manifest as a file."""
    files = {
        name: {
            "size_bytes": entry.stat.size_bytes,
            "mtime_ns": entry.stat.mtime_ns,
            "inode": entry.stat.inode,
            "sha256": entry.sha256,
            "hashed_at": entry.hashed_at,
            **({"damaged": True} if entry.damaged else {}),
        }
        for name, entry in sorted(entries.items())
    }
    return (json.dumps({"version": _VERSION, "files": files}, indent=1) + "\n").encode()


def _entry(value: object, name: str, file: str) -> Entry:
    fields = value if isinstance(value, dict) else {}
    numbers = [fields.get(key) for key in ("size_bytes", "mtime_ns", "inode")]
    sha256, hashed_at = fields.get("sha256"), fields.get("hashed_at")
    fine = (
        all(isinstance(number, int) and not isinstance(number, bool) and number >= 0 for number in numbers)
        and isinstance(sha256, str)
        and len(sha256) == 64
        and _HEX.issuperset(sha256)
        and isinstance(hashed_at, (int, float))
    )
    if not fine:
        raise ValueError(f"{file}: the entry of {name} is {value!r}, which no manifest has; delete {file}")
    return Entry(
        Stat(*t.cast("list[int]", numbers)),
        t.cast("str", sha256),
        float(t.cast("float", hashed_at)),
        fields.get("damaged") is True,
    )


def parse_manifest(text: bytes, file: str) -> dict[str, Entry]:
    """The entries in *text*, the content of *file*."""
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not JSON ({error}); delete it, it is made again") from error
    files = whole.get("files") if isinstance(whole, dict) else None
    if not isinstance(files, dict) or whole.get("version") != _VERSION:
        raise ValueError(f"{file} is no manifest of version {_VERSION}; delete it, it is made again")
    return {check_name(name, file): _entry(value, name, file) for name, value in files.items()}


def read_manifest(folder: str) -> dict[str, Entry]:
    """The entries of a folder's manifest; none when there is none yet."""
    path = os.path.join(folder, MANIFEST_FILE)
    try:
        with open(path, "rb") as stream:
            return parse_manifest(stream.read(), path)
    except FileNotFoundError:
        return {}


def write_manifest(folder: str, entries: t.Mapping[str, Entry]) -> None:
    """Write a folder's manifest so that nobody ever reads half of it."""
    path = os.path.join(folder, MANIFEST_FILE)
    partial = f"{path}.{os.getpid()}"
    with open(partial, "wb") as stream:
        stream.write(manifest_text(entries))
        stream.flush()
        os.fchmod(stream.fileno(), 0o644)
        os.fsync(stream.fileno())
    os.replace(partial, path)


def hash_file(path: str, on_bytes: t.Callable[[int], None] = lambda count: None) -> Entry:
    """Hash one file. A file that changes meanwhile has no hash."""
    before = stat_of(path)
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(_BUFFER_BYTES))
    with open(path, "rb", buffering=0) as stream:
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        while True:
            count = stream.readinto(buffer)
            if not count:
                break
            digest.update(buffer[:count])
            on_bytes(count)
    if stat_of(path) != before:
        raise ValueError(f"{path} changed while it was hashed; wait until whoever writes it is done, then run again")
    return Entry(before, digest.hexdigest(), time.time())


def hash_files(
    folder: str,
    names: t.Sequence[str],
    workers: int,
    on_entry: t.Callable[[str, Entry], None] = lambda name, entry: None,
    on_bytes: t.Callable[[str, int], None] = lambda name, count: None,
) -> dict[str, Entry]:
    """Hash files in parallel, the largest first; *on_bytes* is told of each part of a file, by several threads.

    hashlib lets the other threads run while it works, so threads are enough.
    """
    waiting = sorted(names, key=lambda name: os.path.getsize(os.path.join(folder, name)))
    done: dict[str, Entry] = {}
    errors: list[Exception] = []
    lock = threading.Lock()

    def work() -> None:
        while True:
            with lock:
                if not waiting or errors:
                    return
                name = waiting.pop()
            try:
                entry = hash_file(os.path.join(folder, name), partial(on_bytes, name))
            except (OSError, ValueError) as error:
                with lock:
                    errors.append(error)
                return
            with lock:
                done[name] = entry
                on_entry(name, entry)

    threads = [threading.Thread(target=work, daemon=True) for _number in range(min(workers, len(names)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return done


def rehashed(known: t.Mapping[str, Entry], name: str, entry: Entry) -> Entry:
    """The entry to keep after *name* was hashed again: another hash for the same size, time and inode is damage."""
    before = known.get(name)
    if before is not None and before.stat == entry.stat and before.sha256 != entry.sha256:
        return replace(before, hashed_at=entry.hashed_at, damaged=True)
    return entry
