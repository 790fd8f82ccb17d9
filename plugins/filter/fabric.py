# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filter: what is wrong with the rails of all nodes together."""

from __future__ import annotations

DOCUMENTATION = r"""
name: fabric_problems
short_description: What is wrong with the rails of all nodes together
version_added: 1.0.0
author: The sparkrig engineers (@sparkrig)
description:
  - Checks the rails of all nodes against each other, on the controller, before any node is touched.
options:
  _input:
    description: Node to its C(fabric_addresses), a dict of interface to address with prefix.
    type: dict
    required: true
"""

EXAMPLES = r"""
---
- name: Refuse rails that contradict each other
  ansible.builtin.assert:
    that: (rails | sparkrig.serving.fabric_problems) | length == 0
  vars:
    rails:
      spark1: {enp1s0f0np0: 10.98.1.11/24}
      spark2: {enp1s0f0np0: 10.98.1.12/24}
"""

RETURN = r"""
_value:
  description: One sentence for each problem; empty when the rails fit.
  type: list
  elements: str
"""

import typing as t

from ansible.errors import AnsibleFilterError

from ansible_collections.sparkrig.serving.plugins.module_utils._fabric import fabric_problems


def problems(nodes: t.Any) -> list[str]:
    """The filter itself."""
    if not isinstance(nodes, t.Mapping):
        raise AnsibleFilterError(
            f"fabric_problems takes a dict of node to fabric_addresses, not {type(nodes).__name__}."
        )
    return fabric_problems(nodes)


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"fabric_problems": problems}
