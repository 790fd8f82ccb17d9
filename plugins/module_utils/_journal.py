# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The undo journal of one role on one node.

A journal is a small JSON file that a module writes before it changes anything, and from which it brings the
node back. It is sealed with a digest and names the machine it belongs to, because undoing from somebody
else's journal, or from one that was edited, would change things that nobody of us ever touched.

Private to this collection: import it from nowhere else.
"""

from __future__ import annotations

import hashlib
import json
import os
import typing as t

VERSION = 1


def _digest(kind: str, machine_id: str, content: t.Mapping[str, t.Any]) -> str:
    body = json.dumps([VERSION, kind, machine_id, content], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(body.encode("utf-8")).hexdigest()


def encode(kind: str, machine_id: str, content: t.Mapping[str, t.Any]) -> str:
    """The text of a journal."""
    record = {
        "version": VERSION,
        "kind": kind,
        "machine_id": machine_id,
        "content": content,
        "sha256": _digest(kind, machine_id, content),
    }
    return json.dumps(record, indent=2, sort_keys=True) + "\n"


def decode(text: str, kind: str, machine_id: str, path: str) -> dict[str, t.Any]:
    """The content of a journal, or ValueError when it is damaged, edited, or not of this node."""
    advice = "nothing was changed. Move the file away to start anew (what it recorded is then never undone)"
    try:
        record = json.loads(text)
    except ValueError:
        raise ValueError(f"the journal {path} is not JSON: {advice}.") from None
    if not isinstance(record, dict) or not isinstance(record.get("content"), dict):
        raise ValueError(f"the journal {path} has no content: {advice}.")
    if record.get("version") != VERSION or record.get("kind") != kind:
        raise ValueError(
            f"the journal {path} is of kind {record.get('kind')!r} version {record.get('version')!r}, "
            f"needed is {kind!r} version {VERSION}: {advice}."
        )
    if record.get("machine_id") != machine_id:
        raise ValueError(
            f"the journal {path} was written on machine {record.get('machine_id')!r}, this is {machine_id!r}: {advice}."
        )
    content: dict[str, t.Any] = record["content"]
    if record.get("sha256") != _digest(kind, machine_id, content):
        raise ValueError(f"the journal {path} was edited, its digest does not fit: {advice}.")
    return content


def machine_id(path: str = "/etc/machine-id") -> str:
    """What tells this machine from others; empty where systemd never wrote one."""
    try:
        with open(path, encoding="ascii") as stream:
            return stream.read().strip()
    except FileNotFoundError:
        return ""


def load(path: str, kind: str) -> dict[str, t.Any] | None:
    """The content of this node's journal at path, or None where there is none."""
    try:
        with open(path, encoding="utf-8") as stream:
            text = stream.read()
    except FileNotFoundError:
        return None
    return decode(text, kind, machine_id(), path)


def write_file(path: str, text: str, mode: int) -> None:
    """Write a whole file so that a crash leaves the old one or the new one, never half of one."""
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        os.makedirs(folder, mode=0o755)
    scratch = f"{path}.sparkrig-new"
    handle = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, mode)
    with os.fdopen(handle, "w", encoding="utf-8") as stream:
        os.fchmod(handle, mode)
        stream.write(text)
        stream.flush()
        os.fsync(handle)
    os.replace(scratch, path)


def store(path: str, kind: str, content: t.Mapping[str, t.Any]) -> None:
    """Write the journal of this node."""
    write_file(path, encode(kind, machine_id(), content), 0o600)


def remove(path: str) -> None:
    """Remove a journal that has nothing left to undo, and the folders that it leaves empty."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return
    folder = os.path.dirname(path)
    for _level in range(2):
        if os.path.basename(folder) not in ("journal", "sparkrig") or os.listdir(folder):
            return
        os.rmdir(folder)
        folder = os.path.dirname(folder)
