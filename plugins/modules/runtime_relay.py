#!/usr/bin/python
# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Hand a runtime's tree on to other nodes, over the fabric."""

from __future__ import annotations

DOCUMENTATION = r"""
module: runtime_relay
short_description: Hand a runtime's tree on to other nodes
version_added: 0.1.0
author: The sparkrig engineers (@sparkrig)
description:
  - Listens on one address, sends the tree to each node that knows the token, to all of them at once, and ends when as
    many have taken it as were announced. Nothing on the node is changed.
  - To be run with C(async), while the other nodes run P(sparkrig.serving.runtime_tree#module) with its option C(relay).
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
  digest:
    description: The runtime's digest.
    type: str
    required: true
  address:
    description: The address to listen on, best that of a rail.
    type: str
    required: true
  port:
    description: The port to listen on.
    type: int
    required: true
  token:
    description: What a node has to know, 16 to 64 letters and digits.
    type: str
    required: true
  receivers:
    description: How many nodes take the tree.
    type: int
    required: true
  timeout_s:
    description: When to give up, in seconds.
    type: int
    default: 1800
  root:
    description: The folder of the trees.
    type: path
    default: /opt/sparkrig
seealso:
  - module: sparkrig.serving.runtime_tree
"""

EXAMPLES = r"""
---
- name: Hand the runtime on to three nodes
  sparkrig.serving.runtime_relay:
    digest: 52a3cdf2bbc18c6a
    address: 10.98.1.11
    port: 26600
    token: "{{ relay_token }}"
    receivers: 3
  async: 1800
  poll: 0
"""

RETURN = r"""
actions:
  description: What was done, in one sentence.
  returned: always
  type: list
  elements: str
  sample: ["handed the runtime 52a3cdf2bbc18c6a on to 3 nodes"]
sent:
  description: How many nodes took all of it.
  returned: always
  type: int
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.sparkrig.serving.plugins.module_utils._runtime_layout import Layout
from ansible_collections.sparkrig.serving.plugins.module_utils._runtime_relay import check_token, serve


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "digest": {"type": "str", "required": True},
            "address": {"type": "str", "required": True},
            "port": {"type": "int", "required": True},
            "token": {"type": "str", "required": True, "no_log": True},
            "receivers": {"type": "int", "required": True},
            "timeout_s": {"type": "int", "default": 1800},
            "root": {"type": "path", "default": "/opt/sparkrig"},
        },
        supports_check_mode=True,
    )
    params = module.params
    digest, receivers = params["digest"], params["receivers"]
    if module.check_mode:
        words = f"would hand the runtime {digest} on to {receivers} nodes"
        module.exit_json(changed=False, actions=[words], sent=0)
    try:
        tree = Layout(Path(params["root"]), Path("/nowhere")).tree(digest)
        token = check_token(params["token"])
        sent = serve(tree, params["address"], params["port"], token, receivers, params["timeout_s"])
    except (ValueError, OSError) as exc:
        module.fail_json(msg=f"The runtime {digest} is not handed on: {str(exc).rstrip('.')}.")
    if sent < receivers:
        module.fail_json(
            msg=f"Only {sent} of {receivers} nodes took the runtime {digest} within {params['timeout_s']} s: see what"
            " they say."
        )
    module.exit_json(changed=False, actions=[f"handed the runtime {digest} on to {sent} nodes"], sent=sent)


if __name__ == "__main__":
    main()
