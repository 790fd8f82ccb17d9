#!/usr/bin/python
# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read what a node is: platform, memory, disk, the plan that it serves, and what a launch may trip over."""

from __future__ import annotations

DOCUMENTATION = r"""
module: node_info
short_description: What a node is, as far as serving a model is concerned
version_added: 0.1.0
author: The sparkrig engineers (@sparkrig)
description:
  - Reads the platform, the memory that really counts, the free disk and the plan that is being served.
  - The memory is the smaller of the machine's own and what its control group allows, because a node may be a container.
  - With O(details) it also reads everything else that role P(sparkrig.serving.preflight#role) judges. It is all read in
    one process, nothing is changed, and what only root may see is left out for other users.
  - The controller takes the time before and after, so the node's clock is known to be within RV(node.clock).
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
  disk_paths:
    description: Folders whose file system must have room. One that does not exist yet counts as its nearest parent.
    type: list
    elements: path
    default: [/opt, /var/lib]
  plan:
    description: The file that holds the plan that was last launched.
    type: path
    default: /var/lib/sparkrig/plan.json
  units:
    description: The units of the rig. O(plan) is served while one of them is active.
    type: list
    elements: str
    default: [sparkrig-ray.service, sparkrig-vllm.service]
  details:
    description: Whether everything that a launch may trip over is read as well. It takes a second or two.
    type: bool
    default: false
  prune_units:
    description: With O(details), units that would be pruned if they are there.
    type: list
    elements: str
    default: []
  peers:
    description: With O(details), other nodes by name, as C(ADDRESS:PORT) of their SSH servers.
    type: dict
    default: {}
  gpu_load_s:
    description:
      - With O(details), for how long each GPU is put under load to see its clocks; V(0) for not at all.
      - A GPU that somebody computes on is left alone.
    type: float
    default: 0
"""

EXAMPLES = r"""
---
- name: See what this node is
  sparkrig.serving.node_info:
  register: node
"""

RETURN = r"""
node:
  description: What the node is. Sizes are in bytes.
  returned: always
  type: dict
  contains:
    architecture:
      description: The processor architecture, as C(uname -m) prints it.
      type: str
    clock:
      description:
        - Between C(least_s) and C(most_s) the node's clock is ahead of the controller's (behind it where negative). The
          true value lies somewhere in between.
      type: dict
    details:
      description:
        - Everything else, with O(details). C(kernel), C(dgx_os), C(uptime_s), C(clock_synchronized), C(reboot),
          C(next_kernel), C(packages), C(gpu) (C(status), C(sentence), C(driver_version), C(cuda_version), C(gpus),
          C(leftovers)), C(memory) (as M(sparkrig.serving.node_memory_info) returns it, without its units),
          C(prunable_units), C(prunable_bytes), C(earlyoom), C(containers), C(leftovers), C(lock), C(peers) and
          C(privileged).
      type: dict
    disk_free_bytes:
      description: The free room on the fullest of the file systems of O(disk_paths).
      type: int
    distribution:
      description: C(ID) and C(VERSION_ID) of C(/etc/os-release).
      type: str
    hostname:
      description: The node's own host name.
      type: str
    memory_available_bytes:
      description: The memory that a new process can have.
      type: int
    memory_for_launch_bytes:
      description:
        - The memory that a launch can count on. That is RV(node.memory_available_bytes) and what the processes of
          O(units) hold, because they are restarted.
        - What a GPU driver holds for them is not seen.
      type: int
    memory_total_bytes:
      description: The memory of the node.
      type: int
    python_version:
      description: The Python that runs modules there.
      type: str
    serving_plan_sha256:
      description: The SHA-256 of O(plan) when it is being served; empty otherwise.
      type: str
  sample:
    architecture: aarch64
    disk_free_bytes: 3221225472000
    distribution: ubuntu 24.04
    hostname: spark1
    memory_available_bytes: 126300000000
    memory_for_launch_bytes: 126300000000
    memory_total_bytes: 130663821312
    python_version: 3.12.3
    serving_plan_sha256: ""
"""

import hashlib
import os
import platform
import time
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.sparkrig.serving.plugins.module_utils import _preflight_probe
from ansible_collections.sparkrig.serving.plugins.module_utils._launch_ground import memory_now, read_text
from ansible_collections.sparkrig.serving.plugins.module_utils._node import belongs_to, held_bytes


def free_bytes(path: str) -> int:
    """The room that there is on the file system of *path*, or of its nearest parent that exists."""
    while not os.path.exists(path):
        path = os.path.dirname(path)
    state = os.statvfs(path)
    return state.f_bavail * state.f_frsize


def distribution() -> str:
    """``ID VERSION_ID`` of the operating system."""
    fields = dict(line.split("=", 1) for line in (read_text("/etc/os-release") or "").splitlines() if "=" in line)
    return " ".join(fields.get(name, "").strip('"') for name in ("ID", "VERSION_ID")).strip()


def serving_plan(module: AnsibleModule) -> str:
    """The digest of the plan that this node serves right now, or an empty string."""
    plan = module.params["plan"]
    if not os.path.isfile(plan):
        return ""
    # Its status is 0 when one of them is active: without Ray there is the engine's unit alone, on a worker Ray's alone.
    none_active, _out, _err = module.run_command(["systemctl", "is-active", "--quiet", *module.params["units"]])
    if none_active:
        return ""
    with open(plan, "rb") as stream:
        return hashlib.sha256(stream.read()).hexdigest()


def rig_memory(units: list[str]) -> int:
    """What all processes of *units* hold together, in bytes; of other users' processes only root sees it."""
    total_bytes = 0
    for entry in os.listdir("/proc"):
        # A process may end between any two of these steps: then there is nothing to read.
        if entry.isdigit() and belongs_to(read_text(f"/proc/{entry}/cgroup") or "", units):
            total_bytes += held_bytes(read_text(f"/proc/{entry}/smaps_rollup") or "")
    return total_bytes


def node_state(module: AnsibleModule) -> dict[str, t.Any]:
    """Everything that the module returns."""
    params = module.params
    try:
        seen = memory_now()
    except ValueError as error:
        module.fail_json(msg=f"The memory of {platform.node()} cannot be read: {error}.")
    state = {
        "architecture": platform.machine(),
        "disk_free_bytes": min(free_bytes(path) for path in params["disk_paths"]),
        "distribution": distribution(),
        "hostname": platform.node(),
        "memory_available_bytes": seen.available_bytes,
        "memory_for_launch_bytes": seen.available_bytes + rig_memory(params["units"]),
        "memory_total_bytes": seen.total_bytes,
        "python_version": platform.python_version(),
        "serving_plan_sha256": serving_plan(module),
    }
    if params["details"]:
        module.run_command_environ_update = {"LANGUAGE": "C", "LC_ALL": "C"}
        try:
            state["details"] = _preflight_probe.look(
                lambda words: module.run_command(list(words)),
                module.get_bin_path,
                params["units"],
                params["prune_units"],
                params["peers"],
                params["gpu_load_s"],
            )
        except ValueError as error:
            module.fail_json(msg=f"{platform.node()} cannot be looked at: {error}.")
    return state


def main() -> None:
    """Entry point."""
    # The controller bounds the node's clock by these two; module time is no part of the way between them.
    begin = time.time()
    module = AnsibleModule(
        argument_spec={
            "disk_paths": {"type": "list", "elements": "path", "default": ["/opt", "/var/lib"]},
            "plan": {"type": "path", "default": "/var/lib/sparkrig/plan.json"},
            "units": {
                "type": "list",
                "elements": "str",
                "default": ["sparkrig-ray.service", "sparkrig-vllm.service"],
            },
            "details": {"type": "bool", "default": False},
            "prune_units": {"type": "list", "elements": "str", "default": []},
            "peers": {"type": "dict", "default": {}},
            "gpu_load_s": {"type": "float", "default": 0},
        },
        supports_check_mode=True,
    )
    state = node_state(module)
    module.exit_json(changed=False, node={**state, "clock": {"begin": begin, "end": time.time()}})


if __name__ == "__main__":
    main()
