# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters of role preflight: what is wrong with an inventory and with its nodes, in sentences."""

from __future__ import annotations

import typing as t

from ansible_collections.sparkrig.serving.plugins.module_utils._node import (
    Node,
    Requirements,
    inventory_problems,
    node_problems,
)
from ansible_collections.sparkrig.serving.plugins.module_utils._profile import world_size
from ansible_collections.sparkrig.serving.plugins.module_utils._verify import unreachable_reason


def _requirements(profile: dict[str, t.Any]) -> Requirements:
    """What *profile* asks of every node."""
    requires = profile["requires"]
    return Requirements(world_size(profile), requires["memory_total_bytes"], requires["disk_free_bytes"])


def _address(name: str, hostvars: t.Mapping[str, t.Any]) -> str:
    """Where Ansible connects to reach *name*."""
    return str(hostvars[name].get("ansible_host", name))


def preflight_inventory(names: list[str], hostvars: t.Mapping[str, t.Any], profile: dict[str, t.Any]) -> list[str]:
    """Sentences on what is wrong with the inventory for *profile*, without reaching a node."""
    nodes = [Node(name, _address(name, hostvars)) for name in names]
    return inventory_problems(nodes, _requirements(profile))


def preflight_nodes(names: list[str], hostvars: t.Mapping[str, t.Any], profile: dict[str, t.Any]) -> list[str]:
    """Sentences on what is wrong with the nodes, from what each registered as C(__preflight_node)."""
    nodes = []
    for name in names:
        seen = hostvars[name].get("__preflight_node", {"unreachable": True, "msg": "it gave no answer"})
        if "node" not in seen:
            reason = unreachable_reason(str(seen.get("msg", "")))
            nodes.append(Node(name, _address(name, hostvars), unreachable=reason))
            continue
        fields = {key: seen["node"][key] for key in Node.__dataclass_fields__ if key in seen["node"]}
        nodes.append(Node(name, _address(name, hostvars), **fields))
    return node_problems(nodes, _requirements(profile))


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Name to function."""
        return {"preflight_inventory": preflight_inventory, "preflight_nodes": preflight_nodes}
