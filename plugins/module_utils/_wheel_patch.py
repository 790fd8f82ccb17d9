# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An ordered series of unified diffs applied to a wheel, and the wheel repacked under a name that says so.

Members that no patch touches are copied as they are stored, compressed bytes and all: repacking vLLM's half a
gigabyte takes a second, and the same wheel and series give the same bytes everywhere.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ansible_collections.sparkrig.serving.plugins.module_utils._unified_diff import (
    PatchError,
    apply_patch,
    is_applied,
    parse_diff,
)

__all__ = [
    "Patch",
    "PatchedWheel",
    "SeriesResult",
    "WheelName",
    "apply_series",
    "local_version",
    "parse_wheel_name",
    "patch_wheel",
    "series_digest",
]

_WHEEL = re.compile(
    r"^(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._]*[A-Za-z0-9])?)-(?P<version>[A-Za-z0-9._!+]+)"
    r"(?:-(?P<build>\d[A-Za-z0-9._]*))?"
    r"-(?P<python>[A-Za-z0-9._]+)-(?P<abi>[A-Za-z0-9._]+)-(?P<platform>[A-Za-z0-9._]+)\.whl$"
)
_LOCAL = re.compile(r"^[a-z0-9]+(?:\.[a-z0-9]+)*$")
_SIGNATURES = ("RECORD.jws", "RECORD.p7s")
# The time that a rewritten member gets (1980-01-01, the oldest a zip file knows): no clock in the bytes.
_DOS_TIME, _DOS_DATE = 0, 0x21
_STORED, _DEFLATED = 0, 8
_ENCRYPTED = 0x1
_UTF8_NAMES = 0x800
_ZIP32_BYTES = 0xFFFFFFFF
_ZIP32_MEMBERS = 0xFFFF
_DIGEST_LENGTH = 8


@dataclass(frozen=True)
class Patch:
    """One diff of a series: the name that messages use, and its bytes."""

    name: str
    text: bytes


@dataclass(frozen=True)
class WheelName:
    """The parts of a wheel's file name."""

    name: str
    version: str
    build: str | None
    python: str
    abi: str
    platform: str

    @property
    def file_name(self) -> str:
        build = f"-{self.build}" if self.build else ""
        return f"{self.name}-{self.version}{build}-{self.python}-{self.abi}-{self.platform}.whl"


@dataclass(frozen=True)
class SeriesResult:
    """What a series makes of a tree: new contents (None: deleted), and which patches were there already."""

    contents: dict[str, bytes | None]
    applied: tuple[str, ...]
    upstreamed: tuple[str, ...]


@dataclass(frozen=True)
class PatchedWheel:
    """A repacked wheel and what was done to it."""

    path: str
    name: str
    version: str
    sha256: str
    applied: tuple[str, ...]
    upstreamed: tuple[str, ...]
    files: tuple[str, ...]
    signatures_removed: tuple[str, ...]


@dataclass(frozen=True)
class _Member:
    name: str
    # Where the stored bytes are: an offset into the source wheel, or the new bytes themselves.
    offset: int
    data: bytes | None
    method: int
    crc: int
    stored_size: int
    size: int
    time: int
    date: int
    external_attr: int


def parse_wheel_name(file_name: str) -> WheelName:
    """Split a wheel's file name; ValueError when it is none."""
    match = _WHEEL.match(file_name)
    if match is None:
        raise ValueError(f"{file_name!r} is not a wheel's file name (NAME-VERSION-PYTHON-ABI-PLATFORM.whl)")
    return WheelName(match["name"], match["version"], match["build"], match["python"], match["abi"], match["platform"])


def series_digest(patches: Sequence[Patch]) -> str:
    """Eight hexadecimal digits that name a series: its order, names and bytes."""
    total = hashlib.sha256()
    for patch in patches:
        total.update(f"{patch.name}\0{len(patch.text)}\0".encode())
        total.update(patch.text)
    return total.hexdigest()[:_DIGEST_LENGTH]


def local_version(version: str, prefix: str, patches: Sequence[Patch]) -> str:
    """``version`` with a local part that says what was added: its own, then ``prefix``, then the series."""
    public, _plus, own = version.partition("+")
    parts = [part for part in (own, prefix) if part]
    if patches:
        parts.append(f"sparkrig.{series_digest(patches)}")
    local = ".".join(parts)
    if local and not _LOCAL.match(local):
        raise ValueError(f"{local!r} cannot be a local version: it needs lower-case letters and digits between dots")
    return f"{public}+{local}" if local else public


def apply_series(read: Callable[[str], bytes | None], patches: Sequence[Patch], moved: bool = False) -> SeriesResult:
    """Apply ``patches`` in their order to files that ``read`` gives; nothing is written.

    PatchError names patch, file and hunk. A patch of which every file is already as it would leave it is reported
    as upstreamed, not applied. ``moved`` is for series whose line numbers are those of another version.
    """
    contents: dict[str, bytes | None] = {}
    applied: list[str] = []
    upstreamed: list[str] = []
    names = [patch.name for patch in patches]
    for name in names:
        if names.count(name) > 1:
            raise PatchError(f"patch {name} is in the series twice")
    for patch in patches:
        try:
            parts = parse_diff(patch.text)
        except PatchError as exc:
            raise PatchError(f"patch {patch.name}: {exc}") from exc
        current = {part.path: contents[part.path] if part.path in contents else read(part.path) for part in parts}
        changed: dict[str, bytes | None] = {}
        try:
            for part in parts:
                before = changed[part.path] if part.path in changed else current[part.path]
                try:
                    changed[part.path] = apply_patch(part, before, moved)
                except PatchError as exc:
                    raise PatchError(f"patch {patch.name}: file {part.path}: {exc}") from exc
        except PatchError:
            if all(is_applied(part, current[part.path]) for part in parts):
                upstreamed.append(patch.name)
                continue
            raise
        contents.update(changed)
        applied.append(patch.name)
    return SeriesResult(contents, tuple(applied), tuple(upstreamed))


def _record_hash(data: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
    return f"sha256={digest}"


def _stored_offset(handle: BinaryIO, info: zipfile.ZipInfo) -> int:
    handle.seek(info.header_offset)
    header = handle.read(30)
    if len(header) != 30 or header[:4] != b"PK\x03\x04":
        raise ValueError(f"the member {info.filename!r} has no header where the wheel's directory says")
    name_length, extra_length = struct.unpack("<HH", header[26:30])
    return info.header_offset + 30 + int(name_length) + int(extra_length)


def _copied(handle: BinaryIO, info: zipfile.ZipInfo, name: str) -> _Member:
    if info.flag_bits & _ENCRYPTED or info.compress_type not in (_STORED, _DEFLATED):
        raise ValueError(f"the member {info.filename!r} is encrypted or compressed in a way that wheels do not use")
    year, month, day, hour, minute, second = info.date_time
    return _Member(
        name=name,
        offset=_stored_offset(handle, info),
        data=None,
        method=info.compress_type,
        crc=info.CRC,
        stored_size=info.compress_size,
        size=info.file_size,
        time=hour << 11 | minute << 5 | second // 2,
        date=(year - 1980) << 9 | month << 5 | day,
        external_attr=info.external_attr,
    )


def _written(name: str, data: bytes, external_attr: int) -> _Member:
    """A member with new content, stored uncompressed: zlib's output differs between its versions."""
    return _Member(name, 0, data, _STORED, zlib.crc32(data), len(data), len(data), _DOS_TIME, _DOS_DATE, external_attr)


def _write_zip(source: BinaryIO, members: Sequence[_Member], out: BinaryIO) -> None:
    if len(members) >= _ZIP32_MEMBERS:
        raise ValueError(f"the wheel has {len(members)} members, a plain zip file holds {_ZIP32_MEMBERS - 1}")
    directory = bytearray()
    for member in members:
        start = out.tell()
        if max(start, member.size, member.stored_size) + member.stored_size >= _ZIP32_BYTES:
            raise ValueError(f"the wheel is larger than the 4 GiB of a plain zip file at {member.name!r}")
        name = member.name.encode()
        common = struct.pack(
            "<HHHHHIIIHH",
            20,
            _UTF8_NAMES,
            member.method,
            member.time,
            member.date,
            member.crc,
            member.stored_size,
            member.size,
            len(name),
            0,
        )
        out.write(b"PK\x03\x04" + common + name)
        if member.data is not None:
            out.write(member.data)
        else:
            source.seek(member.offset)
            left = member.stored_size
            while left:
                chunk = source.read(min(left, 1 << 20))
                if not chunk:
                    raise ValueError(f"the wheel ends inside {member.name!r}")
                out.write(chunk)
                left -= len(chunk)
        # Made by: Unix, so that the upper half of external_attr is a file mode.
        directory += b"PK\x01\x02" + struct.pack("<H", 3 << 8 | 20) + common
        directory += struct.pack("<HHHII", 0, 0, 0, member.external_attr, start) + name
    at = out.tell()
    if at + len(directory) >= _ZIP32_BYTES:
        raise ValueError("the wheel is larger than the 4 GiB of a plain zip file")
    out.write(directory)
    out.write(struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, len(members), len(members), len(directory), at, 0))


def _dist_info(names: Sequence[str], wheel: str) -> str:
    found = sorted({name.split("/", 1)[0] for name in names if re.match(r"[^/]+\.dist-info/", name)})
    if len(found) != 1:
        raise ValueError(f"{wheel} has {len(found)} .dist-info folders ({', '.join(found) or 'none'}), a wheel has one")
    return found[0]


def _new_metadata(data: bytes, name: str, version: str) -> bytes:
    head, separator, body = data.partition(b"\n\n")
    lines = []
    seen = set()
    for line in head.split(b"\n"):
        key = line.split(b":", 1)[0]
        if key in (b"Name", b"Version") and key not in seen:
            seen.add(key)
            value = name if key == b"Name" else version
            line = key + b": " + value.encode() + (b"\r" if line.endswith(b"\r") else b"")
        lines.append(line)
    if len(seen) != 2:
        raise ValueError("the wheel's METADATA lacks Name or Version")
    return b"\n".join(lines) + separator + body


def _new_version_file(data: bytes, path: str, old: str, new: str) -> bytes:
    pattern = re.compile(
        rb"^((?:__version__\s*=\s*)?(?:__version__|version)\s*=\s*)(['\"])" + re.escape(old.encode()) + rb"\2\s*$",
        re.MULTILINE,
    )
    changed, count = pattern.subn(lambda match: match[1] + match[2] + new.encode() + match[2], data)
    if count != 1:
        raise ValueError(f"{path} says {count} times that the version is {old}, expected once")
    return changed


def patch_wheel(
    source: Path,
    destination: Path,
    patches: Sequence[Patch],
    distribution: str | None = None,
    prefix: str = "",
    version_file: str | None = None,
    moved: bool = False,
) -> PatchedWheel:
    """Write ``source`` with ``patches`` applied into the folder ``destination`` and say what was done.

    Rewritten: the patched files, RECORD, the .dist-info folder's name, METADATA's Name and Version and, if given,
    the line of ``version_file`` that holds the version. Signatures of RECORD no longer hold and are left out.
    Nothing is written when a hunk does not apply. The file appears under its final name only when it is complete.
    """
    old = parse_wheel_name(source.name)
    name = re.sub(r"[-_.]+", "_", distribution) if distribution else old.name
    version = local_version(old.version, prefix, patches)
    new = WheelName(name, version, old.build, old.python, old.abi, old.platform)
    try:
        archive = zipfile.ZipFile(source)
    except zipfile.BadZipFile as exc:
        raise ValueError(f"{source} is damaged: {exc}") from exc
    with archive, source.open("rb") as handle:
        infos = {info.filename: info for info in archive.infolist()}
        old_info = _dist_info(list(infos), source.name)
        new_info, old_data, new_data = (
            f"{name}-{version}.dist-info",
            f"{old_info[: -len('.dist-info')]}.data",
            f"{name}-{version}.data",
        )
        for needed in ("METADATA", "RECORD"):
            if f"{old_info}/{needed}" not in infos:
                raise ValueError(f"{source.name} has no {old_info}/{needed}: it is not a wheel")

        def read(path: str) -> bytes | None:
            if path not in infos:
                return None
            try:
                return archive.read(path)
            except (zipfile.BadZipFile, zlib.error) as exc:
                raise ValueError(f"{source} is damaged at {path}: {exc}") from exc

        result = apply_series(read, patches, moved)
        for path in result.contents:
            if path.startswith(f"{old_info}/"):
                raise PatchError(f"the series changes {path}: a wheel's own metadata is not for patches")
        contents = dict(result.contents)
        if version_file is not None and version != old.version:
            data = contents[version_file] if version_file in contents else read(version_file)
            if data is None:
                raise ValueError(f"{source.name} has no {version_file} to write the version to")
            contents[version_file] = _new_version_file(data, version_file, old.version, version)
        metadata = f"{old_info}/METADATA"
        contents[metadata] = _new_metadata(read(metadata) or b"", distribution or old.name, version)

        def renamed(path: str) -> str:
            for before, after in ((old_info, new_info), (old_data, new_data)):
                if path.startswith(f"{before}/"):
                    return after + path[len(before) :]
            return path

        signatures = tuple(f"{old_info}/{item}" for item in _SIGNATURES if f"{old_info}/{item}" in infos)
        record_path = f"{old_info}/RECORD"
        gone = {*signatures, record_path, *(path for path, data in contents.items() if data is None)}
        rows = csv.reader(io.StringIO((read(record_path) or b"").decode()))
        kept = [row for row in rows if row and row[0] not in gone and row[0] not in contents]
        # External attributes of a regular file, 0644, for files that the series creates.
        plain = 0o100644 << 16
        members: list[_Member] = []
        for info in infos.values():
            if info.filename in gone or info.is_dir():
                continue
            data = contents.get(info.filename)
            target = renamed(info.filename)
            if data is not None:
                members.append(_written(target, data, info.external_attr))
            else:
                members.append(_copied(handle, info, target))
        created = sorted(path for path, data in contents.items() if data is not None and path not in infos)
        members += [_written(path, contents[path] or b"", plain) for path in created]
        table = [[renamed(row[0]), *row[1:]] for row in kept]
        table += [
            [renamed(path), _record_hash(data), str(len(data))] for path, data in contents.items() if data is not None
        ]
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([*sorted(table), [f"{new_info}/RECORD", "", ""]])
        members.append(_written(f"{new_info}/RECORD", text.getvalue().encode(), plain))

        destination.mkdir(parents=True, exist_ok=True)
        target_path = destination / new.file_name
        partial = destination / f".{new.file_name}.{os.getpid()}.partial"
        try:
            with partial.open("wb") as out:
                _write_zip(handle, members, out)
            digest = hashlib.sha256()
            with partial.open("rb") as done:
                for chunk in iter(lambda: done.read(1 << 20), b""):
                    digest.update(chunk)
            partial.replace(target_path)
        finally:
            partial.unlink(missing_ok=True)
    return PatchedWheel(
        path=str(target_path),
        name=distribution or old.name,
        version=version,
        sha256=digest.hexdigest(),
        applied=result.applied,
        upstreamed=result.upstreamed,
        files=tuple(sorted(result.contents)),
        signatures_removed=signatures,
    )
