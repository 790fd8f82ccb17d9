#!/usr/bin/python
# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The runtime trees of a node: install, check, switch, go back, remove."""

from __future__ import annotations

DOCUMENTATION = r"""
module: runtime_tree
short_description: Install a runtime's tree on a node, switch to it, go back, remove all
version_added: 0.1.0
author: The sparkrig engineers (@sparkrig)
description:
  - Unpacks the archive of P(sparkrig.serving.runtime_archive#module) below C(root/runtime/DIGEST), checks every file
    against the manifest while it is written, and only then switches C(root/current) to it in one step.
  - Writes the file with the variables of every process of the rig.
  - Whether the node can run the tree and has room for it is decided before anything changes. Whatever fails, the
    runtime that was current stays current.
extends_documentation_fragment:
  - sparkrig.serving._attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
  action:
    support: full
    description: Ships the archive from the controller.
options:
  state:
    description:
      - V(present) makes the tree current. The archive is shipped to a node that lacks the tree.
      - V(previous) switches back to the tree that was current before.
      - V(absent) removes all trees, the record and the variables. It waits for a tree that is being unpacked.
    type: str
    choices: [present, previous, absent]
    default: present
  digest:
    description: The runtime's digest. Needed for V(present).
    type: str
  tree_sha256:
    description: What the tree must hash to. Needed for V(present).
    type: str
  look_sha256:
    description:
      - What one look at the tree must hash to, its manifest and every path, mode, size and symlink, as
        P(sparkrig.serving.runtime_archive#module) tells it.
      - A tree that looks so is right. Any other, and without it each, is compared path by path with its manifest.
    type: str
  launcher:
    description:
      - Which run had the launch lock (M(sparkrig.serving.launch_lock)) when the module was called first, as
        RV(launcher) tells it. The action gives it to the call that unpacks.
      - When another run has the node by then, nothing is unpacked or switched, because Ansible's processes go on with
        their task when the run itself is killed.
    type: str
  target:
    description: The nodes that the tree is for. Needed for V(present).
    type: dict
    suboptions:
      python:
        description: The minor version of Python.
        type: str
        required: true
      machine:
        description: The architecture.
        type: str
        required: true
      glibc:
        description: The oldest glibc.
        type: str
        required: true
  tree_bytes:
    description: The size of the tree, to see whether there is room.
    type: int
    default: 0
  archive_bytes:
    description: The size of the archive that has to come, to see whether there is room.
    type: int
    default: 0
  files:
    description: How many files the tree has, to see whether there is room.
    type: int
    default: 0
  source:
    description:
      - The archive on the controller. It travels only to nodes that lack the tree.
    type: path
  archive:
    description:
      - The archive on this node, instead of O(source). It is removed once its tree is
        installed, unless O(keep_archive).
    type: path
  keep_archive:
    description: Leave O(archive) where it is, as on the host that built it.
    type: bool
    default: false
  relay:
    description:
      - The node that has the tree and hands it on (P(sparkrig.serving.runtime_relay#module)), instead of O(source).
    type: dict
    suboptions:
      address:
        description: Its address.
        type: str
        required: true
      port:
        description: Its port.
        type: int
        required: true
      token:
        description: What it asks for before it sends anything.
        type: str
        required: true
  environment:
    description: The variables for O(environment_file). Without it, the file is left alone.
    type: dict
  environment_file:
    description: The file that units read with C(EnvironmentFile=).
    type: path
    default: /etc/sparkrig/runtime.env
  root:
    description: The folder of the trees and of the symlink C(current).
    type: path
    default: /opt/sparkrig
  record:
    description: The file that records which trees were switched to.
    type: path
    default: /var/lib/sparkrig/runtime.json
  keep:
    description: How many trees stay on the node, the current one included.
    type: int
    default: 2
  verify_full:
    description: Hash every file of a tree that is there instead of comparing paths, sizes and modes.
    type: bool
    default: false
seealso:
  - module: sparkrig.serving.runtime_archive
"""

EXAMPLES = r"""
---
- name: Install a runtime where it is missing, and switch to it
  sparkrig.serving.runtime_tree:
    digest: 52a3cdf2bbc18c6a
    tree_sha256: 17997538ebb7fcd3ff85eaf81d2faf7e47a35327fb496ec84b6d6a8d2efbdcdc
    target: {python: "3.11", machine: x86_64, glibc: "2.34"}
    source: ~/.cache/sparkrig/runtime/52a3cdf2bbc18c6a.tar
    environment:
      HF_HUB_OFFLINE: "1"

- name: Go back to the runtime that was current before
  sparkrig.serving.runtime_tree:
    state: previous
"""

RETURN = r"""
actions:
  description: What was done, or would be done in check mode, one sentence each.
  returned: always
  type: list
  elements: str
  sample: ["unpacked the runtime 52a3cdf2bbc18c6a", "switched current from nothing to 52a3cdf2bbc18c6a"]
launcher:
  description: Which run has the launch lock of the node; empty when none has.
  returned: success
  type: str
  sample: 0f6b3c1e8a4d2f70
missing:
  description: Whether the tree is not there and no archive was given. Nothing was changed then.
  returned: when O(state=present)
  type: bool
digest:
  description: The digest of the runtime that is current now.
  returned: when there is one, and RV(missing) is not true
  type: str
tree_sha256:
  description: What its tree hashes to.
  returned: with RV(digest)
  type: str
path:
  description: Where its tree is.
  returned: with RV(digest)
  type: str
  sample: /opt/sparkrig/runtime/52a3cdf2bbc18c6a
python:
  description: Its Python, through C(current).
  returned: with RV(digest)
  type: str
  sample: /opt/sparkrig/current/bin/python
vllm_version:
  description: The version of vLLM.
  returned: with RV(digest)
  type: str
  sample: 0.32.0+cpu.sparkrig.bf07afb0
ray_version:
  description: The version of Ray.
  returned: with RV(digest)
  type: str
  sample: 2.60.0
previous:
  description: The digest that O(state=previous) would switch to.
  returned: always
  type: str
"""

import os
import platform
import shutil
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.sparkrig.serving.plugins.module_utils._launch_lock import LOCK, parse_holder
from ansible_collections.sparkrig.serving.plugins.module_utils._runtime_environment import environment_text
from ansible_collections.sparkrig.serving.plugins.module_utils._runtime_layout import (
    MANIFEST_NAME,
    Head,
    Layout,
    TreeError,
    load_record,
    look_sha256,
    manifest_head,
    rows_of,
    stale_trees,
    store_record,
)

# What changes a tree is imported where it is needed: a node compiles what a module imports anew each time, and most
# runs find the tree as it must be.
if TYPE_CHECKING:
    from ansible_collections.sparkrig.serving.plugins.module_utils._runtime import Target
    from ansible_collections.sparkrig.serving.plugins.module_utils._runtime_nodes import NodeFacts

_ENVIRONMENT_MODE = 0o644
# How long a node waits for the one that hands the tree on to listen.
_RELAY_WAIT_S = 90.0
_DECLINE_WAIT_S = 15.0
# How long the end of another process's unpacking is waited for: the wait for a relay, and the unpacking itself.
_ABSENT_WAIT_S = 180.0


def _python_version(python: str) -> str | None:
    code = "import platform; print(platform.python_version())"
    try:
        done = subprocess.run([python, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _node_facts(minor: str) -> NodeFacts:
    from ansible_collections.sparkrig.serving.plugins.module_utils._runtime_nodes import NodeFacts

    try:
        libc = os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (OSError, ValueError):
        libc = ""
    version = _python_version(f"/usr/bin/python{minor}")
    usual = version if version is not None else _python_version("/usr/bin/python3")
    return NodeFacts(platform.machine(), libc.rpartition(" ")[2], version, usual)


def _launcher() -> str:
    """Which run has the launch lock of this node; empty when none has."""
    try:
        with open(LOCK, encoding="utf-8") as stream:
            holder = parse_holder(stream.read())
    except OSError:
        return ""
    return holder.token if holder is not None else ""


def _free_bytes(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


class Node:
    """One call of the module: what it found, what it did."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.params = module.params
        self.layout = Layout(Path(self.params["root"]), Path(self.params["record"]))
        self.changed = False
        given = self.params["launcher"]
        self.launcher: str = _launcher() if given is None else given
        # That of the tree that was found to be right.
        self.head: Head | None = None
        # Whether the tree was asked for at the node that hands it on.
        self.asked = False
        self.actions: list[str] = []
        self.before: dict[str, str] = {}
        self.after: dict[str, str] = {}

    def did(self, past: str, would: str) -> bool:
        """Note a change; whether it is to be made now."""
        self.changed = True
        self.actions.append(f"would {would}" if self.module.check_mode else past)
        return not self.module.check_mode

    def refuse_another_run(self) -> None:
        """A process of a run that was killed goes on; by now another run may have the node."""
        if _launcher() != self.launcher:
            raise TreeError(
                "another run has this node by now, or has brought it back as it was, so this one ends here; see that"
                " its Ansible is gone from the controller, then run again"
            )

    # --- the environment --------------------------------------------------------------------------------------

    def write_environment(self, text: str | None) -> None:
        if text is None:
            return
        path = Path(self.params["environment_file"])
        try:
            seen: str | None = path.read_text()
            right = path.stat().st_mode & 0o7777 == _ENVIRONMENT_MODE
        except OSError:
            seen, right = None, False
        if seen == text and right:
            return
        self.before[str(path)], self.after[str(path)] = seen or "", text
        if self.did(f"wrote {path}", f"write {path}"):
            path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            partial = path.with_name(path.name + ".partial")
            partial.write_text(text)
            partial.chmod(_ENVIRONMENT_MODE)
            partial.replace(path)

    # --- states -----------------------------------------------------------------------------------------------

    def present(self) -> dict[str, Any]:
        text = None
        if self.params["environment"] is not None:
            text = environment_text(self.params["environment"])
        digest = self.params["digest"]
        if not self.looks_right(self.layout.tree(digest)) and not self.make_right(digest):
            return self.result(missing=True)
        if self.params["relay"] is not None and not self.asked and not self.module.check_mode:
            # A run that was killed on the controller goes on here, and has brought the tree in the meantime.
            from ansible_collections.sparkrig.serving.plugins.module_utils._runtime_relay import decline

            decline(*self.relay(), _DECLINE_WAIT_S)
        if self.head is None and not self.module.check_mode:
            self.refuse_another_run()
        self.write_environment(text)
        self.make_current(digest)
        return self.result(missing=False)

    def looks_right(self, tree: Path) -> bool:
        """Whether one look shows that the tree is right; when it does not, who compares it says what is wrong."""
        if not self.params["look_sha256"] or self.params["verify_full"]:
            return False
        try:
            manifest = (tree / MANIFEST_NAME).read_bytes()
            if look_sha256(manifest, rows_of(tree)) != self.params["look_sha256"]:
                return False
            head = manifest_head(manifest)
        except (OSError, ValueError):
            return False
        if (head.digest, head.tree_sha256) != (self.params["digest"], self.params["tree_sha256"]):
            return False
        self.head = head
        return True

    def make_right(self, digest: str) -> bool:
        """Compare the tree with its manifest, and unpack it where it is not right; False when there is no archive."""
        from ansible_collections.sparkrig.serving.plugins.module_utils._runtime import Target
        from ansible_collections.sparkrig.serving.plugins.module_utils._runtime_nodes import (
            check_tree,
            install,
            load_manifest,
        )

        tree, expected = self.layout.tree(digest), self.params["tree_sha256"]
        # It has 35,000 lines, so it is read once.
        manifest = load_manifest(tree)
        problem = check_tree(tree, expected, self.params["verify_full"], manifest)
        if problem is None and manifest is not None:
            self.head = Head(manifest.digest, manifest.tree_sha256, manifest.versions)
            return True
        if tree.is_dir():
            self.actions.append(f"{problem}: it is replaced")
        self.refuse_unfit(Target(**self.params["target"]))
        archive = self.params["archive"]
        relay = self.params["relay"]
        if archive is None and relay is None and not self.module.check_mode:
            return False
        origin = f" from {relay['address']}" if relay is not None else ""
        if self.did(f"unpacked the runtime {digest}{origin}", f"unpack the runtime {digest}{origin}"):
            self.refuse_another_run()
            if relay is not None:
                install(self.layout, self.relayed, digest, expected, self.params["verify_full"])
            else:
                self.unpack(Path(archive), digest, expected)
        return True

    def relay(self) -> tuple[str, int, str]:
        from ansible_collections.sparkrig.serving.plugins.module_utils._runtime_relay import check_token

        relay = self.params["relay"]
        return relay["address"], relay["port"], check_token(relay["token"])

    def relayed(self) -> BinaryIO:
        from ansible_collections.sparkrig.serving.plugins.module_utils._runtime_relay import receive

        self.asked = True
        return receive(*self.relay(), _RELAY_WAIT_S)

    def refuse_unfit(self, target: Target) -> None:
        from ansible_collections.sparkrig.serving.plugins.module_utils._runtime_nodes import bytes_needed, check_node

        problem = check_node(_node_facts(target.python), target)
        if problem is not None:
            raise TreeError(problem)
        comes = self.params["archive"] is None and self.params["relay"] is None
        archive_bytes = self.params["archive_bytes"] if comes else 0
        needed = bytes_needed(self.params["tree_bytes"], self.params["files"], archive_bytes)
        free = _free_bytes(self.layout.trees)
        if self.params["tree_bytes"] and free < needed:
            raise TreeError(
                f"the disk of {self.layout.root} has {free / 1e9:.2f} GB free and the runtime needs"
                f" {needed / 1e9:.2f} GB (with what is shipped and a reserve): free some, or set runtime_root to a"
                " larger disk"
            )

    def unpack(self, archive: Path, digest: str, expected: str) -> None:
        from ansible_collections.sparkrig.serving.plugins.module_utils._runtime_nodes import check_tree, install

        if not archive.is_file():
            # A run that was killed on the controller goes on here, and may have used what this one shipped.
            if check_tree(self.layout.tree(digest), expected, self.params["verify_full"]) is None:
                return
            raise TreeError(f"the archive {archive} is not there")
        try:
            install(self.layout, archive, digest, expected, self.params["verify_full"])
        finally:
            if not self.params["keep_archive"]:
                archive.unlink(missing_ok=True)

    def make_current(self, digest: str) -> None:
        current = self.layout.current_digest()
        link = self.layout.current
        if current is None and (link.exists() or link.is_symlink()):
            raise TreeError(f"{link} is there and is not ours (a symlink to runtime/DIGEST): move it away")
        record = load_record(self.layout.record)
        after = record.switched_to(digest)
        if current != digest:
            past = f"switched current from {current or 'nothing'} to {digest}"
            self.before[str(link)], self.after[str(link)] = f"{current or ''}\n", f"{digest}\n"
            if self.did(past, past.replace("switched", "switch", 1)):
                from ansible_collections.sparkrig.serving.plugins.module_utils._runtime_nodes import switch

                switch(self.layout, digest)
        if after != record and not self.module.check_mode:
            store_record(self.layout.record, after)
        for stale in stale_trees(self.layout.digests(), after, max(1, self.params["keep"])):
            text = f"the runtime {stale}: only {self.params['keep']} are kept"
            if stale != digest and self.did(f"removed {text}", f"remove {text}"):
                from ansible_collections.sparkrig.serving.plugins.module_utils._runtime_nodes import remove_tree

                remove_tree(self.layout.tree(stale))

    def previous(self) -> dict[str, Any]:
        from ansible_collections.sparkrig.serving.plugins.module_utils._runtime_nodes import (
            check_tree,
            load_manifest,
            switch,
        )

        record = load_record(self.layout.record)
        current = self.layout.current_digest()
        if record.previous is None:
            raise TreeError(f"there is no runtime to go back to: {self.layout.record} knows {len(record.history)}")
        tree = self.layout.tree(record.previous)
        manifest = load_manifest(tree)
        if manifest is None:
            raise TreeError(f"the runtime {record.previous} cannot be gone back to: {tree} has no readable manifest")
        problem = check_tree(tree, manifest.tree_sha256, self.params["verify_full"], manifest)
        if problem is not None:
            raise TreeError(f"the runtime {record.previous} cannot be gone back to: {problem}")
        past = f"switched current from {current or 'nothing'} back to {record.previous}"
        self.before["current"], self.after["current"] = f"{current or ''}\n", f"{record.previous}\n"
        if self.did(past, past.replace("switched", "switch", 1)):
            switch(self.layout, record.previous)
            store_record(self.layout.record, record.switched_to(record.previous))
        return self.result()

    def goes(self, path: Path) -> bool:
        """Note that a path goes; whether it is to be done now."""
        self.before[str(path)], self.after[str(path)] = f"{path}\n", ""
        return self.did(f"removed {path}", f"remove {path}")

    def absent(self) -> dict[str, Any]:
        from ansible_collections.sparkrig.serving.plugins.module_utils._runtime_nodes import alone

        if self.layout.trees.is_dir() and not self.module.check_mode:
            with alone(self.layout, time.monotonic() + _ABSENT_WAIT_S):
                return self.remove()
        return self.remove()

    def remove(self) -> dict[str, Any]:
        from ansible_collections.sparkrig.serving.plugins.module_utils._runtime_nodes import remove_tree

        link = self.layout.current
        if link.is_symlink() and self.layout.current_digest() is not None and self.goes(link):
            link.unlink()
        # Only what bears our names: digests, and what an interrupted run left of one.
        ours = [self.layout.trees / digest for digest in self.layout.digests()]
        ours += sorted(self.layout.trees.glob("*.partial"))
        for tree in ours:
            if self.goes(tree):
                remove_tree(tree)
        for path in (self.layout.record, Path(self.params["environment_file"])):
            if path.exists() and self.goes(path):
                path.unlink()
        for folder in (self.layout.trees, self.layout.root):
            if folder.is_dir() and not any(folder.iterdir()) and self.goes(folder):
                folder.rmdir()
        return self.result()

    def result(self, missing: bool | None = None) -> dict[str, Any]:
        record = load_record(self.layout.record)
        values: dict[str, Any] = {
            "changed": self.changed,
            "actions": self.actions,
            "previous": record.previous,
            "launcher": self.launcher,
        }
        if missing is not None:
            values["missing"] = missing
        current = None if missing else self.layout.current_digest()
        head = self.head if current is not None and self.head is not None and self.head.digest == current else None
        if current is not None and head is None:
            from ansible_collections.sparkrig.serving.plugins.module_utils._runtime_nodes import load_manifest

            manifest = load_manifest(self.layout.tree(current))
            if manifest is not None:
                head = Head(manifest.digest, manifest.tree_sha256, manifest.versions)
        if head is not None:
            # The action lays it beside the rest: of a module's own path, Ansible would tell owner, mode and size.
            values["runtime"] = {
                "digest": head.digest,
                "tree_sha256": head.tree_sha256,
                "path": str(self.layout.tree(head.digest)),
                "python": str(self.layout.current / "bin" / "python"),
                "vllm_version": head.versions.get("vllm", ""),
                "ray_version": head.versions.get("ray", ""),
            }
        if self.before or self.after:
            values["diff"] = [
                {"before_header": name, "after_header": name, "before": self.before[name], "after": self.after[name]}
                for name in self.after
            ]
        return values


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "previous", "absent"], "default": "present"},
            "digest": {"type": "str"},
            "tree_sha256": {"type": "str"},
            "target": {
                "type": "dict",
                "options": {name: {"type": "str", "required": True} for name in ("python", "machine", "glibc")},
            },
            "tree_bytes": {"type": "int", "default": 0},
            "archive_bytes": {"type": "int", "default": 0},
            "files": {"type": "int", "default": 0},
            "look_sha256": {"type": "str"},
            "launcher": {"type": "str"},
            "source": {"type": "path"},
            "archive": {"type": "path"},
            "keep_archive": {"type": "bool", "default": False},
            "relay": {
                "type": "dict",
                "options": {
                    "address": {"type": "str", "required": True},
                    "port": {"type": "int", "required": True},
                    "token": {"type": "str", "required": True, "no_log": True},
                },
            },
            "environment": {"type": "dict"},
            "environment_file": {"type": "path", "default": "/etc/sparkrig/runtime.env"},
            "root": {"type": "path", "default": "/opt/sparkrig"},
            "record": {"type": "path", "default": "/var/lib/sparkrig/runtime.json"},
            "keep": {"type": "int", "default": 2},
            "verify_full": {"type": "bool", "default": False},
        },
        required_if=[("state", "present", ["digest", "tree_sha256", "target"])],
        supports_check_mode=True,
    )
    node = Node(module)
    states = {"present": node.present, "previous": node.previous, "absent": node.absent}
    try:
        result = states[module.params["state"]]()
    except (ValueError, OSError) as exc:
        module.fail_json(msg=f"The runtime is left as it was: {str(exc).rstrip('.')}.", actions=node.actions)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
