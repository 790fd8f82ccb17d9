#!/usr/bin/python
# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Find by frames of our own which interface of which node is cabled to which."""

from __future__ import annotations

DOCUMENTATION = r"""
module: fabric_probe
short_description: Which interface hears which other one
version_added: 0.1.0
author: The sparkrig engineers (@sparkrig)
description:
  - Runs on all nodes at the same time. Sends Ethernet frames of a type for local experiments on every interface that
    could be a rail, and reports those that arrive. No address and no daemon is needed.
  - Interfaces that are down are brought up for that time and down again. Those with the default route, with our own SSH
    connection, bridges, bonds and wireless ones are left alone.
extends_documentation_fragment:
  - sparkrig.serving._attributes
attributes:
  check_mode:
    support: full
    details: In check mode nothing is sent, so nothing is heard.
  diff_mode:
    support: none
  idempotent:
    support: full
options:
  node:
    description: The name of this node.
    type: str
    required: true
  run:
    description: What the frames of this run have in common, so that those of another are not counted.
    type: str
    required: true
  interfaces:
    description: The interfaces to probe. Empty, all that could be a rail.
    type: list
    elements: str
    default: []
  seconds:
    description: How long to send and listen. All nodes have to be at it at the same time.
    type: int
    default: 8
  carrier_wait_s:
    description: How long to wait for the links that were brought up, in seconds.
    type: int
    default: 5
  sys_root:
    description: Where sysfs is.
    type: path
    default: /sys
"""

EXAMPLES = r"""
---
- name: Send and listen
  sparkrig.serving.fabric_probe:
    node: "{{ inventory_hostname }}"
    run: "{{ ansible_date_time.iso8601 }}"
"""

RETURN = r"""
ends:
  description: The interfaces that were probed.
  returned: always
  type: list
  elements: dict
  sample: [{interface: enp1s0f0np0, mac: "02:00:00:00:00:01", carrier: true, pci: "0000:01:00.0", lldp: ""}]
heard:
  description: From which end a frame arrived on which of ours.
  returned: always
  type: list
  elements: dict
  sample: [{"on": enp1s0f0np0, node: spark2, interface: enp1s0f0np0, direct: false}]
"""

import os
import re
import select
import socket
import struct
import time
import typing as t
from dataclasses import asdict

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.sparkrig.serving.plugins.module_utils._discover import (
    BROADCAST,
    ETHERTYPE,
    NEAREST_BRIDGE,
    Heard,
    frame,
    mac_bytes,
    parse_frame,
    parse_lldp,
)
from ansible_collections.sparkrig.serving.plugins.module_utils._fabric import (
    interface_of,
    parse_default_interfaces,
    parse_links,
)

SOL_PACKET = 263
PACKET_ADD_MEMBERSHIP = 1
PACKET_MR_MULTICAST = 0
PACKET_OUTGOING = 4
ETHERNET = "1"
INTERVAL_S = 0.25


def text_of(*parts: str) -> str:
    try:
        with open(os.path.join(*parts), encoding="utf-8", errors="replace") as stream:
            return stream.read().strip()
    except OSError:
        return ""


def could_be_rail(sys_root: str, name: str) -> bool:
    """An Ethernet interface of its own: no bridge, bond, tunnel or wireless one, and in none of them."""
    folder = os.path.join(sys_root, "class", "net", name)
    not_ours = ("bridge", "bonding", "master", "tun_flags", "wireless", "phy80211")
    return text_of(folder, "type") == ETHERNET and not any(os.path.exists(os.path.join(folder, n)) for n in not_ours)


def ssh_server(pid: int) -> str:
    """Our own end of the SSH connection that this module runs over; empty for a local run."""
    while pid > 1:
        try:
            with open(f"/proc/{pid}/environ", "rb") as stream:
                for variable in stream.read().split(b"\0"):
                    if variable.startswith(b"SSH_CONNECTION="):
                        return variable.decode("ascii", "replace").split()[2]
            with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stream:
                pid = int(stream.read().rpartition(")")[2].split()[1])
        except (OSError, IndexError, ValueError):
            return ""
    return ""


def command(module: AnsibleModule, *argv: str) -> str:
    rc, out, err = module.run_command(list(argv))
    if rc != 0:
        module.fail_json(msg=f"'{' '.join(argv)}' failed with rc {rc}: {(err or out).strip() or 'it gave no reason'}.")
    return str(out)


def opened(interface: str) -> socket.socket:
    """A socket for our frames on one interface, which also hears what is meant for the nearest bridge."""
    port = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETHERTYPE))
    port.bind((interface, ETHERTYPE))
    number = socket.if_nametoindex(interface)
    request = struct.pack("iHH8s", number, PACKET_MR_MULTICAST, 6, mac_bytes(NEAREST_BRIDGE))
    port.setsockopt(SOL_PACKET, PACKET_ADD_MEMBERSHIP, request)
    return port


def listen(
    ports: t.Mapping[str, socket.socket], macs: t.Mapping[str, str], node: str, run: str, seconds: int
) -> list[Heard]:
    """Send on all interfaces and listen on all, for a while."""
    heard: dict[Heard, None] = {}
    names = {port: name for name, port in ports.items()}
    deadline, next_time = time.monotonic() + seconds, 0.0
    while time.monotonic() < deadline:
        if time.monotonic() >= next_time:
            next_time = time.monotonic() + INTERVAL_S
            for name, port in ports.items():
                for destination in (BROADCAST, NEAREST_BRIDGE):
                    # A link that has just lost its carrier sends nothing; the other frames go on.
                    try:
                        port.send(frame(destination, macs[name], run, node, name))
                    except OSError:
                        continue
        ready, _w, _x = select.select(list(names), [], [], INTERVAL_S / 5)
        for port in ready:
            try:
                data, origin = port.recvfrom(2048)
            except OSError:
                continue
            found = parse_frame(data, run, names[port]) if origin[2] != PACKET_OUTGOING else None
            if found and (found.node, found.interface) != (node, names[port]):
                heard[found] = None
    return list(heard)


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "node": {"type": "str", "required": True},
            "run": {"type": "str", "required": True},
            "interfaces": {"type": "list", "elements": "str", "default": []},
            "seconds": {"type": "int", "default": 8},
            "carrier_wait_s": {"type": "int", "default": 5},
            "sys_root": {"type": "path", "default": "/sys"},
        },
        supports_check_mode=True,
    )
    params = module.params
    links = parse_links(command(module, "ip", "-json", "addr", "show"))
    keep = set(parse_default_interfaces(command(module, "ip", "-json", "-4", "route", "show", "default")))
    keep.add(interface_of(ssh_server(os.getpid()) or "none", links))
    sys_root = params["sys_root"]
    names = params["interfaces"] or [name for name in links if name not in keep and could_be_rail(sys_root, name)]
    missing = [name for name in names if name not in links]
    if missing or keep & set(names):
        wrong = ", ".join(missing or sorted(keep & set(names)))
        module.fail_json(
            msg=f"interfaces names {wrong}, which "
            f"{'this node does not have' if missing else 'carries the management'}; it has {', '.join(sorted(links))}."
        )
    down = [name for name in names if not links[name].up]
    heard: list[Heard] = []
    ports: dict[str, socket.socket] = {}
    if not module.check_mode:
        try:
            for name in down:
                command(module, "ip", "link", "set", "dev", name, "up")
            deadline = time.monotonic() + (params["carrier_wait_s"] if down else 0)
            while True:
                links = parse_links(command(module, "ip", "-json", "addr", "show"))
                if all(links[name].carrier for name in names) or time.monotonic() >= deadline:
                    break
                time.sleep(0.25)
            macs = {name: text_of(sys_root, "class", "net", name, "address") for name in names}
            ports = {
                name: opened(name) for name in names if links[name].up and re.fullmatch(r"[0-9a-f:]{17}", macs[name])
            }
            heard = listen(ports, macs, params["node"], params["run"], params["seconds"])
        except OSError as error:
            module.fail_json(msg=f"The frames could not be sent: {error}. This needs root, as become gives it.")
        finally:
            for port in ports.values():
                port.close()
            for name in down:
                module.run_command(["ip", "link", "set", "dev", name, "down"])
    lldp = {}
    if module.get_bin_path("lldpctl"):
        lldp = parse_lldp(str(module.run_command(["lldpctl", "-f", "json0"])[1]))
    ends = [
        {
            "interface": name,
            "mac": text_of(sys_root, "class", "net", name, "address"),
            "carrier": links[name].carrier,
            "pci": (
                re.findall(r"PCI_SLOT_NAME=(\S+)", text_of(sys_root, "class", "net", name, "device", "uevent")) or [""]
            )[0],
            "lldp": lldp.get(name, ""),
        }
        for name in names
    ]
    module.exit_json(changed=False, ends=ends, heard=[asdict(found) for found in heard])


if __name__ == "__main__":
    main()
