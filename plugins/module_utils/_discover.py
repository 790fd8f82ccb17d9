# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which rail of which node is cabled to which: the frames that are sent, and what follows from what arrives. No I/O.

Every end sends two kinds of frames. A broadcast reaches everybody behind the same switch. A frame to the address of
the nearest bridge is never passed on by a switch, so whoever hears it is at the other end of the cable.

Private to this collection: import it from nowhere else.
"""

from __future__ import annotations

import ipaddress
import json
import typing as t
from dataclasses import dataclass

# For local experiments: no other protocol has this type.
ETHERTYPE = 0x88B5
BROADCAST = "ff:ff:ff:ff:ff:ff"
NEAREST_BRIDGE = "01:80:c2:00:00:0e"
MAGIC = b"sparkrig"
FIRST_SUBNET = "192.168.100.0/24"
End = tuple[str, str]


@dataclass(frozen=True)
class Heard:
    """A frame that arrived: on which interface of ours, and from which end."""

    on: str
    node: str
    interface: str
    direct: bool


@dataclass(frozen=True)
class Segment:
    """Ends that reach each other: node to its interfaces there, the lower PCIe function first."""

    ends: dict[str, list[str]]
    cable: bool


def mac_bytes(mac: str) -> bytes:
    """A MAC address as it stands in a frame."""
    return bytes(int(part, 16) for part in mac.split(":"))


def frame(destination: str, source: str, run: str, node: str, interface: str) -> bytes:
    """A whole Ethernet frame, padded to the least that is allowed."""
    direct = destination == NEAREST_BRIDGE
    content = json.dumps({"run": run, "node": node, "interface": interface, "direct": direct}).encode()
    header = mac_bytes(destination) + mac_bytes(source) + ETHERTYPE.to_bytes(2, "big")
    return (header + MAGIC + len(content).to_bytes(2, "big") + content).ljust(60, b"\0")


def parse_frame(data: bytes, run: str, on: str) -> Heard | None:
    """What a frame says, None when it is none of this run."""
    body = data[14:]
    if data[12:14] != ETHERTYPE.to_bytes(2, "big") or not body.startswith(MAGIC):
        return None
    size = int.from_bytes(body[len(MAGIC) : len(MAGIC) + 2], "big")
    try:
        content = json.loads(body[len(MAGIC) + 2 : len(MAGIC) + 2 + size])
        if content["run"] != run:
            return None
        return Heard(on, str(content["node"]), str(content["interface"]), bool(content["direct"]))
    except (ValueError, KeyError, TypeError):
        return None


def _order(interface: str, pci: str) -> tuple[str, str, str]:
    """Ports in their order, and of each port the function in the lower PCIe domain first."""
    domain, _colon, rest = pci.partition(":")
    return rest, domain, interface.lower()


def segments(reports: t.Mapping[str, t.Mapping[str, t.Any]]) -> list[Segment]:
    """The segments, from what every node reported: its ``ends`` and what it ``heard``."""
    pci = {(node, end["interface"]): end.get("pci", "") for node, report in reports.items() for end in report["ends"]}
    neighbours: dict[End, set[End]] = {end: set() for end in pci}
    direct: set[frozenset[End]] = set()
    for node, report in reports.items():
        for heard in report["heard"]:
            one, other = (node, heard["on"]), (heard["node"], heard["interface"])
            if one in neighbours and other in neighbours:
                neighbours[one].add(other)
                neighbours[other].add(one)
                if heard["direct"]:
                    direct.add(frozenset((one, other)))
    found = []
    left = set(pci)
    for start in sorted(pci, key=lambda end: (list(reports).index(end[0]), _order(end[1], pci[end]))):
        if start not in left:
            continue
        group, waiting = {start}, [start]
        while waiting:
            more = neighbours[waiting.pop()] - group
            group |= more
            waiting += more
        left -= group
        nodes = [node for node in reports if any(end[0] == node for end in group)]
        if len(nodes) < 2:
            continue
        ends: dict[str, list[str]] = {}
        for node in nodes:
            ordered = sorted((_order(name, pci[node, name]), name) for owner, name in group if owner == node)
            ends[node] = [name for _key, name in ordered]
        crossing = [frozenset((one, other)) for one in group for other in neighbours[one] if one[0] != other[0]]
        found.append(Segment(ends, len(nodes) == 2 and all(pair in direct for pair in crossing)))
    return found


def rails_of(segment: Segment) -> list[dict[str, str]]:
    """The rails of a segment: the first interface of every node, the second of every node, and so on."""
    count = max(len(interfaces) for interfaces in segment.ends.values())
    return [
        {node: interfaces[number] for node, interfaces in segment.ends.items() if number < len(interfaces)}
        for number in range(count)
    ]


def topology(found: t.Sequence[Segment], nodes: t.Sequence[str]) -> str:
    """What the segments are together, in words."""
    if not found:
        return "nothing is cabled"
    if all(not segment.cable and len(segment.ends) == len(nodes) for segment in found):
        return "one switch"
    cables = {frozenset(segment.ends) for segment in found if segment.cable}
    if len(cables) == 1 and len(nodes) == 2 and all(segment.cable for segment in found):
        return "a direct cable"
    degrees = [sum(node in cable for cable in cables) for node in nodes]
    if all(segment.cable for segment in found) and len(nodes) > 2 and degrees == [2] * len(nodes):
        reached, more = set[str](), {nodes[0]}
        while more:
            reached |= more
            more = {node for cable in cables if cable & reached for node in cable} - reached
        if len(reached) == len(nodes):
            return f"a ring of {len(nodes)}"
    return "a mixture"


def _kept(rail: t.Mapping[str, str], known: t.Mapping[str, t.Mapping[str, str]]) -> dict[str, str]:
    """The addresses that the inventory already has for this rail, if they can stay: one subnet, no address twice."""
    addresses = {node: known.get(node, {}).get(interface, "") for node, interface in rail.items()}
    try:
        parsed = [ipaddress.IPv4Interface(cidr) for cidr in addresses.values()]
    except ValueError:
        return {}
    one_subnet = len({interface.network for interface in parsed}) == 1
    return addresses if one_subnet and len({interface.ip for interface in parsed}) == len(parsed) else {}


def plan(
    found: t.Sequence[Segment],
    nodes: t.Sequence[str],
    known: t.Mapping[str, t.Mapping[str, str]],
    first_subnet: str = FIRST_SUBNET,
) -> dict[str, dict[str, str]]:
    """Node to its rails with addresses. Those of the inventory stay where they fit; others follow from the order."""
    rails = [rail for segment in found for rail in rails_of(segment) if len(rail) > 1]
    addresses: dict[str, dict[str, str]] = {node: {} for node in nodes}
    taken = {ipaddress.IPv4Interface(cidr).network for rail in rails for cidr in _kept(rail, known).values()}
    free = ipaddress.IPv4Network(first_subnet)
    for rail in rails:
        kept = _kept(rail, known)
        if not kept:
            while any(free.overlaps(network) for network in taken):
                free = ipaddress.IPv4Network((int(free.network_address) + free.num_addresses, free.prefixlen))
            taken.add(free)
            kept = {node: f"{free[list(nodes).index(node) + 1]}/{free.prefixlen}" for node in rail}
        for node, interface in rail.items():
            addresses[node][interface] = kept[node]
    return addresses


def sentences(reports: t.Mapping[str, t.Mapping[str, t.Any]], found: t.Sequence[Segment]) -> list[str]:
    """What was found, for a person: every segment, and every end that hears nobody."""
    lines = [f"The rails are {topology(found, list(reports))}."]
    placed = {(node, name) for segment in found for node, names in segment.ends.items() for name in names}
    for segment in found:
        ends = " - ".join(f"{node} {'+'.join(names)}" for node, names in segment.ends.items())
        lines.append(f"{'Cable' if segment.cable else 'Switch'}: {ends}")
        counts = {node: len(names) for node, names in segment.ends.items()}
        most = max(counts.values())
        lines += [
            f"{node} has {count} of {most} interfaces there; look for the missing one (a cold boot can bring it back)."
            for node, count in counts.items()
            if count < most
        ]
    for node, report in reports.items():
        for end in report["ends"]:
            if (node, end["interface"]) not in placed:
                why = "hears nobody" if end["carrier"] else "has no carrier"
                lines.append(f"{node} {end['interface']} {why}; it is left out.")
            elif end.get("lldp"):
                lines.append(f"{node} {end['interface']} is at {end['lldp']} (LLDP).")
    return lines


def parse_lldp(text: str) -> dict[str, str]:
    """Interface to neighbour and port, from ``lldpctl -f json0``; empty for what is no such answer."""
    try:
        blocks = [block for entry in json.loads(text)["lldp"] for block in entry.get("interface", [])]
        return {
            block["name"]: f"{block['chassis'][0]['name'][0]['value']} port {block['port'][0]['id'][0]['value']}"
            for block in blocks
        }
    except (ValueError, KeyError, TypeError, IndexError):
        return {}


def inventory_text(addresses: t.Mapping[str, t.Mapping[str, str]]) -> str:
    """The inventory's rail part."""
    lines = ["---", "# Written by sparkrig.serving.discover. Changes are overwritten.", "all:", "  hosts:"]
    for node, rails in addresses.items():
        lines += [f"    {node}:", "      fabric_addresses:" if rails else "      fabric_addresses: {}"]
        lines += [f"        {interface}: {cidr}" for interface, cidr in rails.items()]
    return "\n".join(lines) + "\n"
