# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a build host has: archives and locks that were made before. Building is in ``_runtime_build``.

The controller looks here by itself, so this imports little: Ansible compiles what a plugin imports in every run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.sparkrig.serving.plugins.module_utils._runtime import (
    Description,
    Target,
    description_from,
    digest_of,
    manifest_from_json,
    manifest_look,
    minor_version,
)
from ansible_collections.sparkrig.serving.plugins.module_utils._runtime_layout import file_sha256

__all__ = [
    "LOCK_NAME",
    "Archive",
    "archive_paths",
    "at_hand",
    "find_archive",
    "known_lock",
    "lock_path",
    "write_info",
]

# A wheelhouse's own lock.
LOCK_NAME = "lock.txt"
# The options of module runtime_archive that are texts, but for export_dir: what is exported is the module's work.
_TEXTS = ("cache_dir", "lock", "lock_excludes", "lock_inputs", "python_version", "wheelhouse")


@dataclass(frozen=True)
class Archive:
    """A runtime in the cache, ready to be shipped."""

    digest: str
    path: str
    archive_sha256: str
    archive_bytes: int
    tree_sha256: str
    look_sha256: str
    tree_bytes: int
    files: int
    target: dict[str, str]
    versions: dict[str, str]
    applied: tuple[str, ...]
    upstreamed: tuple[str, ...]
    compiled: bool
    unused_slim: tuple[str, ...]
    seconds: dict[str, float] = field(default_factory=dict)


def archive_paths(cache: Path, digest: str) -> tuple[Path, Path]:
    """The archive and what describes it."""
    return cache / f"{digest}.tar", cache / f"{digest}.json"


def find_archive(cache: Path, digest: str) -> Archive | None:
    """The archive of ``digest`` if it is there and is what its description says.

    Its bytes are hashed only when size or time of change differ from the last look: a run that changes nothing
    must not read a gigabyte.
    """
    path, info_path = archive_paths(cache, digest)
    try:
        raw = json.loads(info_path.read_text())
        seen = path.stat()
        stamp = [seen.st_size, seen.st_mtime_ns]
        known = raw["archive"]
        archive = Archive(
            **{
                **known,
                # Beside the rest, where a controller that knows nothing of it overlooks it.
                "look_sha256": raw["look_sha256"] if "look_sha256" in raw else _look_in(path),
                "path": str(path),
                "applied": tuple(known["applied"]),
                "upstreamed": tuple(known["upstreamed"]),
                "unused_slim": tuple(known["unused_slim"]),
            }
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if archive.digest != digest or archive.archive_bytes != seen.st_size:
        return None
    if raw.get("stamp") != stamp and file_sha256(path) != archive.archive_sha256:
        return None
    if raw.get("stamp") != stamp or "look_sha256" not in raw:
        write_info(info_path, archive, stamp)
    return archive


def _look_in(archive: Path) -> str:
    """What a look at this archive's tree must hash to; its manifest comes first in it."""
    import tarfile

    try:
        with tarfile.open(archive, "r:") as tar:
            first = tar.next()
            handle = tar.extractfile(first) if first is not None else None
            return manifest_look(manifest_from_json(handle.read() if handle is not None else b""))
    except tarfile.TarError as exc:
        raise ValueError(f"{archive} is no archive: {exc}") from exc


def write_info(path: Path, archive: Archive, stamp: Sequence[int]) -> None:
    """Describe an archive, with its size and time of change as they were when its bytes were hashed."""
    known = {**asdict(archive), "path": Path(archive.path).name}
    look = known.pop("look_sha256")
    content = {"archive": known, "look_sha256": look, "stamp": list(stamp)}
    partial = path.with_suffix(".json.partial")
    partial.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    partial.replace(path)


def lock_path(cache: Path, description: Description, target: Target, inputs: str, excludes: str) -> Path:
    """Where the lock is that was made here from these inputs."""
    from ansible_collections.sparkrig.serving.plugins.module_utils._runtime_lock import lock_id

    commits = [f"{source.name} {source.commit}" for source in description.git_sources]
    number = lock_id(inputs, excludes, commits, target)
    return cache / "locks" / f"{description.lock}.py{target.python}.{target.machine}-{number}.txt"


def known_lock(
    cache: Path,
    description: Description,
    target: Target,
    given: str,
    inputs: str,
    excludes: str,
    wheelhouse: Path | None,
) -> str:
    """The lock that is given, carried, or was made before; empty when one has to be made."""
    if given:
        return given
    if wheelhouse is not None:
        own = wheelhouse / LOCK_NAME
        if own.is_file():
            return own.read_text()
        raise ValueError(f"the wheelhouse {wheelhouse} has no {LOCK_NAME}: export it again")
    own = lock_path(cache, description, target, inputs, excludes)
    if own.is_file():
        return own.read_text()
    if not inputs.strip():
        raise ValueError("there is neither a lock nor the requirements to make one from")
    return ""


def at_hand(options: Mapping[str, Any], machine: str) -> Archive | None:
    """The archive that a build host with this machine need not build; None when the module has to see to it.

    The options are those of module runtime_archive; whatever is wrong with them is left for the module to say.
    """
    texts = {name: options.get(name) or "" for name in _TEXTS}
    if options.keys() - {*_TEXTS, "description", "patches"} or not all(
        isinstance(text, str) for text in texts.values()
    ):
        return None
    folders = {name: os.path.expanduser(os.path.expandvars(texts[name])) for name in ("cache_dir", "wheelhouse")}
    # A relative one is meant from where a module runs.
    if not folders["cache_dir"] or any(folder and not os.path.isabs(folder) for folder in folders.values()):
        return None
    cache, wheelhouse = Path(folders["cache_dir"]), folders["wheelhouse"]
    try:
        description = description_from(options.get("description"))
        python = description.python or minor_version(texts["python_version"])
        target = Target(python, description.machine or machine, description.glibc)
        lock = known_lock(
            cache,
            description,
            target,
            texts["lock"],
            texts["lock_inputs"],
            texts["lock_excludes"],
            Path(wheelhouse) if wheelhouse else None,
        )
        given = options.get("patches") or {}
        patches = {name: given[name].encode() for name in description.patch_files}
        return find_archive(cache, digest_of(description, target, lock, patches)) if lock else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
