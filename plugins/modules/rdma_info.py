#!/usr/bin/python
# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every RDMA device of a node, from sysfs alone."""

from __future__ import annotations

DOCUMENTATION = r"""
module: rdma_info
short_description: RDMA devices, their ports, twins and GIDs
version_added: 0.1.0
author: The sparkrig engineers (@sparkrig)
description:
  - Reads sysfs and nothing else, so that it also works on a recorded tree.
  - On a machine without RDMA the lists are empty, and a sentence says so.
extends_documentation_fragment:
  - sparkrig.serving._attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: full
options:
  sys_root:
    description: Where sysfs is.
    type: path
    default: /sys
  addresses:
    description:
      - IPv4 addresses to find the GIDs of, as RoCE v2 uses them.
      - Empty, those that the GID tables themselves name.
    type: list
    elements: str
    default: []
"""

EXAMPLES = r"""
---
- name: See which RDMA devices there are
  sparkrig.serving.rdma_info:
  register: rdma

- name: Show what NCCL can use
  ansible.builtin.debug:
    msg: "{{ rdma.rails | map(attribute='nccl') }}"
"""

RETURN = r"""
actions:
  description: One sentence for each port, and for each address without a GID.
  returned: always
  type: list
  elements: str
  sample: ["rocep1s0f0 port 1 (enp1s0f0np0) is ACTIVE with 200 Gb/s, RoCE MTU 4096 of 4096, twin of roceP2p1s0f0."]
ports:
  description: Every port of every RDMA device.
  returned: always
  type: list
  elements: dict
  contains:
    device:
      description: The RDMA device.
      type: str
    port:
      description: The number of the port.
      type: int
    state:
      description: Its state, C(ACTIVE) when it carries.
      type: str
    physical:
      description: Its physical state, such as C(LinkUp).
      type: str
    rate_gbps:
      description: The rate of its link, in Gb/s.
      type: int
    link_layer:
      description: C(Ethernet) or C(InfiniBand).
      type: str
    netdevs:
      description: The interfaces of the port.
      type: list
      elements: str
    uppers:
      description: Bonds, bridges and VLANs above them.
      type: list
      elements: str
    pci:
      description: Its PCI address.
      type: str
    pcie_width:
      description: Its PCIe lanes, and in C(pcie_width_max) how many it could have.
      type: int
    pcie_gts:
      description: The speed of a lane, in GT/s.
      type: float
    twin:
      description: The device that is the other PCIe function of the same plug; empty when there is none.
      type: str
    mtu_active:
      description: The MTU of RoCE, which follows from that of the interface as the kernel computes it; 0 if unknown.
      type: int
    mtu_max:
      description: The largest MTU of RoCE.
      type: int
    firmware:
      description: The version of its firmware.
      type: str
    gids:
      description: The filled slots of the GID table, each with C(index), C(gid), C(type), C(netdev) and C(ipv4).
      type: list
      elements: dict
gids:
  description: For each address the C(device), C(port), C(index) and C(netdev) that RoCE v2 over it uses.
  returned: always
  type: list
  elements: dict
rails:
  description: The ports that can be a rail, with their C(interface) and the name that NCCL uses (C(nccl)).
  returned: always
  type: list
  elements: dict
"""

import typing as t
from dataclasses import asdict

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.sparkrig.serving.plugins.module_utils._rdma import (
    ROCE_V2,
    RdmaPort,
    gid_of,
    nccl_name,
    read_ports,
    twin_of,
    usable_rails,
)


def described(port: RdmaPort, ports: t.Sequence[RdmaPort]) -> dict[str, t.Any]:
    twin = twin_of(port, ports)
    raw = asdict(port)
    raw["gids"] = [{**asdict(gid), "ipv4": gid.ipv4} for gid in port.gids]
    return {**raw, "twin": twin.device if twin else ""}


def sentence(port: RdmaPort, ports: t.Sequence[RdmaPort]) -> str:
    over = f" under {', '.join(port.uppers)}" if port.uppers else ""
    words = f"{port.device} port {port.port} ({', '.join(port.netdevs) or 'no interface'}{over}) is {port.state}"
    if port.active:
        words += f" with {port.rate_gbps} Gb/s"
        if port.mtu_max:
            words += f", RoCE MTU {port.mtu_active or 'unknown'} of {port.mtu_max}"
    twin = twin_of(port, ports)
    if twin:
        words += f", twin of {twin.device}"
    if port.active and port.link_layer == "Ethernet" and not any(gid.type == ROCE_V2 and gid.ipv4 for gid in port.gids):
        words += f"; none of its {len(port.gids)} GIDs is RoCE v2 over IPv4, so it needs an IPv4 address first"
    return f"{words}."


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "sys_root": {"type": "path", "default": "/sys"},
            "addresses": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    ports = read_ports(module.params["sys_root"])
    named = {gid.ipv4: None for port in ports for gid in port.gids if gid.type == ROCE_V2 and gid.ipv4}
    found = []
    actions = [sentence(port, ports) for port in ports]
    for address in module.params["addresses"] or list(named):
        hits = [(port, gid) for port in ports for gid in [gid_of(port, address)] if gid]
        found += [
            {"address": address, "device": port.device, "port": port.port, "index": gid.index, "netdev": gid.netdev}
            for port, gid in hits
        ]
        if not hits:
            actions.append(f"No RDMA port has a RoCE v2 GID for {address}.")
    module.exit_json(
        changed=False,
        actions=actions or ["This node has no RDMA device."],
        ports=[described(port, ports) for port in ports],
        gids=found,
        rails=[
            {"interface": (port.uppers or port.netdevs)[0], "nccl": nccl_name(port, ports), "rate_gbps": port.rate_gbps}
            for port in usable_rails(ports)
        ],
    )


if __name__ == "__main__":
    main()
