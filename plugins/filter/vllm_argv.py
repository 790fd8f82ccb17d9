# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters that make the command lines of the rig's units."""

from __future__ import annotations

import typing as t

from ansible.errors import AnsibleFilterError

from ansible_collections.sparkrig.serving.plugins.module_utils._ray import RayOptions, ports_of, ray_argv
from ansible_collections.sparkrig.serving.plugins.module_utils._verify import summary, unreachable_reason
from ansible_collections.sparkrig.serving.plugins.module_utils._vllm_argv import Place, systemd_command, vllm_argv


def vllm_command(
    profile: dict[str, t.Any],
    plan: dict[str, t.Any] | None = None,
    python: str = "/opt/sparkrig/current/bin/python",
    place: dict[str, t.Any] | None = None,
) -> list[str]:
    """The filter; see :func:`vllm_argv`. *place* has the fields of :class:`Place`; empty means none."""
    try:
        return vllm_argv(profile, plan, python, Place(**place) if place else None)
    except ValueError as error:
        raise AnsibleFilterError(f"vllm_argv: {error}") from error


def vllm_argv_problem(profile: dict[str, t.Any], plan: dict[str, t.Any] | None = None) -> str:
    """What is wrong with the options, in one sentence; empty when nothing is. For a role's assert."""
    try:
        vllm_argv(profile, plan)
    except ValueError as error:
        return f"Profile {profile.get('name')}: {error}."
    return ""


def ray_command(node_ip: str, **options: t.Any) -> list[str]:
    """The command of the Ray node with the address *node_ip*; the options are those of :class:`RayOptions`."""
    try:
        return ray_argv(RayOptions(**options), node_ip)
    except ValueError as error:
        raise AnsibleFilterError(f"ray_argv: {error}") from error


def ray_ports(node_ip: str, port: int, head: bool) -> list[str]:
    """ADDRESS:PORT for each port that the Ray node with the address *node_ip* listens on."""
    return [f"{node_ip}:{number}" for number in ports_of(port, head)]


def taken_ports(nodes: list[str], hostvars: t.Mapping[str, t.Any], register: str) -> list[str]:
    """NODE: port P on A is taken by ...; from what serving_state returned in the variable *register*."""
    results = {node: hostvars[node].get(register) or {} for node in nodes}
    return [f"{node}: {sentence}" for node in nodes for sentence in results[node].get("ports_taken", [])]


def node_problems(nodes: list[str], hostvars: t.Mapping[str, t.Any], register: str) -> list[str]:
    """What each node sees, each thing once, from what ray_nodes_info returned in the variable *register*."""
    found: dict[str, list[str]] = {}
    for node in nodes:
        for sentence in (hostvars[node].get(register) or {}).get("problems", []):
            found.setdefault(sentence, []).append(node)
    return [f"Seen on {', '.join(seen)}: {sentence.rstrip('.')}." for sentence, seen in found.items()]


def wait_problem(result: t.Mapping[str, t.Any] | None) -> str:
    """What wait_for_state says when what it waited for did not come; empty when it came, or was not waited for."""
    if not result or result.get("skipped") or (result.get("state") or {}).get("ready"):
        return ""
    return str(result.get("msg") or "It is not ready.")


def command_line(argv: list[str]) -> str:
    """*argv* as the value of a unit's ExecStart=."""
    try:
        return systemd_command(argv)
    except ValueError as error:
        raise AnsibleFilterError(f"systemd_command: {error}") from error


def unreachable_nodes(nodes: list[str], hostvars: t.Mapping[str, t.Any], register: str) -> dict[str, str]:
    """The nodes whose result in the variable *register* is "unreachable": name and address, and the reason."""
    found = {}
    for node in nodes:
        result = hostvars[node].get(register) or {}
        if result.get("unreachable"):
            address = hostvars[node].get("ansible_host", node)
            found[f"{node} ({address})"] = unreachable_reason(str(result.get("msg", "")))
    return found


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Name to function."""
        return {
            "node_problems": node_problems,
            "ray_argv": ray_command,
            "ray_ports": ray_ports,
            "taken_ports": taken_ports,
            "systemd_command": command_line,
            "unreachable_nodes": unreachable_nodes,
            "verify_summary": summary,
            "wait_problem": wait_problem,
            "vllm_argv": vllm_command,
            "vllm_argv_problem": vllm_argv_problem,
        }
