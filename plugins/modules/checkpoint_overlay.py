#!/usr/bin/python
# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lay an overlay over a base checkpoint by hardlinks, as a folder of its own that can be served."""

from __future__ import annotations

DOCUMENTATION = r"""
module: checkpoint_overlay
short_description: A model folder out of a base checkpoint and an overlay, by hardlinks
version_added: 1.0.0
author: The sparkrig engineers (@sparkrig)
description:
  - Checks both folders by their C(config.json), indexes and safetensors headers, before anything is changed.
    Anything that is wrong fails the task with one sentence each.
  - Builds O(path) out of hardlinks, which takes no room and no time. A file of the overlay wins over the base's file
    of the same name, C(config.json) included. The index is written new, out of both indexes and the headers.
  - Never writes through a hardlink, so O(base) and O(overlay) keep every byte.
  - Builds in a folder C(<path>.partial-*) beside O(path) and renames it when it is whole. What an interrupted run left
    is removed by the next one.
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
    description: The folder of the base checkpoint. It must be on the same file system as O(path).
    type: path
    required: true
  overlay:
    description:
      - The folder whose files are laid over the base's. Without it O(base) is served as it is.
      - On another file system than O(path) its files are copied.
    type: path
  path:
    description:
      - The folder to build. Left out, or the same as O(base), when there is no O(overlay); then nothing is built.
      - A folder that stands there and was not built by this module is never touched.
    type: path
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
  returned: always
  type: str
  sample: /srv/models/lab-hybrid
bytes_by_dtype:
  description: See M(sparkrig.serving.checkpoint_info), as for all that follow.
  returned: always
  type: dict
bytes_by_part:
  description: The bytes of all tensors by what they are for.
  returned: always
  type: dict
config:
  description: The content of C(config.json).
  returned: always
  type: dict
digest:
  description: Equal on two nodes when both have the same checkpoint.
  returned: always
  type: str
digests:
  description: A SHA-256 by file.
  returned: always
  type: dict
files:
  description: The size in bytes of every safetensors file that will be loaded.
  returned: always
  type: dict
indexer_layers:
  description: The layers that have a sparse attention indexer in the files.
  returned: always
  type: list
  elements: int
mtp:
  description: The layers for multi-token prediction.
  returned: always
  type: dict
problems:
  description: Always empty; a problem fails the task.
  returned: always
  type: list
  elements: str
quantization:
  description: The method that C(config.json) names, or null.
  returned: always
  type: str
tensors:
  description: How many tensors there are.
  returned: always
  type: int
total_bytes:
  description: The bytes of all tensors.
  returned: always
  type: int
weights_bytes:
  description: The bytes of weights that each rank keeps, in the order of vLLM's ranks.
  returned: always
  type: list
  elements: int
"""

import errno
import json
import os
import shutil
import tempfile
import typing as t
from dataclasses import dataclass

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.sparkrig.serving.plugins.module_utils._checkpoint import (
    INDEX_FILE,
    LAYOUT_ARGUMENTS,
    Hybrid,
    layout_of,
    list_folder,
    plan_hybrid,
)

# Tells a folder that this module built. Hidden, so that it is no part of the checkpoint.
MARKER_FILE = ".sparkrig-checkpoint.json"
# The most problems that a message spells out.
PROBLEMS_SHOWN = 5


@dataclass(frozen=True)
class Entry:
    """One file of the hybrid: how it gets there (link, copy, write), from where, or with which content."""

    how: str
    source: str
    content: bytes = b""


def device_of(path: str) -> int:
    """The file system of *path*, or of its nearest parent that exists."""
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return os.stat(path).st_dev


def entries_of(hybrid: Hybrid, parameters: t.Mapping[str, t.Any], marker: bytes) -> dict[str, Entry]:
    """Every file that the hybrid has to hold."""
    device = device_of(parameters["path"])
    entries = {}
    for name, (origin, source) in hybrid.files.items():
        linked = os.stat(source).st_dev == device
        if not linked and origin == "base":
            raise ValueError(
                f"{source} is on another file system than {parameters['path']}, so it cannot be hardlinked, and a copy "
                "of the whole base would take its size again; choose a path on the base's file system"
            )
        entries[name] = Entry("link" if linked else "copy", source)
    if hybrid.index is not None:
        entries[INDEX_FILE] = Entry("write", "both indexes", hybrid.index)
    entries[MARKER_FILE] = Entry("write", "this module", marker)
    return entries


def is_there(path: str, entry: Entry) -> bool:
    """Whether the file at *path* is what *entry* wants."""
    if not os.path.isfile(path):
        return False
    if entry.how == "write":
        with open(path, "rb") as stream:
            return stream.read() == entry.content
    seen, wanted = os.stat(path), os.stat(entry.source)
    if entry.how == "link":
        return (seen.st_dev, seen.st_ino) == (wanted.st_dev, wanted.st_ino)
    return (seen.st_size, seen.st_mtime_ns) == (wanted.st_size, wanted.st_mtime_ns)


def place(path: str, entry: Entry) -> None:
    """Put one file into the folder that is being built, where nothing stands yet."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if entry.how == "link":
        os.link(entry.source, path)
    elif entry.how == "copy":
        shutil.copy2(entry.source, path)
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


def build(path: str, entries: t.Mapping[str, Entry]) -> None:
    """Build the folder beside *path* and rename it into place."""
    parent, name = os.path.split(path)
    os.makedirs(parent, exist_ok=True)
    partial = tempfile.mkdtemp(prefix=f"{name}.partial-", dir=parent)
    os.chmod(partial, 0o755)
    try:
        for file, entry in entries.items():
            place(os.path.join(partial, file), entry)
    except OSError:
        shutil.rmtree(partial)
        raise
    if os.path.isdir(path):
        # A folder that is not empty cannot be replaced in one step. Whoever has it open keeps the old files.
        replaced = tempfile.mkdtemp(prefix=f"{name}.partial-replaced-", dir=parent)
        os.rename(path, os.path.join(replaced, name))
    os.rename(partial, path)
    folder = os.open(parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def remove(folders: t.Iterable[str]) -> None:
    for folder in folders:
        shutil.rmtree(folder)


def sentences(module: AnsibleModule, entries: t.Mapping[str, Entry], wrong: set[str], extra: set[str]) -> list[str]:
    """One sentence for each file."""
    done = {"link": "linked from", "copy": "copied, as its file system is another one, from", "write": "written out of"}
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


def run(module: AnsibleModule) -> dict[str, t.Any]:
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
    hybrid = plan_hybrid(base, overlay, layout_of(parameters))
    problems = list(hybrid.report.problems)
    if problems:
        more = len(problems) - PROBLEMS_SHOWN
        tail = [f"and {more} more problems"] if more > 0 else []
        raise ValueError("\n".join(problems[:PROBLEMS_SHOWN] + tail))
    result = {"changed": False, "path": path, **hybrid.report.as_dict()}
    if as_it_is:
        return {**result, "actions": [f"{path}: served as it is"]}

    marker = {"base": base, "overlay": overlay, "digest": hybrid.report.digest}
    entries = entries_of(hybrid, parameters, (json.dumps(marker, sort_keys=True) + "\n").encode())
    present = present_files(path)
    wrong = {name for name, entry in entries.items() if not is_there(os.path.join(path, name), entry)}
    extra = present - entries.keys()
    stale = leftovers(path)
    changed = bool(wrong or extra)
    result["changed"] = changed or bool(stale)
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
    if not module.check_mode:
        remove(stale)
        if changed:
            build(path, entries)
            remove(leftovers(path))
    return result


def describe(entry: Entry) -> str:
    return f"{entry.how} {entry.source}"


def main() -> None:
    spec: dict[str, t.Any] = {
        "base": {"type": "path", "required": True},
        "overlay": {"type": "path"},
        "path": {"type": "path"},
        **LAYOUT_ARGUMENTS,
    }
    module = AnsibleModule(argument_spec=spec, required_by={"overlay": ("path",)}, supports_check_mode=True)
    try:
        result = run(module)
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
