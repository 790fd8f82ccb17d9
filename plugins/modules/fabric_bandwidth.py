#!/usr/bin/python
# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Measure what this node's rails carry to every other node, all nodes at once and in pairs."""

from __future__ import annotations

DOCUMENTATION = r"""
module: fabric_bandwidth
short_description: Bandwidth and latency of every pair of nodes on every rail
version_added: 0.1.0
author: The sparkrig engineers (@sparkrig)
description:
  - Runs on all nodes at the same time. In every round each node is in one pair, so that N nodes take N - 1 rounds, and
    no measurement disturbs another.
  - Each pair measures every rail alone, all rails at once, and the time of a small message. Over RDMA by C(ib_write_bw)
    and C(ib_write_lat), elsewhere over TCP.
  - The node that comes later in O(nodes) reports the pair. A pair below O(thresholds) fails, with by how much.
extends_documentation_fragment:
  - sparkrig.serving._attributes
attributes:
  check_mode:
    support: full
    details: In check mode nothing is sent.
  diff_mode:
    support: none
  idempotent:
    support: full
options:
  node:
    description: The name of this node in O(nodes).
    type: str
    required: true
  nodes:
    description: All nodes in their order, each with its rails, a dict of interface to address with prefix.
    type: dict
    required: true
  transport:
    description: What carries it. V(auto) is RDMA where both ends of a pair have it and C(perftest), else TCP.
    type: str
    choices: [auto, rdma, tcp]
    default: auto
  seconds:
    description: How long each step is measured.
    type: int
    default: 2
  thresholds:
    description:
      - By transport (V(rdma), V(tcp)), what the slowest pair must have.
      - C(rail_gbps) and C(total_gbps) in Gb/s, C(latency_us) in microseconds. What is not listed is only measured.
    type: dict
    default: {}
  port:
    description: The first of the TCP ports that are used, one for each rail and one more.
    type: int
    default: 18515
  sys_root:
    description: Where sysfs is; RDMA devices are read from there.
    type: path
    default: /sys
"""

EXAMPLES = r"""
---
- name: Measure all pairs
  sparkrig.serving.fabric_bandwidth:
    node: "{{ inventory_hostname }}"
    nodes: "{{ ansible_play_hosts_all | sparkrig.serving.fabric_plan(hostvars) }}"
    thresholds:
      rdma: {rail_gbps: 100, total_gbps: 175, latency_us: 5}
"""

RETURN = r"""
actions:
  description: One sentence for each pair that this node reports.
  returned: always
  type: list
  elements: str
  sample: ["spark2 to spark1 by rdma: enp1s0f0np0 111.7 Gb/s and 1.5 us, all rails 188.2 Gb/s."]
pairs:
  description: What was measured, for the pairs that this node reports.
  returned: success
  type: list
  elements: dict
rounds:
  description: How many rounds there were.
  returned: always
  type: int
  sample: 3
seconds:
  description: How long all rounds took.
  returned: success
  type: float
"""

import time
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.sparkrig.serving.plugins.module_utils._fabric import Rail, parse_rail
from ansible_collections.sparkrig.serving.plugins.module_utils._fabric_pairs import (
    End,
    Measurement,
    measure_pair,
    rounds,
    serve_pair,
    threshold_problems,
)
from ansible_collections.sparkrig.serving.plugins.module_utils._rdma import RdmaPort, gid_of, nccl_name, read_ports


def ends_of(own: t.Sequence[Rail], theirs: t.Sequence[Rail], ports: t.Sequence[RdmaPort]) -> list[End]:
    """The rails that two nodes share, with our own RDMA device on each."""
    ends = []
    for rail in own:
        peer = next((their for their in theirs if their.network == rail.network), None)
        if peer is None:
            continue
        port = next((port for port in ports if port.active and port.carries(rail.interface)), None)
        gid = gid_of(port, rail.address, rail.interface) if port else None
        ends.append(End(rail, peer, nccl_name(port, ports) if port else "", gid.index if gid else -1))
    return ends


def described(pair: Measurement) -> str:
    rails = ", ".join(
        f"{interface} {gbps:.1f} Gb/s and {pair.latency_us[interface]:.1f} us"
        for interface, gbps in pair.rail_gbps.items()
    )
    return f"{pair.client} to {pair.server} by {pair.transport}: {rails}, all rails {pair.total_gbps:.1f} Gb/s."


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "node": {"type": "str", "required": True},
            "nodes": {"type": "dict", "required": True},
            "transport": {"type": "str", "choices": ["auto", "rdma", "tcp"], "default": "auto"},
            "seconds": {"type": "int", "default": 2},
            "thresholds": {"type": "dict", "default": {}},
            "port": {"type": "int", "default": 18515},
            "sys_root": {"type": "path", "default": "/sys"},
        },
        supports_check_mode=True,
    )
    params = module.params
    here = params["node"]
    try:
        rails = {
            name: [parse_rail(interface, cidr) for interface, cidr in addresses.items()]
            for name, addresses in params["nodes"].items()
        }
    except ValueError as error:
        module.fail_json(msg=str(error))
    if here not in rails:
        module.fail_json(msg=f"node is {here!r}, which is not among nodes ({', '.join(rails) or 'none'}).")
    schedule = rounds(list(rails))
    if module.check_mode or len(rails) < 2:
        what = "there is no other node" if len(rails) < 2 else f"{len(schedule)} rounds would be measured"
        module.exit_json(changed=False, actions=[f"Nothing was sent: {what}."], rounds=len(schedule), pairs=[])

    ports = read_ports(params["sys_root"])
    tools = all(module.get_bin_path(tool) for tool in ("ib_write_bw", "ib_write_lat"))
    measured: list[Measurement] = []
    problems: list[str] = []
    began = time.monotonic()
    for server, client in (pair for pairs in schedule for pair in pairs if here in pair):
        other = server if here == client else client
        ends = ends_of(rails[here], rails[other], ports)
        if not ends:
            continue
        rdma = tools and all(end.device and end.gid_index >= 0 for end in ends)
        work = (here, other, ends, params["port"], float(params["seconds"]), params["transport"], rdma)
        try:
            if here == server:
                serve_pair(*work)
            else:
                measured.append(measure_pair(*work))
        except (OSError, ValueError) as error:
            problems.append(f"{here} and {other} could not be measured: {str(error).rstrip('.')}.")
    try:
        for pair in measured:
            problems += threshold_problems(pair, params["thresholds"])
    except ValueError as error:
        module.fail_json(msg=str(error))
    result: dict[str, t.Any] = {
        "changed": False,
        "actions": [described(pair) for pair in measured],
        "pairs": [pair.as_dict() for pair in measured],
        "rounds": len(schedule),
        "seconds": round(time.monotonic() - began, 1),
    }
    if problems:
        module.fail_json(msg="\n".join(problems), **result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
