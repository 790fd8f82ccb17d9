# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rig's own nftables table: who may reach Ray, NCCL, Gloo and the engine, and who the API.

Private to the collection. The table says only something about the rig's ports; what else a node serves is its owner's
business, and SSH is never touched.
"""

from __future__ import annotations

import ipaddress
import typing as t

if t.TYPE_CHECKING:
    from collections.abc import Sequence

TABLE = "sparkrig"
DRAIN_TABLE = "sparkrig_drain"
# To nft: ends with 0 where the API is closed to new requests.
ASK_DRAINED = ("list", "table", "inet", DRAIN_TABLE)

# The engine's processes listen on ports that the kernel picks: with an engine over several nodes about forty a node.
EPHEMERAL = (32768, 60999)
# Where a rank without Ray waits for the others.
RENDEZVOUS = (29500, 29599)


def ray_ports(port: int, worker_ports: int = 50) -> tuple[int, int]:
    """The first and the last port of a Ray cluster whose GCS has *port*: the agents' and the workers' are above it."""
    return port, port + 20 + worker_ports


def _networks(values: Sequence[str], what: str) -> list[str]:
    networks = []
    for value in values:
        try:
            network = ipaddress.ip_network(str(value), strict=False)
        except ValueError as error:
            raise ValueError(f"{what} has {value!r}, which is no address or network") from error
        networks.append(str(network))
    return sorted(set(networks))


def _set(family: int, networks: Sequence[str]) -> str:
    ours = [network for network in networks if ipaddress.ip_network(network).version == family]
    return "{ " + ", ".join(ours) + " }" if ours else ""


def _accept(prefix: str, networks: Sequence[str], suffix: str = "") -> list[str]:
    lines = []
    for family, word in ((4, "ip"), (6, "ip6")):
        members = _set(family, networks)
        if members:
            lines.append(f"    {prefix}{word} saddr {members} {suffix}accept")
    return lines


def rules(
    rails: Sequence[str], peers: Sequence[str], ray_port: int, api_port: int, api_from: Sequence[str], api_here: bool
) -> str:
    """The table as nft reads it.

    *rails* are this node's interfaces to the fabric, *peers* the addresses of all nodes there, *api_from* networks that
    may use the API, on the node that has it (*api_here*). Raises ValueError for what is no address, and without a rail.
    """
    if not rails or not peers:
        raise ValueError("without a rail and the addresses of the nodes on it, a firewall would cut the rig in pieces")
    for rail in rails:
        if not rail or any(sign in rail for sign in ' "\n\\'):
            raise ValueError(f"{rail!r} is no name of an interface")
    first, last = ray_ports(ray_port)
    lines = [
        "# Managed by sparkrig.serving. Changes are overwritten.",
        f"table inet {TABLE}",
        f"delete table inet {TABLE}",
        f"table inet {TABLE} {{",
        "  chain input {",
        "    type filter hook input priority filter; policy accept;",
        "    ct state established,related accept",
        '    iifname "lo" accept',
        *_accept(
            "iifname { " + ", ".join(f'"{rail}"' for rail in rails) + " } ", _networks(peers, "the list of nodes")
        ),
    ]
    if api_here:
        lines += _accept(f"tcp dport {api_port} ", _networks(api_from, "the list of who may use the API"))
    closed = f"{RENDEZVOUS[0]}-{RENDEZVOUS[1]}, {first}-{last}, {EPHEMERAL[0]}-{EPHEMERAL[1]}"
    if not first <= api_port <= last and not EPHEMERAL[0] <= api_port <= EPHEMERAL[1]:
        closed = f"{api_port}, {closed}"
    lines += [
        f"    tcp dport {{ {closed} }} counter drop",
        f"    udp dport {{ {first}-{last}, {EPHEMERAL[0]}-{EPHEMERAL[1]} }} counter drop",
        "  }",
        "}",
    ]
    return "\n".join(lines) + "\n"


def drain_rules(api_port: int) -> str:
    """A table that lets no new connection to the API in; those of this machine itself are the watchdog's."""
    return (
        f"table inet {DRAIN_TABLE} {{\n"
        "  chain input {\n"
        "    type filter hook input priority filter - 10; policy accept;\n"
        '    iifname != "lo" ct state new '
        f"tcp dport {api_port} reject with tcp reset\n"
        "  }\n"
        "}\n"
    )
