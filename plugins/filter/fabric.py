# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters: the rails that the inventory plans, and what is wrong with them."""

from __future__ import annotations

import typing as t

from ansible.errors import AnsibleFilterError

from ansible_collections.sparkrig.serving.plugins.module_utils import _discover
from ansible_collections.sparkrig.serving.plugins.module_utils._fabric import derive_addresses, fabric_problems


def problems(nodes: t.Any) -> list[str]:
    """The filter itself."""
    if not isinstance(nodes, t.Mapping):
        raise AnsibleFilterError(
            f"fabric_problems takes a dict of node to fabric_addresses, not {type(nodes).__name__}."
        )
    return fabric_problems(nodes)


def plan(nodes: t.Any, hostvars: t.Any) -> dict[str, dict[str, str]]:
    """The filter itself."""
    planned = {}
    for node in nodes:
        values = hostvars[node]
        addresses = values.get("fabric_addresses") or {}
        subnets = values.get("fabric_subnets") or []
        if not addresses and subnets:
            # Where the node finds its rails by itself, nobody knows their names here; the addresses count.
            names = values.get("fabric_interfaces") or [f"rail{number}" for number, _subnet in enumerate(subnets, 1)]
            index = values.get("fabric_index") or list(values["groups"]["all"]).index(node) + 1
            try:
                addresses = derive_addresses(list(names), list(subnets), int(index))
            except ValueError as error:
                raise AnsibleFilterError(f"{node}: {error}") from error
        planned[node] = addresses
    return planned


def _listed(rails: t.Mapping[str, str]) -> str:
    return ", ".join(f"{interface} {cidr}" for interface, cidr in rails.items()) or "nothing"


def wiring(reports: t.Any, known: t.Any, first_subnet: str = _discover.FIRST_SUBNET) -> dict[str, t.Any]:
    """The filter itself."""
    found = _discover.segments(reports)
    try:
        addresses = _discover.plan(found, list(reports), known, first_subnet)
    except (ValueError, IndexError) as error:
        raise AnsibleFilterError(f"fabric_wiring cannot give addresses from {first_subnet!r}: {error}") from error
    changes = [
        f"The inventory has {_listed(known[node])} for {node}; the cables say {_listed(rails)}."
        for node, rails in addresses.items()
        if known.get(node) and dict(known[node]) != rails
    ]
    return {
        "topology": _discover.topology(found, list(reports)),
        "addresses": addresses,
        "inventory": _discover.inventory_text(addresses),
        "sentences": _discover.sentences(reports, found) + changes,
    }


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"fabric_plan": plan, "fabric_problems": problems, "fabric_wiring": wiring}
