# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""RDMA devices as sysfs describes them, and what NCCL has to be told about them.

Private to this collection: import it from nowhere else.
"""

from __future__ import annotations

import os
import re
import typing as t
from dataclasses import dataclass


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

    @property
    def twin_key(self) -> str:
        """What the two PCIe functions of one plug have in common: all of the address but the domain."""
        return self.pci.partition(":")[2]


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


def read_ports(sys_root: str) -> tuple[RdmaPort, ...]:
    """All ports of all RDMA devices below a sysfs root; empty on a machine without RDMA."""
    base = os.path.join(sys_root, "class", "infiniband")
    ports = []
    for device in _names(base):
        slot = re.search(r"^PCI_SLOT_NAME=(\S+)$", _read(base, device, "device", "uevent"), re.MULTILINE)
        netdevs = tuple(_names(base, device, "device", "net"))
        for port in _names(base, device, "ports"):
            if not port.isdigit():
                continue
            state = _read(base, device, "ports", port, "state")
            rate = re.match(r"\d+", _read(base, device, "ports", port, "rate"))
            ports.append(
                RdmaPort(
                    device=device,
                    port=int(port),
                    active=state.endswith("ACTIVE"),
                    state=state.partition(": ")[2] or state or "unknown",
                    rate_gbps=int(rate.group()) if rate else 0,
                    link_layer=_read(base, device, "ports", port, "link_layer"),
                    netdevs=netdevs,
                    pci=slot.group(1) if slot else "",
                )
            )
    return tuple(ports)


def nccl_environment(
    ports: t.Sequence[RdmaPort], interfaces: t.Sequence[str]
) -> tuple[dict[str, str], tuple[str, ...]]:
    """NCCL's variables for the rails on these interfaces, and a sentence for all that is not as it "
    "should be."""
    if not ports:
        return {}, ("This node has no RDMA device: NCCL_IB_HCA is left out, and NCCL will use sockets.",)
    used: list[RdmaPort] = []
    sentences = []
    for interface in interfaces:
        mine = [port for port in ports if interface in port.netdevs]
        live = [port for port in mine if port.active]
        if not mine:
            sentences.append(f"{interface} has no RDMA device: RoCE cannot use this rail.")
        elif not live:
            states = ", ".join(f"{port.device} port {port.port} is {port.state}" for port in mine)
            sentences.append(f"{interface} has RDMA, but {states}: RoCE cannot use this rail until it is ACTIVE.")
        used.extend(live)
    for port in ports:
        half = [other for other in used if other.twin_key and other.twin_key == port.twin_key]
        if half and port not in used and not set(port.netdevs) & set(interfaces):
            sentences.append(
                f"{port.device} ({', '.join(port.netdevs) or 'no interface'}) is the twin of "
                f"{half[0].device} and has no "
                f"rail: give it an address in a subnet of its own, or half of the bandwidth is lost."
            )
    if not used:
        return {}, (*sentences, "NCCL_IB_HCA is left out: no rail has an active RDMA port; NCCL will use sockets.")
    several = {port.device for port in ports if port.port > 1}
    names = [f"{port.device}:{port.port}" if port.device in several else port.device for port in used]
    environment = {
        # "=" asks for these names exactly: mlx5_1 would match mlx5_10 as well.
        "NCCL_IB_HCA": "=" + ",".join(names),
        # These two choose the RoCE v2 GID of the IPv4 address, whatever its index is after this boot.
        "NCCL_IB_ADDR_FAMILY": "AF_INET",
        "NCCL_IB_ROCE_VERSION_NUM": "2",
    }
    return environment, (*sentences, f"NCCL uses {', '.join(names)}.")
