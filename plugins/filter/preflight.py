# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters of role preflight: what would make a launch on these nodes fail, and where a node finds the others."""

from __future__ import annotations

import json
import time
import typing as t
from dataclasses import asdict

from ansible.errors import AnsibleFilterError

from ansible_collections.sparkrig.serving.plugins.module_utils import _preflight
from ansible_collections.sparkrig.serving.plugins.module_utils._launch_lock import holder_of
from ansible_collections.sparkrig.serving.plugins.module_utils._profile import world_size
from ansible_collections.sparkrig.serving.plugins.module_utils._verify import unreachable_reason


def _address(name: str, hostvars: t.Mapping[str, t.Any]) -> str:
    """Where Ansible connects to reach *name*."""
    return str(hostvars[name].get("ansible_host", name))


def _node(name: str, hostvars: t.Mapping[str, t.Any], checkpoint: str) -> _preflight.Node:
    """One node from what it registered as C(__preflight_node)."""
    seen = hostvars[name].get("__preflight_node", {"unreachable": True, "msg": "it gave no answer"})
    address = _address(name, hostvars)
    if "node" not in seen:
        return _preflight.Node(name, address, unreachable=unreachable_reason(str(seen.get("msg", ""))))
    return _preflight.Node(name, address, facts=seen["node"], checkpoint=checkpoint)


def _checkpoints(problems: t.Mapping[str, t.Any]) -> dict[str, str]:
    """What is wrong with the checkpoint by node, without what only follows from another node's problem."""
    texts = {name: " ".join(str(text).split()) for name, text in problems.items() if text}
    own = {name: text for name, text in texts.items() if "undefined" not in text and "no attribute" not in text}
    return own or texts


def _plan(profile: dict[str, t.Any], fit: t.Mapping[str, t.Any], controller: dict[str, t.Any]) -> _preflight.Plan:
    """What *profile* asks of the nodes; *fit* has what was planned, or why it cannot be."""
    requires = profile["requires"]
    holder, alive = holder_of(controller) if controller else (None, None)
    return _preflight.Plan(
        node_count=world_size(profile),
        memory_total_bytes=requires["memory_total_bytes"],
        disk_free_bytes=requires["disk_free_bytes"],
        device=str(profile["fit"].get("device", "cuda")),
        architecture=str(profile.get("runtime", {}).get("machine") or ""),
        needed_bytes=tuple(int(rank["needed_bytes"]) for rank in fit.get("ranks") or ()),
        refusal=" ".join(str(fit.get("refusal", "")).split()),
        holder=holder,
        alive=None if alive is None else tuple(alive),
    )


def preflight_findings(
    names: list[str],
    hostvars: t.Mapping[str, t.Any],
    profile: dict[str, t.Any],
    rails: t.Sequence[str] = (),
    fit: t.Mapping[str, t.Any] | None = None,
    checkpoint: t.Mapping[str, t.Any] | None = None,
    controller: dict[str, t.Any] | None = None,
    accepted: t.Sequence[str] = (),
) -> dict[str, t.Any]:
    """Everything that was found, as data, as a table and as sentences."""
    problems = _checkpoints(checkpoint or {})
    nodes = [_node(name, hostvars, problems.get(name, "")) for name in names]
    plan = _plan(profile, fit or {}, controller or {})
    try:
        found = _preflight.accept(_preflight.judge(nodes, plan, rails, time.time()), accepted)
    except ValueError as error:
        raise AnsibleFilterError(f"preflight: {error}.") from error
    counts = {name: sum(one.severity == name for one in found) for name in _preflight.SEVERITIES}
    report = {
        "version": 1,
        "status": _preflight.status(found),
        "profile": profile.get("name", ""),
        "nodes": names,
        "counts": counts,
        "findings": [asdict(finding) for finding in found],
    }
    return {
        **report,
        "table": _preflight.table(found),
        "sentences": {
            name: [finding.sentence for finding in _preflight.merged(found) if finding.severity == name]
            for name in _preflight.SEVERITIES
        },
        "document": json.dumps(report, indent=2, sort_keys=True) + "\n",
    }


def preflight_peers(names: list[str], hostvars: t.Mapping[str, t.Any], own: str) -> dict[str, str]:
    """The other nodes by name, as ADDRESS:PORT of their SSH servers."""
    return {
        name: f"{_address(name, hostvars)}:{hostvars[name].get('ansible_port', 22)}"
        for name in names
        if name != own and hostvars[name].get("ansible_connection", "ssh") == "ssh"
    }


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Name to function."""
        return {"preflight_findings": preflight_findings, "preflight_peers": preflight_peers}
