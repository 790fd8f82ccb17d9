#!/usr/bin/python
# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One node's part of a copy that runs around the nodes, as a transient systemd unit."""

from __future__ import annotations

DOCUMENTATION = r"""
module: checkpoint_spread
short_description: Copy a checkpoint from node to node over the rails
version_added: 0.1.0
author: The sparkrig engineers (@sparkrig)
description:
  - Runs this node's part of a copy that goes around a ring of nodes. Each node passes on what it receives while it
    receives it, so every link carries every byte once and three copies take about as long as one.
  - The copy is the transient unit C(sparkrig-spread.service). It outlives a lost connection to the controller; its
    journal tells what it did. Files grow under a hidden name, are hashed as they arrive and get their name when the
    hash is that of the manifest. An interrupted copy is continued by the next one.
  - The unit conflicts with those of the rig, so systemd ends the copy when one of them is started.
extends_documentation_fragment:
  - sparkrig.serving._attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: none
    description: O(state=started) always starts a copy; the role asks for one only when something is missing.
options:
  state:
    description:
      - V(ready) says in RV(running) what speaks against a copy, and changes nothing.
      - V(status) says how far it is, in the words of M(sparkrig.serving.wait_for_state), and changes nothing.
      - V(started) starts it, V(stopped) ends it; what was copied stays.
    type: str
    choices: [ready, started, status, stopped]
    required: true
  job:
    description: This node's part, from the filter C(checkpoint_jobs). Needed for O(state=started).
    type: dict
  key:
    description: By what the nodes of this copy know each other; the same on all of them. Never shown.
    type: str
  rig_units:
    description: The units that must not run meanwhile.
    type: list
    elements: str
    default: [sparkrig-ray.service, sparkrig-vllm.service]
"""

EXAMPLES = r"""
---
- name: Take and give
  sparkrig.serving.checkpoint_spread:
    state: started
    job: "{{ jobs[inventory_hostname] }}"
    key: "{{ key_of_this_copy }}"
"""

RETURN = r"""
actions:
  description: What was done, one sentence each.
  returned: always
  type: list
  elements: str
  sample: ["sparkrig-spread.service: started"]
running:
  description: Those of O(rig_units) that run. Nothing is copied meanwhile.
  returned: O(state=ready)
  type: list
  elements: str
  sample: []
ready:
  description: Whether the copy is done on this node.
  returned: O(state=status)
  type: bool
failed_state:
  description: Whether it has failed.
  returned: O(state=status)
  type: bool
message:
  description: How far it is.
  returned: O(state=status)
  type: str
sentence:
  description: Why it failed. Empty when it did not.
  returned: O(state=status)
  type: str
status:
  description: Bytes, files and seconds.
  returned: O(state=status)
  type: dict
"""

import json
import os
import sys
import typing as t
import zipfile

from ansible.module_utils.basic import AnsibleModule

# Imported, so that Ansible sends both along; the unit runs them from an archive of its own.
from ansible_collections.sparkrig.serving.plugins.module_utils import _manifest, _spread_peer
from ansible_collections.sparkrig.serving.plugins.module_utils._rig_unit import SHOWN_PROPERTIES, UnitState, parse_show

UNIT = "sparkrig-spread.service"
# Gone after a reboot, as the copy is.
FOLDER = "/run/sparkrig-spread"
PACKAGE = "ansible_collections/sparkrig/serving/plugins/module_utils"


def write_archive(path: str) -> None:
    """The copy's own program: the two cores and their package, as a file that Python can run."""
    with zipfile.ZipFile(path, "w") as archive:
        folder = ""
        for part in PACKAGE.split("/"):
            folder += part + "/"
            archive.writestr(folder + "__init__.py", "")
        for core in (_manifest, _spread_peer):
            name = core.__name__.rpartition(".")[2]
            loader: t.Any = core.__loader__
            archive.writestr(f"{folder}{name}.py", loader.get_source(core.__name__))
        start = f"import sys\nfrom {_spread_peer.__name__} import main\nraise SystemExit(main(*sys.argv[1:3]))\n"
        archive.writestr("__main__.py", start)


class Copy:
    """The unit on this node."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.units: list[str] = module.params["rig_units"]
        self.systemctl = module.get_bin_path("systemctl", required=True)

    def run(self, *command: str) -> str:
        """The output of a command, or the end of the module with what it said."""
        code, out, err = self.module.run_command(list(command), environ_update={"LC_ALL": "C"})
        if code != 0:
            self.module.fail_json(
                msg=f"'{' '.join(command[:2])}' ended with {code}: {(err or out).strip()}; see `journalctl -u {UNIT}`",
                rc=code,
            )
        return str(out)

    def show(self, unit: str) -> UnitState:
        return parse_show(self.run(self.systemctl, "show", f"--property={','.join(SHOWN_PROPERTIES)}", unit))

    def running(self) -> list[str]:
        """What speaks against a copy now."""
        return [unit for unit in self.units if self.show(unit).runs]

    def start(self) -> dict[str, t.Any]:
        running = self.running()
        if running:
            self.module.fail_json(
                msg=f"{' and '.join(running)} runs on this node, and a copy would take its memory and its links; stop "
                "the rig first (ansible-playbook sparkrig.serving.stop), then run again"
            )
        if self.module.check_mode:
            return {"changed": True, "actions": [f"{UNIT}: would be started"]}
        actions = self.stop()
        os.makedirs(FOLDER, mode=0o700, exist_ok=True)
        job = {**self.module.params["job"], "key": self.module.params["key"]}
        paths = {name: os.path.join(FOLDER, name) for name in ("peer.pyz", "job.json", "status.json")}
        write_archive(paths["peer.pyz"])
        for name, value in (("job.json", job), ("status.json", {"state": "running"})):
            descriptor = os.open(paths[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
                json.dump(value, stream)
        self.run(
            self.module.get_bin_path("systemd-run", required=True),
            f"--unit={UNIT}",
            "--description=Copy of the checkpoint from node to node",
            # With an order between them systemd waits for the end of the copy before it starts the other.
            f"--property=Conflicts={' '.join(self.units)}",
            f"--property=Before={' '.join(self.units)}",
            "--property=OOMPolicy=stop",
            "--setenv=PYTHONDONTWRITEBYTECODE=1",
            "--",
            sys.executable,
            "-I",
            *paths.values(),
        )
        return {"changed": True, "actions": [*actions, f"{UNIT}: started"]}

    def stop(self) -> list[str]:
        """End a copy that runs, and forget one that failed."""
        state = self.show(UNIT)
        if state.load == "not-found":
            return []
        if not self.module.check_mode:
            self.run(self.systemctl, "stop", UNIT)
            self.module.run_command([self.systemctl, "reset-failed", UNIT])
        return [f"{UNIT}: stopped, what it copied is kept"] if state.runs else []

    def status(self) -> dict[str, t.Any]:
        """How far it is; a unit that is gone without a last word has failed."""
        # In this order: a unit that ends in between has written its last word.
        runs = self.show(UNIT).runs
        try:
            with open(os.path.join(FOLDER, "status.json"), encoding="utf-8") as stream:
                status = json.load(stream)
        except FileNotFoundError:
            status = {"state": "none"}
        state, sentence = status["state"], str(status.get("sentence", ""))
        if state == "running" and not runs:
            sentence = f"{UNIT} ended without a word, perhaps it was stopped or killed; see `journalctl -u {UNIT}`"
            state = "failed"
        elif state == "none":
            state, sentence = "failed", "no copy was started on this node since its last boot"
        return {
            "changed": False,
            "actions": [],
            "ready": state == "done",
            "failed_state": state == "failed",
            "message": str(status.get("message", "starting")),
            "sentence": sentence,
            "status": status,
        }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["ready", "started", "status", "stopped"], "required": True},
            "job": {"type": "dict"},
            "key": {"type": "str", "no_log": True},
            "rig_units": {
                "type": "list",
                "elements": "str",
                "default": ["sparkrig-ray.service", "sparkrig-vllm.service"],
            },
        },
        required_if=[("state", "started", ("job", "key"))],
        supports_check_mode=True,
    )
    copy = Copy(module)
    state = module.params["state"]
    if state == "ready":
        module.exit_json(changed=False, actions=[], running=copy.running())
    if state == "status":
        module.exit_json(**copy.status())
    if state == "started":
        module.exit_json(**copy.start())
    actions = copy.stop()
    module.exit_json(changed=bool(actions), actions=actions or [f"{UNIT}: does not run"])


if __name__ == "__main__":
    main()
