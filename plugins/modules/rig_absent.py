#!/usr/bin/python
# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Take units, files and folders of the rig off a node, in one call."""

from __future__ import annotations

DOCUMENTATION = r"""
module: rig_absent
short_description: Take units, files and folders of the rig off a node
version_added: 0.1.0
author: The sparkrig engineers (@sparkrig)
description:
  - Stops units by systemd, ends what they left behind, and removes their files, in this order and in one call.
  - Validates every name before the first change. Only units named C(sparkrig-*) and no folder of the system is removed.
  - What is gone already is fine, so it finishes what an interrupted run began.
extends_documentation_fragment:
  - sparkrig.serving._attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
options:
  units:
    description: Units to stop, disable and remove with their drop-ins.
    type: list
    elements: str
    default: []
  leftovers_under:
    description:
      - A folder. Processes whose program or libraries lie under it are ended once the units are stopped.
    type: path
  users:
    description:
      - System users of the rig to remove with their group, once the units are stopped. Only names that begin with
        C(sparkrig) are taken. What they left in C(/tmp), C(/var/tmp) and C(/dev/shm) goes with them.
    type: list
    elements: str
    default: []
  shared_memory:
    description: Whether files that Ray, vLLM and torch left in C(/dev/shm) are removed, if no process has them open.
    type: bool
    default: false
  files:
    description: Files and symbolic links to remove. The last part of a path may be a pattern.
    type: list
    elements: str
    default: []
  folders:
    description: Folders to remove with everything in them. B(Nothing in them can be brought back.)
    type: list
    elements: str
    default: []
  empty_folders:
    description: Folders to remove if nothing is in them then. Others are left, and what is in them is named.
    type: list
    elements: str
    default: []
seealso:
  - module: sparkrig.serving.rig_service
"""

EXAMPLES = r"""
---
- name: Take the engine off this node
  sparkrig.serving.rig_absent:
    units: [sparkrig-vllm.service]
    files: [/etc/sparkrig/vllm.env, /etc/sparkrig/secrets.env]
    folders: [/etc/sparkrig/vllm]
    empty_folders: [/etc/sparkrig]
"""

RETURN = r"""
actions:
  description: One sentence for each unit, file and folder, also for those left alone.
  returned: always
  type: list
  elements: str
  sample: ["sparkrig-vllm.service: stopped and removed (was active)", "/etc/sparkrig/vllm.env: removed"]
"""

import glob
import os
import pwd
import shutil
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.sparkrig.serving.plugins.module_utils._launch_ground import (
    end_processes,
    processes_under,
    stale_shared_memory,
)
from ansible_collections.sparkrig.serving.plugins.module_utils._rig_absent import (
    PROPERTIES,
    Unit,
    check_path,
    check_units,
    check_users,
    kept_folder,
    parse_show,
)

# Where everybody may write.
SHARED_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")
UNIT_FOLDERS = ("/etc/systemd/system", "/run/systemd/system")


class Node:
    """One call of the module: what it found, what it does."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.actions: list[str] = []
        self.before: list[str] = []

    def systemctl(self, *words: str, may_fail: bool = False) -> str:
        """One command of systemctl's."""
        command = [self.module.get_bin_path("systemctl", required=True), *words]
        rc, out, err = self.module.run_command(command, environ_update={"LC_ALL": "C", "LANGUAGE": "C"})
        if rc != 0 and not may_fail:
            self.module.fail_json(
                msg=f"'systemctl {' '.join(words)}' ended with {rc}: {(err or out).strip()}. What is done already stays"
                " done; see `journalctl -xe` on this node and run this again.",
                rc=rc,
                actions=self.actions,
            )
        return str(out)

    def will(self, sentence: str, was: str) -> bool:
        """Note a change; whether it is to be made now."""
        self.actions.append(sentence)
        self.before.append(was)
        return not self.module.check_mode

    # --- units --------------------------------------------------------------------------------------------------

    def unit_paths(self, name: str) -> tuple[str, ...]:
        """All that enables, defines or changes the unit."""
        found: list[str] = []
        for folder in UNIT_FOLDERS:
            for pattern in (name, f"{name}.d", f"*.wants/{name}", f"*.requires/{name}"):
                found += sorted(glob.glob(os.path.join(folder, pattern)))
            # glob does not list a link to nothing when there is no pattern in it.
            own = os.path.join(folder, name)
            if os.path.islink(own) and own not in found:
                found.append(own)
        return tuple(found)

    def remove_units(self, names: t.Sequence[str]) -> None:
        """Stop all, end what is left of them, then remove what is on the disk."""
        if not names:
            return
        shown = parse_show(names, self.systemctl("show", "--property=" + ",".join(PROPERTIES), "--", *names))
        units = [Unit(name, *shown[name], self.unit_paths(name)) for name in names]
        for unit in units:
            if unit.there:
                self.will(unit.sentence, f"{unit.name}: {unit.active}")
                self.before += unit.paths
            else:
                self.actions.append(unit.sentence)
        left = [unit for unit in units if unit.there]
        if not left or self.module.check_mode:
            return
        running = [unit.name for unit in left if unit.runs]
        if running:
            # In one step: systemd knows their order.
            self.systemctl("stop", "--", *running)
        for unit in left:
            for path in unit.paths:
                remove(path)
                parent = os.path.dirname(path)
                if parent.endswith((".wants", ".requires")) and not os.listdir(parent):
                    os.rmdir(parent)
        # A unit that failed is remembered until somebody says that it was seen.
        self.systemctl("reset-failed", "--", *[unit.name for unit in left], may_fail=True)
        self.systemctl("daemon-reload")

    def end_leftovers(self, folder: str | None) -> None:
        """End the processes that outlived their unit."""
        if not folder:
            return
        if self.module.check_mode:
            # What runs in the units goes with them; what else is there cannot be told before.
            return
        try:
            ended = end_processes(lambda: processes_under(folder, []))
        except ValueError as error:
            self.module.fail_json(msg=f"The rig is stopped, but {error}.", actions=self.actions)
        for left in ended:
            self.will(f"process {left}: ended, it had outlived its unit", f"process {left}")

    def remove_users(self, names: t.Sequence[str]) -> None:
        """Remove users of ours, and before them what they left where everybody may write."""
        for name in names:
            try:
                uid = pwd.getpwnam(name).pw_uid
            except KeyError:
                self.actions.append(f"user {name}: not there")
                continue
            for folder in SHARED_FOLDERS:
                for path in sorted(glob.glob(os.path.join(folder, "*")) + glob.glob(os.path.join(folder, ".*"))):
                    if os.lstat(path).st_uid == uid and self.will(f"{path}: removed, it was {name}'s", path):
                        remove(path)
            if self.will(f"user {name}: removed", f"user {name}"):
                rc, out, err = self.module.run_command([self.module.get_bin_path("userdel", required=True), name])
                if rc != 0:
                    self.module.fail_json(
                        msg=f"'userdel {name}' ended with {rc}: {(err or out).strip()}. See `ps -u {name}` on this node"
                        " and run this again.",
                        actions=self.actions,
                    )

    # --- files --------------------------------------------------------------------------------------------------

    def remove_paths(self) -> None:
        """Files, whole folders, and folders that are empty then."""
        gone: set[str] = set()
        for path in stale_shared_memory() if self.module.params["shared_memory"] else ():
            if self.will(f"{path}: removed, no process has it open", path):
                remove(path)
        for pattern in self.module.params["files"]:
            found = sorted(glob.glob(pattern)) or ([pattern] if os.path.lexists(pattern) else [])
            if not found:
                self.actions.append(f"{pattern}: not there")
            for path in found:
                gone.add(path)
                if self.will(f"{path}: removed", path):
                    remove(path)
        for path in self.module.params["folders"]:
            if not os.path.lexists(path):
                self.actions.append(f"{path}: not there")
                continue
            if os.path.ismount(path):
                self.module.fail_json(
                    msg=f"{path} is a mount point, so it was not made by the rig alone. Unmount it and run this again.",
                    actions=self.actions,
                )
            gone.add(path)
            if self.will(f"{path}: removed with everything in it", path):
                remove(path)
        for path in self.module.params["empty_folders"]:
            self.remove_empty(path, gone)

    def remove_empty(self, path: str, gone: set[str]) -> None:
        """Remove a folder in which nothing would be left; *gone* is what goes before it."""
        if not os.path.isdir(path) or os.path.islink(path):
            self.actions.append(f"{path}: not there")
            return
        names = [name for name in os.listdir(path) if os.path.join(path, name) not in gone]
        if names:
            self.actions.append(kept_folder(path, names))
            return
        gone.add(path)
        if self.will(f"{path}: removed, it is empty", path):
            os.rmdir(path)


def remove(path: str) -> None:
    """Remove a file, a link or a folder; one that is gone meanwhile is fine."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.unlink(path)


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "units": {"type": "list", "elements": "str", "default": []},
            "leftovers_under": {"type": "path"},
            "users": {"type": "list", "elements": "str", "default": []},
            "shared_memory": {"type": "bool", "default": False},
            "files": {"type": "list", "elements": "str", "default": []},
            "folders": {"type": "list", "elements": "str", "default": []},
            "empty_folders": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    node = Node(module)
    try:
        names = check_units(module.params["units"])
        check_users(module.params["users"])
        for option in ("files", "folders", "empty_folders"):
            for index, path in enumerate(module.params[option]):
                check_path(option, index, path)
    except ValueError as error:
        module.fail_json(msg=f"{error}. Nothing was changed.")
    node.remove_units(names)
    node.end_leftovers(module.params["leftovers_under"])
    node.remove_users(module.params["users"])
    try:
        node.remove_paths()
    except OSError as error:
        module.fail_json(msg=f"{error}. What is done already stays done; run this again.", actions=node.actions)
    module.exit_json(
        changed=bool(node.before),
        actions=node.actions,
        diff={"before": "".join(f"{line}\n" for line in node.before), "after": ""},
    )


if __name__ == "__main__":
    main()
