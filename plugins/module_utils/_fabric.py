# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rails of a node: what is asked for, what is wrong with it, and the files that say so. No I/O.

The file is also put on the nodes as it is, for the program that undoes an unconfirmed change, so it imports nothing of
Ansible.

Private to this collection: import it from nowhere else.
"""

from __future__ import annotations

import ipaddress
import json
import re
import typing as t
from dataclasses import dataclass

from ._roce_rules import roce_problems, text_problems

HEADER = "# Managed by sparkrig.serving. Changes are overwritten.\n"
MTU_MIN = 1280
MTU_MAX = 9600
# An IPv4 header and an ICMP header: what a ping adds to its payload.
PING_OVERHEAD_BYTES = 28
_INTERFACE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,14}")
# Where NCCL writes what it chose, one small file for each rank; verify reads it.
NCCL_LOG_FOLDER = "/run/sparkrig/nccl"
# DSCP 26 in the upper six bits, and ECN-capable in the lower two.
LOSSLESS_TRAFFIC_CLASS = 106


@dataclass(frozen=True)
class Rail:
    """An interface and the address that it gets."""

    interface: str
    address: str
    prefix: int

    @property
    def cidr(self) -> str:
        return f"{self.address}/{self.prefix}"

    @property
    def network(self) -> ipaddress.IPv4Network:
        return ipaddress.IPv4Interface(self.cidr).network


@dataclass(frozen=True)
class Link:
    """A network interface as `ip -json addr show` describes it."""

    name: str
    mtu: int
    up: bool
    carrier: bool
    addresses: tuple[str, ...]  # IPv4 with prefix
    hosts: tuple[str, ...] = ()  # all addresses, IPv6 as well, without prefix


def parse_rail(interface: object, cidr: object) -> Rail:
    """One rail, or ValueError with what is wrong."""
    if not isinstance(interface, str) or not _INTERFACE.fullmatch(interface):
        raise ValueError(f"fabric_addresses names the interface {interface!r}, which is no name of an interface.")
    where = f"fabric_addresses[{interface!r}] is {cidr!r}"
    if isinstance(cidr, t.Mapping):
        gateway = cidr.get("gateway") or cidr.get("gateway4")
        what = f"a rail takes no gateway ({gateway}), since the fabric is not routed" if gateway else "that is a dict"
        raise ValueError(f"{where}: {what}; write only the address, like 10.98.1.11/24.")
    if not isinstance(cidr, str) or "/" not in cidr:
        raise ValueError(f"{where}, which has no prefix length; write it like 10.98.1.11/24.")
    try:
        parsed = ipaddress.IPv4Interface(cidr)
    except ValueError:
        raise ValueError(f"{where}, which is no IPv4 address with a prefix; write it like 10.98.1.11/24.") from None

    network = parsed.network
    if network.prefixlen > 31:
        raise ValueError(f"{where}: a prefix of {network.prefixlen} has no room for a peer; use 31 or less.")
    if network.prefixlen < 31 and parsed.ip in (network.network_address, network.broadcast_address):
        what = "the subnet itself" if parsed.ip == network.network_address else "the subnet's broadcast address"
        example = f"{network[1]}/{network.prefixlen}"
        raise ValueError(f"{where}, which is {what}; give the node an address in it, like {example}.")
    if not parsed.is_private or parsed.is_loopback or parsed.is_link_local or parsed.is_multicast:
        raise ValueError(f"{where}, which is no private unicast address; the fabric must not be routed.")
    return Rail(interface, str(parsed.ip), network.prefixlen)


def rail_problems(addresses: t.Mapping[t.Any, t.Any]) -> list[str]:
    """What is wrong with the rails of one node, looked at alone."""
    problems = []
    rails: list[Rail] = []
    for interface, cidr in addresses.items():
        try:
            rail = parse_rail(interface, cidr)
        except ValueError as error:
            problems.append(str(error))
            continue
        for other in rails:
            if rail.network.overlaps(other.network):
                problems.append(
                    f"{other.interface} ({other.cidr}) and {rail.interface} ({rail.cidr}) are in one "
                    "subnet, so that "
                    f"one of them would carry the traffic of both; give every rail a subnet of its own."
                )
        rails.append(rail)
    return problems


def parse_rails(addresses: t.Mapping[t.Any, t.Any], mtu: int) -> tuple[Rail, ...]:
    """The rails of one node in their order, or ValueError with all that is wrong."""
    problems = rail_problems(addresses)
    if not addresses:
        problems.append(
            "fabric_addresses is empty; name at least one interface and its address, like enp1s0f0np0: 10.98.1.11/24."
        )
    if not MTU_MIN <= mtu <= MTU_MAX:
        problems.append(
            f"fabric_mtu is {mtu}; it must be between {MTU_MIN} and {MTU_MAX}, and 9000 is what RoCE wants."
        )
    if problems:
        raise ValueError(" ".join(problems))
    return tuple(parse_rail(interface, cidr) for interface, cidr in addresses.items())


def fabric_problems(nodes: t.Mapping[str, t.Any]) -> list[str]:
    """What is wrong with the rails of all nodes together. Rails belong together by their place in the "
    "list."""
    problems = []
    rails: dict[str, list[Rail]] = {}
    for host, addresses in nodes.items():
        if not isinstance(addresses, t.Mapping) or not addresses:
            problems.append(
                f"{host} has no rails: give it fabric_addresses in the inventory, a dict of interface "
                "to address like "
                f"enp1s0f0np0: 10.98.1.11/24."
            )
            continue
        wrong = rail_problems(addresses)
        problems.extend(f"{host}: {problem}" for problem in wrong)
        if not wrong:
            rails[host] = [parse_rail(interface, cidr) for interface, cidr in addresses.items()]
    owners: dict[str, tuple[str, Rail]] = {}
    for host, mine in rails.items():
        for rail in mine:
            if rail.address in owners:
                other, taken = owners[rail.address]
                problems.append(
                    f"{other} ({taken.interface}) and {host} ({rail.interface}) have the same rail address "
                    f"{rail.address}; give one of them another."
                )
            else:
                owners[rail.address] = (host, rail)
    if not rails:
        return problems
    return problems + (cable_problems(rails) if point_to_point(rails) else switch_problems(rails))


def subnets_of(rails: t.Mapping[str, t.Sequence[Rail]]) -> dict[ipaddress.IPv4Network, list[str]]:
    """Every subnet, and the nodes that have a rail in it."""
    subnets: dict[ipaddress.IPv4Network, list[str]] = {}
    for host, mine in rails.items():
        for rail in mine:
            subnets.setdefault(rail.network, []).append(host)
    return subnets


def point_to_point(rails: t.Mapping[str, t.Sequence[Rail]]) -> bool:
    """Whether these are cables between two nodes each, as in a ring: three nodes or more, no subnet with three."""
    members = subnets_of(rails).values()
    return len(rails) > 2 and max(len(hosts) for hosts in members) == 2


def cable_problems(rails: t.Mapping[str, t.Sequence[Rail]]) -> list[str]:
    """What is wrong with rails that are cables between two nodes each."""
    problems = []
    subnets = subnets_of(rails)
    for host, mine in rails.items():
        problems += [
            f"{rail.interface} of {host} is alone in {rail.network}; the node at the other end of its cable needs an"
            " address in it."
            for rail in mine
            if len(subnets[rail.network]) == 1
        ]
    # Every node must be reached from the first one, over however many cables.
    reached = {next(iter(rails))}
    while True:
        more = {host for hosts in subnets.values() if reached & set(hosts) for host in hosts} - reached
        if not more:
            break
        reached |= more
    problems += [
        f"no chain of cables leads from {next(iter(rails))} to {host}; see which subnets they share."
        for host in rails
        if host not in reached
    ]
    return problems


def switch_problems(rails: t.Mapping[str, t.Sequence[Rail]]) -> list[str]:
    """What is wrong with rails that all meet at one switch, or at the two ends of one cable."""
    problems = []
    most = max(len(mine) for mine in rails.values())
    model, pattern = next((host, mine) for host, mine in rails.items() if len(mine) == most)
    for host, mine in rails.items():
        if len(mine) < most:
            problems.append(
                f"{host} has {len(mine)} of {most} rails "
                f"({', '.join(rail.interface for rail in mine)}), {model} has "
                f"{', '.join(rail.interface for rail in pattern)}; give every node the same number of rails."
            )
        for index, (rail, first) in enumerate(zip(mine, pattern), start=1):
            if rail.network == first.network:
                continue
            if rail.prefix != first.prefix:
                problems.append(
                    f"rail {index} has prefix /{first.prefix} on {model} ({first.interface} "
                    f"{first.cidr}) and "
                    f"/{rail.prefix} on {host} ({rail.interface} {rail.cidr}); use one prefix on all nodes."
                )
            else:
                problems.append(
                    f"rail {index} is in {first.network} on {model} ({first.interface} {first.cidr}) and in "
                    f"{rail.network} on {host} ({rail.interface} {rail.cidr}); put it in one subnet, "
                    "and list the rails "
                    f"of every node in the same order."
                )
    return problems


def parse_links(text: str) -> dict[str, Link]:
    """The interfaces in the output of `ip -json addr show`."""
    links = {}
    for raw in json.loads(text or "[]"):
        if "ifname" not in raw:
            continue
        flags = raw.get("flags", [])
        links[raw["ifname"]] = Link(
            name=raw["ifname"],
            mtu=int(raw.get("mtu", 0)),
            up="UP" in flags,
            carrier="LOWER_UP" in flags,
            addresses=tuple(
                f"{info['local']}/{info['prefixlen']}"
                for info in raw.get("addr_info", [])
                if info.get("family") == "inet"
            ),
            hosts=tuple(info["local"] for info in raw.get("addr_info", []) if "local" in info),
        )
    return links


def parse_default_interfaces(text: str) -> tuple[str, ...]:
    """The interfaces of the default routes, from `ip -json -4 route show default`."""
    return tuple(dict.fromkeys(str(route["dev"]) for route in json.loads(text or "[]") if "dev" in route))


def interface_of(address: str, links: t.Mapping[str, Link]) -> str:
    """The interface that has an address, or an empty string. A link-local one says it itself, after a percent sign."""
    host, _percent, scope = address.partition("%")
    return scope or next((link.name for link in links.values() if host in link.hosts), "")


def plan_problems(
    rails: t.Sequence[Rail], links: t.Mapping[str, Link], keep: t.Mapping[str, str], client: str = ""
) -> list[str]:
    """What makes this plan impossible or dangerous on this node.

    *keep* is interface to the reason to keep off it, *client* the address that we ourselves come from.
    """
    problems = []
    mine = {rail.interface for rail in rails}
    for rail in rails:
        if rail.interface not in links:
            there = ", ".join(sorted(name for name in links if name != "lo")) or "none"
            problems.append(
                f"{rail.interface} does not exist on this node, which has {there}; correct "
                "fabric_addresses, or look "
                f"for the cable and the card (a warm reboot can lose one, a cold one brings it back)."
            )
        if rail.interface in keep:
            problems.append(f"{rail.interface} {keep[rail.interface]}, so it is never touched; name another interface.")
        if _within(client, rail.network):
            problems.append(
                f"{rail.interface} would get {rail.cidr}, but this run comes from {client}, which is in that subnet:"
                " its answers would leave by the rail, and the node would be cut off; give the rail another subnet."
            )
        for link in links.values():
            if link.name in mine:
                continue
            for cidr in link.addresses:
                if rail.network.overlaps(ipaddress.IPv4Interface(cidr).network):
                    problems.append(
                        f"{rail.interface} would get {rail.cidr}, but {link.name} is in that subnet "
                        f"already ({cidr}); "
                        f"give the rail a subnet of its own."
                    )
    return problems


def _within(address: str, network: ipaddress.IPv4Network) -> bool:
    try:
        return ipaddress.IPv4Address(address) in network
    except ValueError:
        return False


def foreign_addresses(
    rails: t.Sequence[Rail], links: t.Mapping[str, Link], own_netplan: str
) -> dict[str, tuple[str, ...]]:
    """Interface to the addresses on it that are neither planned nor in our own netplan file.

    Link-local ones are left out: NetworkManager and Avahi put them on links that nobody configured.
    """
    found = {}
    for rail in rails:
        link = links.get(rail.interface)
        strange = tuple(
            cidr
            for cidr in (link.addresses if link else ())
            if cidr != rail.cidr and f'"{cidr}"' not in own_netplan and not ipaddress.IPv4Interface(cidr).is_link_local
        )
        if strange:
            found[rail.interface] = strange
    return found


def live_problems(rails: t.Sequence[Rail], links: t.Mapping[str, Link], mtu: int) -> list[str]:
    """How the interfaces differ from the plan right now."""
    problems = []
    for rail in rails:
        link = links.get(rail.interface)
        if link is None:
            problems.append(f"{rail.interface} does not exist")
            continue
        if not link.up:
            problems.append(f"{rail.interface} is down")
        elif not link.carrier:
            problems.append(f"{rail.interface} has no carrier (is the cable in, and the other end up?)")
        if rail.cidr not in link.addresses:
            problems.append(f"{rail.interface} lacks {rail.cidr} (it has {', '.join(link.addresses) or 'none'})")
        if link.mtu != mtu:
            problems.append(f"{rail.interface} has MTU {link.mtu} instead of {mtu}")
    return problems


def render_netplan(rails: t.Sequence[Rail], mtu: int, renderer: str) -> str:
    """The netplan file. The renderer is set by interface: a global one would move the management "
    "network as well."""
    lines = [HEADER.rstrip(), "network:", "  version: 2", "  ethernets:"]
    for rail in rails:
        lines += [
            f"    {rail.interface}:",
            f"      renderer: {renderer}",
            "      optional: true",
            "      dhcp4: false",
            "      dhcp6: false",
            "      accept-ra: false",
            "      link-local: []",
            f"      mtu: {mtu}",
            f'      addresses: ["{rail.cidr}"]',
        ]
    return "\n".join(lines) + "\n"


def render_nm_unmanaged(rails: t.Sequence[Rail]) -> str:
    """What keeps NetworkManager's DHCP off the rails, also where no udev rule reaches it."""
    names = ";".join(f"interface-name:{rail.interface}" for rail in rails)
    return f"{HEADER}[keyfile]\nunmanaged-devices+={names}\n"


def configured_elsewhere(
    rails: t.Sequence[Rail], netplan: t.Mapping[str, str], others: t.Mapping[str, str]
) -> dict[str, str]:
    """Interface to the file of somebody else that configures it as well: netplan's, or that of another tool."""
    found = {}
    for rail in rails:
        name = re.escape(rail.interface)
        key = re.compile(rf"^\s+[\"']?{name}[\"']?\s*:", re.MULTILINE)
        # networkd's [Match], NetworkManager's [connection], ifupdown's stanza.
        line = re.compile(
            rf"^\s*(?:Name\s*=\s*(?:\S+\s+)*|interface-name\s*=\s*|iface\s+){name}(?:\s|;|$)", re.MULTILINE
        )
        for path, text in [*sorted(netplan.items()), *sorted(others.items())]:
            if (key if path in netplan else line).search(text):
                found[rail.interface] = path
    return found


def render_environment(
    rails: t.Sequence[Rail],
    rdma: t.Mapping[str, str],
    extra: t.Mapping[str, str],
    host: tuple[str, str] | None = None,
    lossless: bool = False,
    interfaces: t.Collection[str] | None = None,
    devices: t.Collection[str] | None = None,
) -> str:
    """fabric.env, or ValueError for a value that takes RoCE away.

    *host* is the interface and the address by which the nodes find each other, the first rail when left out.
    """
    interface, address = host or (rails[0].interface, rails[0].address)
    fixed = {
        "NCCL_IB_DISABLE": "0",
        "NCCL_SOCKET_IFNAME": interface,
        "GLOO_SOCKET_IFNAME": interface,
        "VLLM_HOST_IP": address,
        "HOST_IP": address,
    }
    environment = {
        "NCCL_IB_DISABLE": "0",
        **rdma,
        **fixed,
        **({"NCCL_IB_TC": str(LOSSLESS_TRAFFIC_CLASS)} if lossless else {}),
        "NCCL_DEBUG": "INFO",
        "NCCL_DEBUG_SUBSYS": "INIT,NET",
        "NCCL_DEBUG_FILE": f"{NCCL_LOG_FOLDER}/%h.%p.log",
    }
    where = "fabric_environment."
    problems = text_problems(extra, where) + roce_problems(extra, where, interfaces=interfaces, devices=devices)
    problems += [
        f"{where}{name} is {extra[name]!r}, but the rails make it {fixed[name]!r}; take it out"
        for name in extra
        if name in fixed and name != "NCCL_IB_DISABLE" and extra[name] != fixed[name]
    ]
    if problems:
        raise ValueError(". ".join(problems) + ".")
    environment.update(extra)
    return HEADER + "".join(f"{name}={value}\n" for name, value in environment.items())


def derive_addresses(interfaces: t.Sequence[str], subnets: t.Sequence[str], index: int) -> dict[str, str]:
    """Rail n of the node with this index gets the address with this number in subnet n; or ValueError."""
    if len(interfaces) > len(subnets):
        raise ValueError(
            f"This node has {len(interfaces)} rails ({', '.join(interfaces)}), but fabric_subnets has {len(subnets)}"
            f" ({', '.join(subnets) or 'none'}); every rail needs a subnet of its own."
        )
    addresses = {}
    for interface, text in zip(interfaces, subnets):
        try:
            network = ipaddress.IPv4Network(text)
        except ValueError:
            raise ValueError(f"fabric_subnets has {text!r}, which is no subnet like 192.168.100.0/24.") from None
        hosts = network.num_addresses - (2 if network.prefixlen < 31 else 0)
        if not 1 <= index <= hosts:
            raise ValueError(f"fabric_index is {index}, but {text} has addresses for the nodes 1 to {hosts}.")
        offset = index if network.prefixlen < 31 else index - 1
        addresses[interface] = f"{network.network_address + offset}/{network.prefixlen}"
    return addresses


def answered(output: str) -> frozenset[str]:
    """The addresses that answered, in the output of any number of pings."""
    return frozenset(re.findall(r"^\d+ bytes from ([0-9.]+):", output, re.MULTILINE))


def local_limit(output: str) -> int:
    """The MTU of the own interface when it was too small for a ping, else 0."""
    found = re.search(r"message too long, mtu=(\d+)", output)
    return int(found.group(1)) if found else 0


def peer_rails(rails: t.Sequence[Rail], peers: t.Mapping[str, t.Mapping[t.Any, t.Any]]) -> list[tuple[str, Rail, Rail]]:
    """Every peer on every rail that it shares with us: its name, our rail, its rail."""
    pairs = []
    for host, addresses in peers.items():
        theirs = [parse_rail(interface, cidr) for interface, cidr in addresses.items()]
        pairs += [(host, own, their) for own in rails for their in theirs if own.network == their.network]
    return pairs


def unreachable(
    node: str, host: str, own: Rail, their: Rail, payload: int, small_passes: bool, local: int, down: str = ""
) -> str:
    """Why a peer did not answer, and what to do. *down* is what is wrong with our own end, if anything is."""
    mtu = payload + PING_OVERHEAD_BYTES
    if down:
        return f"{node} cannot reach {host} ({their.address}): {down}. Check the cable of {own.interface} on {node}."
    what = f"{node} cannot reach {host} ({their.address}) over rail {own.interface} with {payload} bytes"
    if small_passes and local:
        return (
            f"{what}: {own.interface} on {node} has MTU {local}, needed is {mtu}. Run the role fabric on {node} again."
        )
    if small_passes:
        return (
            f"{what}, though small packets pass: something between them carries less than MTU {mtu}. "
            "Check the MTU of "
            f"{their.interface} on {host}, and set MTU {mtu} and L2MTU {mtu + 216} or more on both "
            "switch ports."
        )
    return (
        f"{what}, and no small packet passes either: check the cables, the switch ports and "
        f"{their.interface} on {host}, "
        f"and that the role fabric ran there."
    )
