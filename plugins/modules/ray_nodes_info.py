#!/usr/bin/python
# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compare the nodes of a Ray cluster with the inventory."""

from __future__ import annotations

DOCUMENTATION = r"""
module: ray_nodes_info
short_description: The nodes of a Ray cluster, compared with the inventory
version_added: 0.1.0
author: The sparkrig engineers (@sparkrig)
description:
  - Asks the head's GCS for its nodes, their resources and addresses and for the versions of the cluster, and names the
    node that is missing, is there twice, carries a stale address or belongs to nobody.
  - It may run on any node. What a node cannot learn about the head from where it is, it says in one sentence, such as
    that the head does not answer or that this node's token is another than the head's.
  - Starts no driver and no job. Changes nothing and never fails because of what it finds. RV(ok) and RV(problems) tell.
extends_documentation_fragment:
  - sparkrig.serving._attributes
  - sparkrig.serving._ray_cluster.options
attributes:
  check_mode:
    support: full
  diff_mode:
    support: N/A
  idempotent:
    support: full
options:
  token_file:
    description:
      - The environment file with the secret that processes of the cluster show to each other.
      - Without it the cluster is asked without a secret.
    type: path
    default: /etc/sparkrig/ray-token.env
"""

EXAMPLES = r"""
---
- name: Are the nodes those of the inventory
  sparkrig.serving.ray_nodes_info:
    address: 10.98.1.11:26479
    nodes: {spark1: 10.98.1.11, spark2: 10.98.1.12}
  register: ray_nodes
"""

RETURN = r"""
ok:
  description: Whether the cluster has exactly the nodes of the inventory, each as it must be.
  returned: always
  type: bool
problems:
  description: One sentence for each deviation, or why the cluster could not be asked.
  returned: always
  type: list
  elements: str
  sample: ["Ray sees 3 of 4 nodes alive; missing: spark3 (10.98.1.13)"]
missing:
  description: The host names of O(nodes) without a living Ray node. Null when the cluster could not be asked.
  returned: always
  type: list
  elements: str
nodes:
  description: The nodes that Ray knows, the dead ones included. Null when the cluster could not be asked.
  returned: always
  type: list
  elements: dict
  contains:
    host:
      description: The host of O(nodes) that has this address. Null when none has.
      type: str
      returned: always
    ip:
      description: The address that the node gave itself.
      type: str
      returned: always
    name:
      description: The name that the machine calls itself.
      type: str
      returned: always
    node_id:
      description: Ray's name for the node.
      type: str
      returned: always
    alive:
      description: Whether it lives.
      type: bool
      returned: always
    cpus:
      description: The CPUs that it offers.
      type: float
      returned: always
    gpus:
      description: The GPUs that it offers.
      type: float
      returned: always
    death:
      description: Of what it died, in Ray's words.
      type: str
      returned: always
versions:
  description:
    - The versions of Python and Ray that the cluster was made with (C(cluster)) and those of who asked (C(here)).
    - Null when the cluster could not be asked.
  returned: always
  type: dict
  sample: {cluster: {python: 3.11.2, ray: 2.60.0}, here: {python: 3.11.2, ray: 2.60.0}}
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.sparkrig.serving.plugins.module_utils._ray import Table
from ansible_collections.sparkrig.serving.plugins.module_utils._ray_probe import RAY_OPTION, probe_ray


def shown(table: Table, expected: t.Mapping[str, str]) -> list[dict[str, t.Any]]:
    """The nodes as they are returned, in the order of the inventory and the unknown ones last."""
    hosts = {ip: name for name, ip in expected.items()}
    order = {ip: number for number, ip in enumerate(expected.values())}
    nodes = sorted(table.nodes, key=lambda node: (order.get(node.ip, len(order)), not node.alive, node.ip))
    return [{"host": hosts.get(node.ip), **node.as_dict()} for node in nodes]


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            **RAY_OPTION["options"],
            "token_file": {"type": "path", "default": "/etc/sparkrig/ray-token.env", "no_log": False},
        },
        supports_check_mode=True,
    )
    params = module.params
    state, problem = probe_ray(
        module.run_command, params["python"], params["address"], params["nodes"], params["token_file"]
    )
    table = state.table if state else None
    problems = state.problems if state else [problem]
    module.exit_json(
        changed=False,
        ok=not problems,
        problems=problems,
        missing=state.missing if state else None,
        nodes=shown(table, params["nodes"]) if table else None,
        versions={"cluster": table.cluster, "here": table.here} if table else None,
    )


if __name__ == "__main__":
    main()
