# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filters of the role checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError

from ansible_collections.sparkrig.serving.plugins.module_utils._spread import spread_jobs, spread_plan


def _of_nodes(nodes: Any, hostvars: Any, name: str) -> dict[str, Any]:
    """The variable *name* of each node."""
    if isinstance(nodes, str) or not isinstance(nodes, Sequence):
        raise AnsibleFilterError(f"checkpoint filters need a list of nodes, got {type(nodes).__name__}")
    return {str(node): hostvars[node].get(name) for node in nodes}


def checkpoint_plan(nodes: Any, hostvars: Any, name: str, reserve_bytes: int = 0) -> dict[str, Any]:
    """What has to be copied to make every node whole."""
    looked = {node: value for node, value in _of_nodes(nodes, hostvars, name).items() if value}
    try:
        plan = spread_plan(
            [str(node) for node in nodes], {node: value["folders"] for node, value in looked.items()}, reserve_bytes
        )
    except ValueError as error:
        raise AnsibleFilterError(f"checkpoint_plan: {error}") from error
    # What is whole and still cannot be served, with the nodes that say so.
    said: dict[str, list[str]] = {}
    for node in plan["whole"]:
        said.setdefault(looked[node].get("problem", ""), []).append(node)
    return {**plan, "unfit": [f"{', '.join(names)}: {problem}" for problem, names in said.items() if problem]}


def checkpoint_jobs(nodes: Any, hostvars: Any, name: str, addresses_name: str, **options: Any) -> dict[str, Any]:
    """Each node's part of the copy."""
    looks = {node: value["folders"] for node, value in _of_nodes(nodes, hostvars, name).items() if value}
    addresses: Mapping[str, Any] = _of_nodes(nodes, hostvars, addresses_name)
    try:
        return spread_jobs([str(node) for node in nodes], looks, addresses, options)
    except ValueError as error:
        raise AnsibleFilterError(f"checkpoint_jobs: {error}") from error


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"checkpoint_plan": checkpoint_plan, "checkpoint_jobs": checkpoint_jobs}
