#!/usr/bin/python
# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hash the files of model folders once, and know them again; the action of the same name shows the progress."""

from __future__ import annotations

DOCUMENTATION = r"""
module: checkpoint_manifest
short_description: The SHA-256 of every file of a checkpoint, made once and verified on every run
version_added: 0.1.0
author: The sparkrig engineers (@sparkrig)
description:
  - Keeps a manifest beside the files (C(.sparkrig-manifest.json)) with the SHA-256 of each, made in parallel.
  - On every run a file is known again by its size, the time of its last change and its inode. What is new or was
    changed is hashed. With O(full) every file is hashed again, which shows a byte that flipped without a trace.
  - The work is done by a process of its own. Each call waits for it for O(budget_s) seconds and tells how far it is,
    inside a large file as well. What is done is kept after each file, so an interrupted run is continued by the next
    one. The process ends when nobody has asked for a minute.
  - In check mode it only looks, which takes milliseconds.
extends_documentation_fragment:
  - sparkrig.serving._attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: full
options:
  folders:
    description: The model folders. One that does not exist is reported as such.
    type: list
    elements: path
    required: true
  state:
    description: V(absent) removes the manifests and what an interrupted copy left. The files of the checkpoint stay.
    type: str
    choices: [present, absent]
    default: present
  remove:
    description: Files below the folders that are no part of the checkpoint and are removed. Nothing else is done then.
    type: list
    elements: path
    default: []
  full:
    description: Hash every file again, also those that are known.
    type: bool
    default: false
  full_since:
    description: What was hashed after this time (seconds since 1970, on the node) counts as done. The action sets it.
    type: float
    default: 0
  budget_s:
    description: How long one call waits. The action calls again until everything is hashed.
    type: int
    default: 10
  workers:
    description: How many files are hashed at the same time; 0 is one for each processor.
    type: int
    default: 0
seealso:
  - module: sparkrig.serving.checkpoint_spread
"""

EXAMPLES = r"""
---
- name: Know every byte of the checkpoint
  sparkrig.serving.checkpoint_manifest:
    folders: [/srv/models/lab-base, /srv/models/lab-mtp]

- name: Read every byte of it again
  sparkrig.serving.checkpoint_manifest:
    folders: [/srv/models/lab-base]
    full: true
"""

RETURN = r"""
actions:
  description: What was done with each file, one sentence each; a single one when all files are known.
  returned: always
  type: list
  elements: str
  sample: ["/srv/models/lab-base: as it was hashed, 8 of 8 files"]
done:
  description: Whether every file of every folder has its hash.
  returned: always
  type: bool
folders:
  description: Each folder, in the order of O(folders).
  returned: O(state=present)
  type: list
  elements: dict
  contains:
    path:
      description: The folder.
      type: str
    exists:
      description: Whether it is there.
      type: bool
    files:
      description: By name, C(size_bytes) and C(sha256); the latter is null as long as it is not known.
      type: dict
    damaged:
      description: Files whose content has changed while size, time and inode are the same, with the SHA-256 they had.
      type: dict
    partial_bytes:
      description: By name, how much of a file an interrupted copy has left.
      type: dict
    digest:
      description: Of names, sizes and hashes; equal on two nodes when every byte is. Null while a hash is missing.
      type: str
    device:
      description: The file system, as a number.
      type: int
    free_bytes:
      description: What is free on it.
      type: int
now:
  description: The node's own time.
  returned: always
  type: float
hashed_bytes:
  description: How much is done, with the parts of files that are under way.
  returned: O(state=present)
  type: int
total_bytes:
  description: How much there is.
  returned: O(state=present)
  type: int
"""

import os
import time
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.sparkrig.serving.plugins.module_utils._checkpoint_hashing import STATE_FILE, hash_apart
from ansible_collections.sparkrig.serving.plugins.module_utils._manifest import (
    MANIFEST_FILE,
    Comparison,
    Entry,
    Stat,
    compare,
    hash_files,
    look,
    partials,
    read_manifest,
    rehashed,
    scan,
    write_manifest,
)


class Folder:
    """One model folder beside its manifest."""

    def __init__(self, path: str, full_since: float | None) -> None:
        self.path = path
        self.seen: dict[str, Stat] = scan(path)
        self.entries: dict[str, Entry] = read_manifest(path) if os.path.isdir(path) else {}
        self.full_since = full_since
        self.under_way_bytes = 0

    @property
    def state(self) -> Comparison:
        return compare(self.seen, self.entries)

    def to_hash(self) -> list[str]:
        """The files without a hash that holds, and with *full_since* those that were hashed before that."""
        state = self.state
        since = self.full_since
        if since is None:
            return list(state.unknown)
        old = [name for name in (*state.known, *state.damaged) if self.entries[name].hashed_at < since]
        return [*state.unknown, *old]

    def hash(self, workers: int, wait_s: float) -> list[str]:
        """Hash what has to be, as far as the time goes; a sentence for each file that is done."""
        before, names, gone = dict(self.entries), self.to_hash(), self.state.gone
        for name in gone:
            del self.entries[name]
        if gone:
            write_manifest(self.path, self.entries)
        if names:
            self.under_way_bytes = hash_apart(
                self.path, lambda tell: self._hash_all(names, workers, tell), wait_s
            ).bytes_under_way
            self.entries = read_manifest(self.path)
        done = sorted(name for name, entry in self.entries.items() if entry != before.get(name))
        return [self.sentence(name, before.get(name)) for name in done] + [
            f"{self.path}/{name}: gone, and forgotten" for name in gone
        ]

    def _hash_all(self, names: t.Sequence[str], workers: int, tell: t.Callable[[int], None]) -> None:
        """The work itself, to its end; each file is in the manifest as soon as it is done."""
        before = dict(self.entries)
        under_way: dict[str, int] = {}

        def move(name: str, count: int) -> None:
            under_way[name] = under_way.get(name, 0) + count
            tell(sum(tuple(under_way.values())))

        def keep(name: str, entry: Entry) -> None:
            self.entries[name] = rehashed(before, name, entry)
            write_manifest(self.path, self.entries)
            under_way.pop(name, None)

        hash_files(self.path, names, workers, keep, move)

    def sentence(self, name: str, before: Entry | None) -> str:
        """What hashing one file has shown."""
        now = self.entries[name]
        if now.damaged:
            return f"{self.path}/{name}: damaged, its content changed while size, time and inode stayed the same"
        if before is None:
            return f"{self.path}/{name}: hashed"
        same = before.sha256 == now.sha256
        return f"{self.path}/{name}: hashed again, {'the same' if same else 'another content than before'}"

    def as_dict(self) -> dict[str, t.Any]:
        """The folder for the module's result."""
        return look(self.path, self.seen, self.entries)


def run_present(params: t.Mapping[str, t.Any], check: bool) -> dict[str, t.Any]:
    """Look, hash what is not known, report."""
    now = time.time()
    since = (params["full_since"] or now) if params["full"] else None
    folders = [Folder(path, since) for path in params["folders"]]
    stop_at = time.monotonic() + params["budget_s"]
    workers = params["workers"] or len(os.sched_getaffinity(0))
    hashed: list[str] = []
    for folder in folders:
        if folder.seen and not check:
            hashed += folder.hash(workers, stop_at - time.monotonic())
    waiting = {folder.path: folder.to_hash() for folder in folders}
    total = sum(seen.size_bytes for folder in folders for seen in folder.seen.values())
    left = sum(folder.seen[name].size_bytes for folder in folders for name in waiting[folder.path])
    would = any(waiting.values()) or any(folder.state.gone for folder in folders)
    actions = list(hashed)
    for folder in folders:
        if not folder.seen:
            actions.append(f"{folder.path}: not there")
        elif waiting[folder.path]:
            actions.append(f"{folder.path}: {len(waiting[folder.path])} of {len(folder.seen)} files to be hashed")
        else:
            actions.append(f"{folder.path}: as it was hashed, {len(folder.seen)} of {len(folder.seen)} files")
    return {
        "changed": would if check else bool(hashed),
        "actions": actions,
        "done": not any(waiting.values()),
        "folders": [folder.as_dict() for folder in folders],
        "now": now,
        "hashed_bytes": total - left + sum(folder.under_way_bytes for folder in folders),
        "total_bytes": total,
    }


def run_absent(params: t.Mapping[str, t.Any], check: bool) -> dict[str, t.Any]:
    """Take away the manifests and what an interrupted copy left."""
    gone = []
    for folder in params["folders"]:
        own = (os.path.join(folder, name) for name in (MANIFEST_FILE, STATE_FILE))
        gone += [*filter(os.path.lexists, own), *sorted(partials(folder).values())]
    if not check:
        for path in gone:
            os.unlink(path)
    actions = [f"{path}: removed" for path in gone] or ["there is no manifest to remove"]
    return {"changed": bool(gone), "actions": actions, "done": True, "now": time.time()}


def run_remove(params: t.Mapping[str, t.Any], check: bool) -> dict[str, t.Any]:
    """Remove the files that the caller names, none of them outside of the folders."""
    for path in params["remove"]:
        where = os.path.realpath(os.path.dirname(path))
        roots = map(os.path.realpath, params["folders"])
        inside = any(os.path.commonpath((where, root)) == root for root in roots)
        if not inside:
            raise ValueError(f"{path} does not lie below {' or '.join(params['folders'])}, so it is not removed")
    there = [path for path in params["remove"] if os.path.lexists(path)]
    actions = [f"{path}: removed, {os.lstat(path).st_size} bytes" for path in there]
    if not check:
        for path in there:
            os.unlink(path)
    return {
        "changed": bool(there),
        "actions": actions or ["nothing was left to remove"],
        "done": True,
        "now": time.time(),
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "folders": {"type": "list", "elements": "path", "required": True},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "remove": {"type": "list", "elements": "path", "default": []},
            "full": {"type": "bool", "default": False},
            "full_since": {"type": "float", "default": 0},
            "budget_s": {"type": "int", "default": 10},
            "workers": {"type": "int", "default": 0},
        },
        supports_check_mode=True,
    )
    run = run_present if module.params["state"] == "present" else run_absent
    if module.params["remove"]:
        run = run_remove
    try:
        result = run(module.params, module.check_mode)
    except OSError as error:
        module.fail_json(
            msg=f"The manifest could not be made: {error}; it is kept beside the files, so their folder must be "
            "writable and have some room"
        )
    except ValueError as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
