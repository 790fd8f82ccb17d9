# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters around what keeps the rig up, and around how it is."""

from __future__ import annotations

import re
import typing as t
from pathlib import Path

from ansible.errors import AnsibleFilterError

from ansible_collections.sparkrig.serving.plugins.module_utils._firewall import rules
from ansible_collections.sparkrig.serving.plugins.module_utils._rig_user import hardening
from ansible_collections.sparkrig.serving.plugins.module_utils._status import status
from ansible_collections.sparkrig.serving.plugins.module_utils._verify import check_node, unreachable_reason

PACKAGE = "ansible_collections/sparkrig/serving/plugins/module_utils"
FOLDER = Path(__file__).parent.parent / "module_utils"


def node_module(name: str, library: str) -> dict[str, str]:
    """The file below *library* from which a program on a node imports this module of the collection."""
    path = FOLDER / f"{name}.py"
    if not re.fullmatch(r"_[a-z_]+", str(name)) or not path.is_file():
        raise AnsibleFilterError(f"node_module: {name!r} is no module of this collection")
    return {"path": f"{library}/{PACKAGE}/{name}.py", "content": path.read_text(encoding="utf-8")}


def status_lines(nodes: list[str], hostvars: t.Mapping[str, t.Any], register: str) -> list[str]:
    """The table of all nodes from what rig_status returned in the variable *register*."""
    results = {node: hostvars[node].get(register) or {} for node in nodes}
    away = {
        node: unreachable_reason(str(result.get("msg", "")))
        for node, result in results.items()
        if result.get("unreachable")
    }
    return status(nodes, {node: result for node, result in results.items() if "units" in result}, away)


def unit_hardening(user: str) -> str:
    """The lines of a unit's [Service] section that keep a process of the rig in its place."""
    return hardening(user)


def firewall_rules(rails: list[str], **options: t.Any) -> str:
    """The rig's nftables table for a node with these *rails*; see :func:`rules`."""
    try:
        return rules(rails, **options)
    except ValueError as error:
        raise AnsibleFilterError(f"firewall_rules: {error}") from error


def verify_node_checks(
    nodes: list[str],
    hostvars: t.Mapping[str, t.Any],
    register: str,
    plan: t.Mapping[str, t.Any] | None = None,
    object_store_bytes: int | None = None,
    memory_percent: float = 10.0,
) -> list[dict[str, t.Any]]:
    """Every node beside the plan, from what rig_status returned in the variable *register*."""
    ranks = list((plan or {}).get("ranks") or [])
    checks: list[dict[str, t.Any]] = []
    for index, node in enumerate(nodes):
        seen = hostvars[node].get(register) or {}
        if "units" in seen:
            rank = ranks[index] if index < len(ranks) else None
            checks += [check.as_dict() for check in check_node(node, seen, rank, object_store_bytes, memory_percent)]
    return checks


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Name to function."""
        return {
            "firewall_rules": firewall_rules,
            "node_module": node_module,
            "status_lines": status_lines,
            "unit_hardening": unit_hardening,
            "verify_node_checks": verify_node_checks,
        }
