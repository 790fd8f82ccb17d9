#!/usr/bin/python
# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bring a checkpoint to a node that has none, whole or not at all."""

from __future__ import annotations

DOCUMENTATION = r"""
module: checkpoint_fetch
short_description: Bring a checkpoint to a node, from a folder or by a command
version_added: 0.1.0
author: The sparkrig engineers (@sparkrig)
description:
  - Fills a folder beside O(path), checks the headers of the weights in it against the sizes of the files, and gives
    it its name when it is whole. An interrupted run is continued by the next one.
  - A folder that has files already is left alone.
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
  path:
    description: The folder to make.
    type: path
    required: true
  source:
    description: A folder on the node to copy from, such as a disk or a share.
    type: path
  command:
    description:
      - The words of a command that fills a folder; C({path}) stands for it in each word. No shell is involved.
      - A command that continues what it has begun makes the download resumable.
    type: list
    elements: str
  token:
    description: A secret that the command finds in the variable O(token_variable). It is never returned or shown.
    type: str
  token_variable:
    description: The name of the variable.
    type: str
    default: HF_TOKEN
  reserve_bytes:
    description: What has to stay free on the file system, beside the size of O(source).
    type: int
    default: 0
seealso:
  - module: sparkrig.serving.checkpoint_spread
"""

EXAMPLES = r"""
---
- name: Download the base checkpoint to the first node
  sparkrig.serving.checkpoint_fetch:
    path: /var/tmp/models/GLM-5.2-NVFP4
    command: [hf, download, Mapika/GLM-5.2-NVFP4, --local-dir, "{path}"]
    token: "{{ vault_hf_token }}"
"""

RETURN = r"""
actions:
  description: What was done, one sentence each.
  returned: always
  type: list
  elements: str
  sample: ["/srv/models/lab-base: 8 files came from /mnt/lab-base"]
"""

import os
import shutil
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.sparkrig.serving.plugins.module_utils._checkpoint import INDEX_FILE, parse_index
from ansible_collections.sparkrig.serving.plugins.module_utils._manifest import list_folder, scan
from ansible_collections.sparkrig.serving.plugins.module_utils._safetensors import read_header

# Not hidden: what a download tool keeps in it belongs to it.
SUFFIX = ".sparkrig-fetch"


def copy_folder(source: str, target: str) -> None:
    """Copy what is not there yet. A file gets its name when it is whole."""
    for name, path in list_folder(source).items():
        wanted = os.path.join(target, name)
        seen = os.stat(path)
        if os.path.isfile(wanted):
            there = os.stat(wanted)
            if (there.st_size, there.st_mtime_ns) == (seen.st_size, seen.st_mtime_ns):
                continue
        os.makedirs(os.path.dirname(wanted), exist_ok=True)
        shutil.copy2(path, f"{wanted}.part")
        os.replace(f"{wanted}.part", wanted)


def refuse_half(folder: str, where: str) -> None:
    """Refuse a folder in which a file is cut short or missing."""
    files = list_folder(folder)
    for name, path in files.items():
        if name.endswith(".safetensors"):
            read_header(path)
    absent: list[str] = []
    # An overlay's index may name the files of its base.
    if INDEX_FILE in files and "config.json" in files:
        with open(files[INDEX_FILE], "rb") as stream:
            weight_map = parse_index(stream.read(), files[INDEX_FILE])
        absent = sorted(set(weight_map.values()) - files.keys())
    if not files or absent:
        raise ValueError(
            f"{where} gave {', '.join(absent) + ' not' if absent else 'nothing'}; what came is kept in {folder}, and "
            "the next run continues there"
        )


def room_for(source: str, path: str, partial: str, reserve: int) -> None:
    needed = sum(seen.size_bytes for seen in scan(source).values())
    there = sum(seen.size_bytes for seen in scan(partial).values())
    parent = os.path.dirname(path)
    while not os.path.isdir(parent):
        parent = os.path.dirname(parent)
    room = os.statvfs(parent)
    free = room.f_bavail * room.f_frsize
    if needed - there + reserve > free:
        raise ValueError(
            f"{path} needs {needed - there} bytes more and {reserve} are to stay free, but only {free} are free there; "
            "free some room or choose another path"
        )


def run(module: AnsibleModule) -> dict[str, t.Any]:
    """Fill, check, rename."""
    path, source, command = (module.params[name] for name in ("path", "source", "command"))
    if os.path.isdir(path) and list_folder(path):
        return {"changed": False, "actions": [f"{path}: already there"]}
    where = source or command[0]
    if module.check_mode:
        return {"changed": True, "actions": [f"{path}: would come from {where}"]}
    partial = path + SUFFIX
    if source:
        list_folder(source)
        room_for(source, path, partial, module.params["reserve_bytes"])
    os.makedirs(partial, exist_ok=True)
    if source:
        copy_folder(source, partial)
    else:
        token = module.params["token"]
        code, out, err = module.run_command(
            [word.replace("{path}", partial) for word in command],
            environ_update={module.params["token_variable"]: token} if token else {},
        )
        if code != 0:
            words = " | ".join((err or out).strip().splitlines()[-3:]) or "no word"
            # exit_json and fail_json blot out the token wherever it appears.
            raise ValueError(
                f"{where} ended with {code}: {words}; what came is kept in {partial}, and the next run continues there"
            )
    refuse_half(partial, where)
    if os.path.isdir(path):
        os.rmdir(path)
    os.rename(partial, path)
    return {"changed": True, "actions": [f"{path}: {len(list_folder(path))} files came from {where}"]}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "source": {"type": "path"},
            "command": {"type": "list", "elements": "str"},
            "token": {"type": "str", "no_log": True},
            # Only the name of a variable.
            "token_variable": {"type": "str", "default": "HF_TOKEN", "no_log": False},
            "reserve_bytes": {"type": "int", "default": 0},
        },
        mutually_exclusive=[("source", "command")],
        required_one_of=[("source", "command")],
        supports_check_mode=True,
    )
    try:
        result = run(module)
    except OSError as error:
        module.fail_json(
            msg=f"The checkpoint could not be fetched: {error}; put that right and run again, it is continued"
        )
    except ValueError as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
