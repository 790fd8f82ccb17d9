#!/usr/bin/python
# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lay an overlay over a base checkpoint by hardlinks, as a folder of its own that can be served."""

from __future__ import annotations

DOCUMENTATION = r"""
module: checkpoint_overlay
short_description: A model folder out of a base checkpoint and an overlay, by hardlinks
version_added: 0.1.0
author: The sparkrig engineers (@sparkrig)
description:
  - Checks both folders by their C(config.json), indexes and safetensors headers, before anything is changed.
    Anything that is wrong fails the task with one sentence each.
  - Builds O(path) out of hardlinks, which takes no room and no time. A file of the overlay wins over the base's file
    of the same name, C(config.json) included. The index is written new, out of both indexes and the headers.
  - What lies on another file system cannot be linked. It is cloned (a reflink) where the file system can do that, and
    copied where it cannot; C(actions) says so for each file, and the room is checked before the first byte.
  - JSON files are written new, so that whoever edits one of them changes O(path) only. Nothing is ever written through
    a hardlink, and O(base) and O(overlay) keep every byte.
  - Builds in a folder C(<path>.partial-*) beside O(path) and renames it when it is whole. What an interrupted run left
    is removed by the next one. Two runs with the same content, by digest, build once.
  - Returns what M(sparkrig.serving.checkpoint_info) returns, so that one task says everything about the checkpoint.
extends_documentation_fragment:
  - sparkrig.serving._attributes
  - sparkrig.serving._checkpoint_layout
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
options:
  base:
    description: The folder of the base checkpoint. Needed for O(state=present) and O(state=looked).
    type: path
  overlay:
    description:
      - The folder whose files are laid over the base's. Without it O(base) is served as it is.
    type: path
  path:
    description:
      - The folder to build. Left out, or the same as O(base), when there is no O(overlay); then nothing is built.
      - A folder that stands there and was not built by this module is never touched.
    type: path
  state:
    description:
      - V(present) builds the folder.
      - V(looked) changes nothing. It says what V(present) would find and do, and in RV(folders) which files there are.
        What is wrong with them is no failure, but RV(problem).
      - V(absent) removes O(path), if this module built it, and what interrupted runs left. O(base) and O(overlay) stay.
    type: str
    choices: [present, looked, absent]
    default: present
seealso:
  - module: sparkrig.serving.checkpoint_info
"""

EXAMPLES = r"""
---
- name: Lay the MTP layer over the base checkpoint
  sparkrig.serving.checkpoint_overlay:
    base: /var/tmp/models/GLM-5.2-NVFP4
    overlay: /var/tmp/models/GLM-5.2-NVFP4-MTP
    path: /var/tmp/models/GLM-5.2-NVFP4-MTP-hybrid
    tensor_parallel_size: 4
  register: checkpoint

- name: Check a checkpoint that is served as it is
  sparkrig.serving.checkpoint_overlay:
    base: /srv/models/qwen3-0.6b
"""

RETURN = r"""
actions:
  description: What was done with each file, or with the folder, one sentence each.
  returned: always
  type: list
  elements: str
  sample:
    - "model-00001-of-00003.safetensors: linked from /srv/models/lab-base"
path:
  description: The folder to serve.
  returned: O(state=present)
  type: str
  sample: /srv/models/lab-hybrid
folders:
  description: O(base) and O(overlay) as M(sparkrig.serving.checkpoint_manifest) returns them.
  returned: O(state=looked)
  type: list
  elements: dict
problem:
  description:
    - Why O(state=present) would fail; empty when it would not. Then everything that it returns is returned as well.
  returned: O(state=looked)
  type: str
up_to_date:
  description: Whether O(path) was already as it should be.
  returned: O(state=present)
  type: bool
bytes_by_dtype:
  description: See M(sparkrig.serving.checkpoint_info), as for all that follow.
  returned: O(state=present)
  type: dict
bytes_by_part:
  description: The bytes of all tensors by what they are for.
  returned: O(state=present)
  type: dict
config:
  description: The content of C(config.json).
  returned: O(state=present)
  type: dict
damaged:
  description: Always empty; a damaged file fails the task.
  returned: O(state=present)
  type: dict
digest:
  description: Equal on two nodes when both have the same checkpoint.
  returned: O(state=present)
  type: str
digests:
  description: A SHA-256 by file.
  returned: O(state=present)
  type: dict
files:
  description: The size in bytes of every safetensors file that will be loaded.
  returned: O(state=present)
  type: dict
indexer_layers:
  description: The layers that have a sparse attention indexer in the files.
  returned: O(state=present)
  type: list
  elements: int
missing:
  description: Always empty; a missing file fails the task.
  returned: O(state=present)
  type: list
  elements: str
mtp:
  description: The layers for multi-token prediction.
  returned: O(state=present)
  type: dict
problems:
  description: Always empty; a problem fails the task.
  returned: O(state=present)
  type: list
  elements: str
quantization:
  description: The method that C(config.json) names, or null.
  returned: O(state=present)
  type: str
tensors:
  description: How many tensors there are.
  returned: O(state=present)
  type: int
total_bytes:
  description: The bytes of all tensors.
  returned: O(state=present)
  type: int
weights_bytes:
  description: The bytes of weights that each rank keeps, in the order of vLLM's ranks.
  returned: O(state=present)
  type: list
  elements: int
"""

import errno
import fcntl
import json
import os
import shutil
import tempfile
import typing as t
from dataclasses import dataclass

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.sparkrig.serving.plugins.module_utils._checkpoint import (
    CHECK_ARGUMENTS,
    INDEX_FILE,
    LAYOUT_ARGUMENTS,
    Hybrid,
    layout_of,
    plan_hybrid,
)
from ansible_collections.sparkrig.serving.plugins.module_utils._manifest import (
    list_folder,
    look,
    read_manifest,
    scan,
)

# Tells a folder that this module built. Hidden, so that it is no part of the checkpoint.
MARKER_FILE = ".sparkrig-checkpoint.json"
# The most problems that a message spells out.
PROBLEMS_SHOWN = 5
# The ioctl by which two files share their blocks until one of them is written, and who knows it.
FICLONE = 0x40049409
CLONING_FILE_SYSTEMS = frozenset(("btrfs", "xfs", "bcachefs", "ocfs2"))


@dataclass(frozen=True)
class Entry:
    """One file of the hybrid: how it gets there (link, clone, copy, write), from where, or with which content."""

    how: str
    source: str
    content: bytes = b""


class Mount(t.NamedTuple):
    """A line of the mount table: where it is, which device it shows, and the kind of file system."""

    point: str
    device: str
    kind: str


def mounts() -> list[Mount]:
    """What is mounted; blanks in a path are written as octal numbers there."""
    found = []
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as stream:
        for line in stream:
            before, _dash, after = line.partition(" - ")
            fields = before.split()
            point = fields[4].encode("utf-8", "surrogateescape").decode("unicode_escape")
            found.append(Mount(point, fields[2], after.split()[0]))
    return found


def mount_of(path: str, table: t.Sequence[Mount]) -> Mount:
    """The mount that *path*, or its nearest parent that exists, lies on."""
    path = os.path.realpath(path)
    best = Mount("/", "", "")
    for mount in table:
        inside = path == mount.point or path.startswith(mount.point.rstrip("/") + "/")
        # Of two on the same place the later one is seen.
        if inside and len(mount.point) >= len(best.point):
            best = mount
    return best


def existing(path: str) -> str:
    """*path*, or its nearest parent that exists."""
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return path


def way(source: str, path: str, table: t.Sequence[Mount]) -> str:
    """How a file gets into the folder *path*."""
    from_mount, to_mount = mount_of(source, table), mount_of(path, table)
    if from_mount == to_mount and os.stat(source).st_dev == os.stat(existing(path)).st_dev:
        return "link"
    # The parts of a btrfs are different devices to stat, and one to the mount table.
    if from_mount.device == to_mount.device and to_mount.kind in CLONING_FILE_SYSTEMS:
        return "clone"
    return "copy"


def read(path: str) -> bytes:
    with open(path, "rb") as stream:
        return stream.read()


def entries_of(hybrid: Hybrid, parameters: t.Mapping[str, t.Any]) -> dict[str, Entry]:
    """Every file that the hybrid has to hold."""
    table = mounts()
    entries = {}
    for name, (_origin, source) in hybrid.files.items():
        if name.endswith(".json"):
            # What people edit by hand: a change in the hybrid must not reach the base through a link.
            entries[name] = Entry("write", source, read(source))
        else:
            entries[name] = Entry(way(source, parameters["path"], table), source)
    if hybrid.index is not None:
        entries[INDEX_FILE] = Entry("write", "both indexes", hybrid.index)
    marker: dict[str, t.Any] = {name: parameters[name] for name in ("base", "overlay")}
    marker["digest"] = hybrid.report.digest
    # A link is known by its inode; a copy by what it was made of.
    marker["copies"] = {
        name: [seen.st_size, seen.st_mtime_ns, seen.st_ino]
        for name, entry in sorted(entries.items())
        if entry.how in ("clone", "copy")
        for seen in (os.stat(entry.source),)
    }
    content = (json.dumps(marker, sort_keys=True) + "\n").encode()
    entries[MARKER_FILE] = Entry("write", "this module", content)
    return entries


def refuse_without_room(path: str, entries: t.Mapping[str, Entry]) -> None:
    """Copies take their size again; that there is room for all of them is seen before the first byte."""
    needed = sum(os.stat(entry.source).st_size for entry in entries.values() if entry.how == "copy")
    room = os.statvfs(existing(path))
    free = room.f_bavail * room.f_frsize
    if needed > free:
        raise ValueError(
            f"{path} needs {needed} bytes, as the files lie on another file system and have to be copied, and only "
            f"{free} are free there; choose a path on the file system of the checkpoint, or free some room"
        )


def is_there(path: str, entry: Entry) -> bool:
    """Whether the file at *path* is what *entry* wants."""
    if not os.path.isfile(path):
        return False
    if entry.how == "write":
        return os.stat(path).st_nlink == 1 and read(path) == entry.content
    seen, wanted = os.stat(path), os.stat(entry.source)
    if entry.how == "link":
        return (seen.st_dev, seen.st_ino) == (wanted.st_dev, wanted.st_ino)
    return (seen.st_size, seen.st_mtime_ns) == (wanted.st_size, wanted.st_mtime_ns)


def copy(source: str, path: str) -> None:
    """Every byte of a file, on the disk before it is counted as there."""
    shutil.copy2(source, path)
    with open(path, "rb") as stream:
        os.fsync(stream.fileno())


def clone(source: str, path: str) -> None:
    """The same blocks for a second file; a copy where the file system does not know how after all."""
    try:
        with open(source, "rb") as original, open(path, "xb") as stream:
            fcntl.ioctl(stream.fileno(), FICLONE, original.fileno())
        shutil.copystat(source, path)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY):
            raise
        copy(source, path)


def place(path: str, entry: Entry) -> None:
    """Put one file into the folder that is being built, where nothing stands yet."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if entry.how == "link":
        os.link(entry.source, path)
    elif entry.how == "clone":
        clone(entry.source, path)
    elif entry.how == "copy":
        copy(entry.source, path)
    else:
        with open(path, "xb") as stream:
            stream.write(entry.content)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(path, 0o644)


def leftovers(path: str) -> list[str]:
    """What interrupted runs left beside *path*."""
    parent, name = os.path.split(path)
    if not os.path.isdir(parent):
        return []
    return sorted(os.path.join(parent, entry) for entry in os.listdir(parent) if entry.startswith(f"{name}.partial-"))


def present_files(path: str) -> set[str]:
    """All files of a folder that this module built."""
    if not os.path.isdir(path):
        return set()
    marker = {MARKER_FILE} if os.path.exists(os.path.join(path, MARKER_FILE)) else set()
    return set(list_folder(path)) | marker


def refuse_foreign_folder(path: str) -> None:
    """Leave alone what somebody else made."""
    if os.path.lexists(path) and not os.path.isdir(path):
        raise ValueError(f"{path} is a file; choose another path for the hybrid")
    if os.path.isdir(path) and os.listdir(path) and not os.path.exists(os.path.join(path, MARKER_FILE)):
        raise ValueError(
            f"{path} exists and was not built by this module; move it away or choose another path "
            "(to serve it as it is, give it as base, without an overlay)"
        )


def sync_folder(path: str) -> None:
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def build(path: str, entries: t.Mapping[str, Entry]) -> None:
    """Build the folder beside *path* and rename it into place."""
    parent, name = os.path.split(path)
    os.makedirs(parent, exist_ok=True)
    partial = tempfile.mkdtemp(prefix=f"{name}.partial-", dir=parent)
    os.chmod(partial, 0o755)
    try:
        for file, entry in entries.items():
            place(os.path.join(partial, file), entry)
        sync_folder(partial)
    except OSError:
        shutil.rmtree(partial)
        raise
    if os.path.isdir(path):
        # A folder that is not empty cannot be replaced in one step. Whoever has it open keeps the old files.
        replaced = tempfile.mkdtemp(prefix=f"{name}.partial-replaced-", dir=parent)
        os.rename(path, os.path.join(replaced, name))
    os.rename(partial, path)
    sync_folder(parent)


def remove(folders: t.Iterable[str]) -> None:
    for folder in folders:
        shutil.rmtree(folder)


def sentences(module: AnsibleModule, entries: t.Mapping[str, Entry], wrong: set[str], extra: set[str]) -> list[str]:
    """One sentence for each file."""
    done = {
        "link": "linked from",
        "clone": "cloned (reflink), as a hardlink cannot reach there, from",
        "copy": "copied, as its file system is another one, from",
        "write": "written out of",
    }
    folders = (module.params["base"], module.params["overlay"])
    told = []
    for name in sorted(entries.keys() - {MARKER_FILE}):
        entry = entries[name]
        source = entry.source
        for folder in folders:
            if folder and source == os.path.realpath(os.path.join(folder, name)):
                source = folder
        told.append(f"{name}: {done[entry.how]} {source}" if name in wrong else f"{name}: already there")
    return told + [f"{name}: removed, neither base nor overlay has it" for name in sorted(extra)]


def lines(names: t.Iterable[str], describe: t.Callable[[str], str]) -> str:
    return "".join(f"{name}: {describe(name)}\n" for name in sorted(names))


def run(module: AnsibleModule, check: bool) -> dict[str, t.Any]:
    """Plan, compare, build; the module's result."""
    parameters = module.params
    base, overlay, path = parameters["base"], parameters["overlay"], parameters["path"] or parameters["base"]
    parameters["path"] = path = os.path.normpath(path)
    as_it_is = overlay is None and os.path.realpath(path) == os.path.realpath(base)
    if not as_it_is:
        for source in filter(None, (base, overlay)):
            inside = os.path.commonpath((os.path.realpath(path), os.path.realpath(source)))
            if inside in (os.path.realpath(path), os.path.realpath(source)):
                raise ValueError(f"path is {path}, in, around or at {source}; the hybrid needs a folder of its own")
        refuse_foreign_folder(path)
    hybrid = plan_hybrid(base, overlay, layout_of(parameters), parameters["allow_files"])
    problems = list(hybrid.report.problems)
    if problems:
        more = len(problems) - PROBLEMS_SHOWN
        tail = [f"and {more} more problems"] if more > 0 else []
        raise ValueError("\n".join(problems[:PROBLEMS_SHOWN] + tail))
    result = {"changed": False, "path": path, "up_to_date": True, **hybrid.report.as_dict()}
    if as_it_is:
        return {**result, "actions": [f"{path}: served as it is"]}

    entries = entries_of(hybrid, parameters)
    present = present_files(path)
    wrong = {name for name, entry in entries.items() if not is_there(os.path.join(path, name), entry)}
    extra = present - entries.keys()
    stale = leftovers(path)
    changed = bool(wrong or extra)
    if changed:
        refuse_without_room(path, entries)
    result["changed"] = changed or bool(stale)
    result["up_to_date"] = not result["changed"]
    result["actions"] = [
        *(f"{folder}: removed, an interrupted run had left it" for folder in stale),
        *sentences(module, entries, wrong, extra),
    ]
    if module._diff:
        result["diff"] = {
            "before_header": path,
            "after_header": path,
            "before": lines(present, lambda name: "other" if name in wrong | extra else describe(entries[name]))
            + "".join(f"{folder}\n" for folder in stale),
            "after": lines(entries, lambda name: describe(entries[name])),
        }
    if not check:
        remove(stale)
        if changed:
            build(path, entries)
            remove(leftovers(path))
    return result


def run_looked(module: AnsibleModule) -> dict[str, t.Any]:
    """What lies in both folders, and what V(present) would say and do."""
    sources = list(filter(None, (module.params["base"], module.params["overlay"])))
    folders = [look(path, scan(path), read_manifest(path) if os.path.isdir(path) else {}) for path in sources]
    try:
        result = run(module, check=True)
    except (OSError, ValueError) as error:
        result = {"problem": str(error), "up_to_date": False, "actions": []}
    result.pop("diff", None)
    return {"problem": "", **result, "changed": False, "folders": folders}


def run_absent(module: AnsibleModule) -> dict[str, t.Any]:
    """Take away the folder that this module built, and nothing else."""
    path = os.path.normpath(module.params["path"])
    ours = os.path.exists(os.path.join(path, MARKER_FILE))
    folders = leftovers(path) + ([path] if ours else [])
    actions = [f"{folder}: removed" for folder in folders]
    if os.path.lexists(path) and not ours:
        actions.append(f"{path}: left alone, it was not built by this module")
    if not module.check_mode:
        remove(folders)
    diff = {"before": "".join(f"{folder}\n" for folder in folders), "after": ""}
    return {"changed": bool(folders), "path": path, "actions": actions or [f"{path}: not there"], "diff": diff}


def describe(entry: Entry) -> str:
    return f"{entry.how} {entry.source}"


def main() -> None:
    spec: dict[str, t.Any] = {
        "base": {"type": "path"},
        "overlay": {"type": "path"},
        "path": {"type": "path"},
        "state": {"type": "str", "choices": ["present", "looked", "absent"], "default": "present"},
        **CHECK_ARGUMENTS,
        **LAYOUT_ARGUMENTS,
    }
    module = AnsibleModule(
        argument_spec=spec,
        required_by={"overlay": ("path",)},
        required_if=[
            ("state", "present", ("base",)),
            ("state", "looked", ("base",)),
            ("state", "absent", ("path",)),
        ],
        supports_check_mode=True,
    )
    try:
        if module.params["state"] == "present":
            result = run(module, module.check_mode)
        else:
            result = run_looked(module) if module.params["state"] == "looked" else run_absent(module)
    except OSError as error:
        hint = {
            errno.EXDEV: "; base and path are on different mounts, choose a path on the base's file system",
            errno.EPERM: "; the kernel lets only the owner make hardlinks there, run the task as root",
            errno.ENOSPC: "; free some room on that file system",
        }.get(error.errno or 0, "")
        module.fail_json(msg=f"The hybrid could not be built: {error}{hint}")
    except ValueError as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
