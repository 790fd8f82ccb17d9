# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters around what keeps the rig up, and around how it is."""

from __future__ import annotations

import re
import typing as t
from pathlib import Path

from ansible.errors import AnsibleFilterError

from ansible_collections.sparkrig.serving.plugins.module_utils._status import status
from ansible_collections.sparkrig.serving.plugins.module_utils._verify import unreachable_reason

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


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Name to function."""
        return {"node_module": node_module, "status_lines": status_lines}
