# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A runtime's tree as an archive: what is built is packed once, and a node that hands its tree on packs it anew."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path
from typing import BinaryIO

from ansible_collections.sparkrig.serving.plugins.module_utils._runtime import Manifest, manifest_to_json
from ansible_collections.sparkrig.serving.plugins.module_utils._runtime_layout import MANIFEST_NAME

__all__ = ["FILE_MODE", "pack"]

FILE_MODE = 0o444
_CHUNK_BYTES = 1 << 20


class _HashingWriter(io.RawIOBase):
    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self.total = hashlib.sha256()
        self.bytes = 0

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self.total.update(data)
        self.bytes += len(data)
        return self._out.write(data)


def _tar_info(path: str, mode: int, size: int = 0, link: str | None = None) -> tarfile.TarInfo:
    info = tarfile.TarInfo(path)
    info.mode, info.size = mode, size
    if link is not None:
        info.type, info.linkname, info.mode = tarfile.SYMTYPE, link, 0o777
    return info


def pack(root: Path, manifest: Manifest, out: BinaryIO) -> tuple[str, int]:
    """Write the archive: the manifest first, so that a node can check each file as it arrives."""
    writer = _HashingWriter(out)
    text = manifest_to_json(manifest)
    with tarfile.open(fileobj=writer, mode="w|", format=tarfile.GNU_FORMAT, bufsize=_CHUNK_BYTES) as tar:
        tar.addfile(_tar_info(MANIFEST_NAME, FILE_MODE, len(text)), io.BytesIO(text))
        for entry in manifest.entries:
            if entry.link is not None:
                tar.addfile(_tar_info(entry.path, entry.mode, link=entry.link))
                continue
            with (root / entry.path).open("rb") as handle:
                tar.addfile(_tar_info(entry.path, entry.mode, entry.size), handle)
    return writer.total.hexdigest(), writer.bytes
