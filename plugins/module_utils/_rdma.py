# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""RDMA devices as sysfs describes them, and what NCCL has to be told about them.

The file is also put on the nodes as it is, for the program that runs at every start of a service, so it imports
nothing of Ansible.

Private to this collection: import it from nowhere else.
"""

from __future__ import annotations

import ipaddress
import os
import re
import typing as t
from dataclasses import dataclass

ROCE_V2 = "RoCE v2"
# What a RoCE packet carries besides its payload: GRH or IP, UDP, BTH, the largest extended headers and the checksum.
# The kernel subtracts the same before it rounds down to one of InfiniBand's MTUs.
ROCE_OVERHEAD_BYTES = 40 + 8 + 12 + 4 + 28 + 4
IB_MTUS = (4096, 2048, 1024, 512, 256)


@dataclass(frozen=True)
class Gid:
    """One filled slot of a port's GID table."""

    index: int
    gid: str
    type: str
    netdev: str

    @property
    def ipv4(self) -> str:
        """The IPv4 address that this GID stands for, or an empty string."""
        try:
            mapped = ipaddress.IPv6Address(self.gid).ipv4_mapped
        except ValueError:
            return ""
        return str(mapped) if mapped else ""


@dataclass(frozen=True)
class RdmaPort:
    """One port of one RDMA device."""

    device: str
    port: int
    active: bool
    state: str
    rate_gbps: int
    link_layer: str
    netdevs: tuple[str, ...]
    pci: str
    uppers: tuple[str, ...] = ()  # bonds, bridges and VLANs above the netdevs
    physical: str = ""
    mtu_active: int = 0
    mtu_max: int = 0
    gids: tuple[Gid, ...] = ()
    firmware: str = ""
    image_guid: str = ""
    pcie_width: int = 0
    pcie_width_max: int = 0
    pcie_gts: float = 0.0

    @property
    def twin_key(self) -> str:
        """What the two PCIe functions of one plug have in common: the card, and all of the address but the domain."""
        return f"{self.image_guid} {self.pci.partition(':')[2]}" if self.pci else ""

    def carries(self, interface: str) -> bool:
        """Whether packets of this interface, or of a bond, bridge or VLAN of that name, go through the port."""
        return interface in self.netdevs or interface in self.uppers


def _read(*parts: str) -> str:
    try:
        with open(os.path.join(*parts), encoding="utf-8", errors="replace") as stream:
            return stream.read().strip()
    except OSError:
        # Drivers answer EINVAL for what a port does not have; that is the same as an absent file.
        return ""


def _names(*parts: str) -> list[str]:
    try:
        return sorted(os.listdir(os.path.join(*parts)))
    except OSError:
        return []


def _number(text: str) -> int:
    found = re.match(r"\d+", text)
    return int(found.group()) if found else 0


def _uppers(sys_root: str, netdevs: t.Sequence[str]) -> tuple[str, ...]:
    """What stands on these netdevs: bonds, bridges, VLANs, and what stands on those."""
    found: list[str] = []
    waiting = list(netdevs)
    while waiting:
        name = waiting.pop(0)
        for entry in _names(sys_root, "class", "net", name):
            upper = entry[len("upper_") :] if entry.startswith("upper_") else ""
            if entry == "master":
                upper = os.path.basename(os.path.realpath(os.path.join(sys_root, "class", "net", name, "master")))
            if upper and upper not in found:
                found.append(upper)
                waiting.append(upper)
    return tuple(found)


def _gids(folder: str) -> tuple[Gid, ...]:
    gids = []
    for index in sorted((name for name in _names(folder, "gids") if name.isdigit()), key=int):
        gid = _read(folder, "gids", index)
        # An empty slot is all zeros, and has no type.
        if not gid.replace("0", "").replace(":", ""):
            continue
        attributes = os.path.join(folder, "gid_attrs")
        gids.append(
            Gid(int(index), gid, _read(attributes, "types", index) or "unknown", _read(attributes, "ndevs", index))
        )
    return tuple(gids)


def ib_mtu(netdev_mtu: int) -> int:
    """The MTU of RoCE over an interface with this MTU, as the kernel computes it; 0 when nothing fits."""
    room = netdev_mtu - ROCE_OVERHEAD_BYTES
    return next((mtu for mtu in IB_MTUS if room >= mtu), 0)


def read_ports(sys_root: str) -> tuple[RdmaPort, ...]:
    """All ports of all RDMA devices below a sysfs root; empty on a machine without RDMA."""
    base = os.path.join(sys_root, "class", "infiniband")
    ports = []
    for device in _names(base):
        pci = os.path.join(base, device, "device")
        slot = re.search(r"^PCI_SLOT_NAME=(\S+)$", _read(pci, "uevent"), re.MULTILINE)
        all_netdevs = _names(pci, "net")
        numbers = [port for port in _names(base, device, "ports") if port.isdigit()]
        for port in numbers:
            folder = os.path.join(base, device, "ports", port)
            netdevs = all_netdevs
            if len(numbers) > 1:
                # dev_port counts from 0; a driver without it leaves all of them.
                own = [name for name in all_netdevs if _read(pci, "net", name, "dev_port") in ("", str(int(port) - 1))]
                netdevs = own or all_netdevs
            state = _read(folder, "state")
            link_layer = _read(folder, "link_layer")
            ethernet = link_layer == "Ethernet"
            mtus = [_number(_read(sys_root, "class", "net", name, "mtu")) for name in netdevs]
            speed = re.match(r"[\d.]+", _read(pci, "current_link_speed"))
            ports.append(
                RdmaPort(
                    device=device,
                    port=int(port),
                    active=state.endswith("ACTIVE"),
                    state=state.partition(": ")[2] or state or "unknown",
                    rate_gbps=_number(_read(folder, "rate")),
                    link_layer=link_layer,
                    netdevs=tuple(netdevs),
                    pci=slot.group(1) if slot else "",
                    uppers=_uppers(sys_root, netdevs),
                    physical=_read(folder, "phys_state").partition(": ")[2],
                    mtu_active=ib_mtu(min(mtus)) if ethernet and mtus else 0,
                    mtu_max=IB_MTUS[0] if ethernet else 0,
                    gids=_gids(folder),
                    firmware=_read(base, device, "fw_ver"),
                    image_guid=_read(base, device, "sys_image_guid"),
                    pcie_width=_number(_read(pci, "current_link_width")),
                    pcie_width_max=_number(_read(pci, "max_link_width")),
                    pcie_gts=float(speed.group()) if speed else 0.0,
                )
            )
    return tuple(ports)


def twin_of(port: RdmaPort, ports: t.Sequence[RdmaPort]) -> RdmaPort | None:
    """The other PCIe function of the same plug, where there is one."""
    return next(
        (
            other
            for other in ports
            if other.device != port.device and other.twin_key and other.twin_key == port.twin_key
        ),
        None,
    )


def gid_of(port: RdmaPort, address: str, interface: str = "") -> Gid | None:
    """The GID that RoCE v2 over this IPv4 address uses on this port; that of the interface itself before others."""
    fitting = [gid for gid in port.gids if gid.type == ROCE_V2 and gid.ipv4 == address]
    return next((gid for gid in fitting if interface and gid.netdev == interface), fitting[0] if fitting else None)


def nccl_name(port: RdmaPort, ports: t.Sequence[RdmaPort]) -> str:
    """The port as NCCL_IB_HCA names it: with its number only where the device has several."""
    several = any(other.device == port.device and other.port > 1 for other in ports)
    return f"{port.device}:{port.port}" if several else port.device


def usable_rails(ports: t.Sequence[RdmaPort]) -> tuple[RdmaPort, ...]:
    """The ports that can be a rail: active, Ethernet, with an interface; twins side by side, the lower domain first."""
    usable = [port for port in ports if port.active and port.link_layer in ("Ethernet", "") and port.netdevs]
    return tuple(sorted(usable, key=lambda port: (port.pci.partition(":")[2], port.pci, port.device, port.port)))


def port_problems(ports: t.Sequence[RdmaPort], rate_gbps: int, width: int) -> list[str]:
    """Ports whose link or PCIe slot is slower than wanted, and by how much. Unknown values are said, not guessed."""
    problems = []
    for port in ports:
        what = f"{port.device} port {port.port} ({', '.join(port.netdevs) or 'no interface'})"
        if not port.active:
            problems.append(f"{what} is {port.state}, needed is ACTIVE: check the cable and the switch port.")
            continue
        if rate_gbps and port.rate_gbps < rate_gbps:
            share = 100 * port.rate_gbps // rate_gbps
            problems.append(
                f"{what} has a link of {port.rate_gbps} Gb/s, {share} % of the {rate_gbps} Gb/s needed: check the"
                " speed of the switch port and the cable."
            )
        if width and 0 < port.pcie_width < width:
            problems.append(
                f"{what} has {port.pcie_width} PCIe lanes of the {width} needed: power the machine off and on again"
                " (a warm reboot is not enough)."
            )
        elif width and not port.pcie_width:
            problems.append(f"{what} does not tell its PCIe lanes (current_link_width), needed are {width}.")
    return problems


def nccl_environment(
    ports: t.Sequence[RdmaPort], interfaces: t.Sequence[str]
) -> tuple[dict[str, str], tuple[str, ...]]:
    """NCCL's variables for the rails on these interfaces, and a sentence for all that is not as it should be."""
    if not ports:
        return {}, ("This node has no RDMA device: NCCL_IB_HCA is left out, and NCCL will use sockets.",)
    used: list[RdmaPort] = []
    sentences = []
    for interface in interfaces:
        mine = [port for port in ports if port.carries(interface)]
        live = [port for port in mine if port.active]
        if not mine:
            sentences.append(f"{interface} has no RDMA device: RoCE cannot use this rail.")
        elif not live:
            states = ", ".join(f"{port.device} port {port.port} is {port.state}" for port in mine)
            sentences.append(f"{interface} has RDMA, but {states}: RoCE cannot use this rail until it is ACTIVE.")
        used.extend(port for port in live if port not in used)
    for port in ports:
        half = [other for other in used if other.twin_key and other.twin_key == port.twin_key]
        if half and port not in used and not any(port.carries(interface) for interface in interfaces):
            sentences.append(
                f"{port.device} ({', '.join(port.netdevs) or 'no interface'}) is the twin of {half[0].device} and has"
                " no rail: give it an address in a subnet of its own, or half of the bandwidth is lost."
            )
    if not used:
        return {}, (*sentences, "NCCL_IB_HCA is left out: no rail has an active RDMA port; NCCL will use sockets.")
    names = [nccl_name(port, ports) for port in used]
    environment = {
        # "=" asks for these names exactly: mlx5_1 would match mlx5_10 as well.
        "NCCL_IB_HCA": "=" + ",".join(names),
        # These two choose the RoCE v2 GID of the IPv4 address, whatever its index is after this boot.
        "NCCL_IB_ADDR_FAMILY": "AF_INET",
        "NCCL_IB_ROCE_VERSION_NUM": "2",
    }
    return environment, (*sentences, f"NCCL uses {', '.join(names)}.")


def resolve_gid_index(
    ports: t.Sequence[RdmaPort], rails: t.Mapping[str, str], policy: str
) -> tuple[int | None, tuple[str, ...]]:
    """The NCCL_IB_GID_INDEX of this boot, None to leave it unset, and a sentence about each rail.

    *rails* is interface to IPv4 address. *policy* is "auto" (only where an interface has several IPv4 addresses, so
    that the address family alone does not choose) or "always" (for a NCCL before 2.21, which knows no family).
    Raises ValueError when an index is needed and no single one is right.
    """
    sentences = []
    indices: dict[str, int] = {}
    several = []
    for interface, address in rails.items():
        for port in ports:
            if not port.active or not port.carries(interface):
                continue
            gid = gid_of(port, address, interface)
            if gid is None:
                raise ValueError(
                    f"{port.device} port {port.port} has no RoCE v2 GID for {address} of {interface} among its"
                    f" {len(port.gids)} GIDs: the address is not there (yet), or the driver did not make one"
                )
            indices[port.device] = gid.index
            others = {other.ipv4 for other in port.gids if other.type == ROCE_V2 and other.ipv4} - {address}
            if others:
                several.append(port.device)
            sentences.append(
                f"{port.device} port {port.port}: index {gid.index} is RoCE v2 over {address}"
                + (f"; it also has {', '.join(sorted(others))}" if others else "")
            )
    if not indices or (policy != "always" and not several):
        return None, tuple(sentences)
    if len(set(indices.values())) > 1:
        listed = ", ".join(f"{device} needs {index}" for device, index in indices.items())
        if policy != "always":
            advice = f"take the other addresses off the interfaces of {', '.join(several)}"
        else:
            advice = "use a NCCL from 2.21 on and set fabric_gid_index to auto"
        raise ValueError(f"NCCL takes one GID index for all devices of a node, but {listed}: {advice}")
    return next(iter(indices.values())), tuple(sentences)
