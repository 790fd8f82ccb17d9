#!/usr/bin/python
# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Collectives over all nodes from the installed runtime, and the transport that NCCL chose."""

from __future__ import annotations

DOCUMENTATION = r"""
module: fabric_collective
short_description: All-gather and all-reduce over all nodes, or what a running NCCL chose
version_added: 0.1.0
author: The sparkrig engineers (@sparkrig)
description:
  - With O(mode=run), one rank of C(torch.distributed) on each node, all at the same time, from the installed runtime
    and with the environment of the services. NCCL where there is a GPU, Gloo elsewhere.
  - With O(mode=transport), reads the newest log of NCCL that the served model wrote, and fails when it uses sockets
    although O(environment_files) names RDMA devices.
extends_documentation_fragment:
  - sparkrig.serving._attributes
attributes:
  check_mode:
    support: full
    details: In check mode no rank is started.
  diff_mode:
    support: none
  idempotent:
    support: full
options:
  mode:
    description: What to do.
    type: str
    choices: [run, transport]
    default: run
  rank:
    description: The rank of this node.
    type: int
    default: 0
  world:
    description: How many nodes there are.
    type: int
    default: 1
  address:
    description: The address of rank 0. Needed for O(mode=run).
    type: str
    default: ""
  port:
    description: The port at which the ranks meet.
    type: int
    default: 29555
  python:
    description: The Python of the installed runtime.
    type: path
    default: /opt/sparkrig/current/bin/python
  environment_files:
    description: The environment of the services.
    type: list
    elements: path
    default: [/etc/sparkrig/runtime.env, /etc/sparkrig/fabric.env]
  max_bytes:
    description: The largest buffer. At most 2 GB, since larger ones can freeze a node.
    type: int
    default: 1073741824
  min_gbytes_per_s:
    description: Number of nodes to what NCCL's all-gather must reach, as bus bandwidth in GB/s.
    type: dict
    default: {}
  max_small_us:
    description: Number of nodes to the time that NCCL's all-reduce of 10 KiB may take, in microseconds.
    type: dict
    default: {}
  timeout_s:
    description: How long it may take, in seconds.
    type: int
    default: 120
  log_folder:
    description: Where the services' NCCL writes its logs.
    type: path
    default: /run/sparkrig/nccl
"""

EXAMPLES = r"""
---
- name: Run collectives over all nodes
  sparkrig.serving.fabric_collective:
    rank: "{{ ansible_play_hosts_all.index(inventory_hostname) }}"
    world: "{{ ansible_play_hosts_all | length }}"
    address: 192.168.100.1
    min_gbytes_per_s: {2: 21.875}

- name: See what the served model's NCCL uses
  sparkrig.serving.fabric_collective:
    mode: transport
"""

RETURN = r"""
actions:
  description: What was measured or seen, in sentences.
  returned: always
  type: list
  elements: str
  sample: ["nccl over 2 nodes: all-gather 23.74 GB/s, all-reduce of 10 KiB 67.1 us."]
backend:
  description: What carried the collectives.
  returned: O(mode=run)
  type: str
  sample: nccl
network:
  description: The network that NCCL names, empty for Gloo.
  returned: success
  type: str
  sample: IB
"""

import os
import tempfile
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.sparkrig.serving.plugins.module_utils._fabric_collective import (
    BUFFER_LIMIT_BYTES,
    PROBE,
    Transport,
    collective_problems,
    parse_environment,
    parse_probe,
    parse_transport,
    transport_problems,
    wanted_devices,
)


def read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read()
    except FileNotFoundError:
        return ""


def newest_log(folder: str) -> str:
    """The newest log in the folder that names a transport; empty when there is none."""
    paths = [os.path.join(folder, name) for name in os.listdir(folder)] if os.path.isdir(folder) else []
    for path in sorted(paths, key=os.path.getmtime, reverse=True):
        text = read(path)
        if "NET/" in text or "Using network" in text:
            return text
    return ""


def words(seen: Transport) -> str:
    devices = f" on {', '.join(seen.devices)}" if seen.devices else ""
    channels = ", ".join(f"{number} channels via {name}" for name, number in sorted((seen.channels or {}).items()))
    return f"NCCL uses {seen.network or 'an unnamed network'}{devices}{': ' + channels if channels else ''}."


def transport(module: AnsibleModule) -> t.NoReturn:
    """What the served model's NCCL chose."""
    wanted = wanted_devices("\n".join(read(path) for path in module.params["environment_files"]))
    text = newest_log(module.params["log_folder"])
    seen = parse_transport(text)
    problems = transport_problems(seen, wanted)
    if problems:
        module.fail_json(msg=" ".join(problems), actions=[words(seen)], network=seen.network)
    module.exit_json(changed=False, actions=[words(seen)], network=seen.network)


def run(module: AnsibleModule) -> t.NoReturn:
    """One rank of the collectives."""
    params = module.params
    if not params["address"]:
        module.fail_json(msg="address is empty; the ranks need the address of rank 0.")
    if not 0 < params["max_bytes"] <= BUFFER_LIMIT_BYTES:
        module.fail_json(
            msg=f"max_bytes is {params['max_bytes']}; it must be from 1 to {BUFFER_LIMIT_BYTES}: larger buffers can"
            " freeze a node, since they come from the memory that it runs in."
        )
    if not os.access(params["python"], os.X_OK):
        module.fail_json(
            msg=f"{params['python']} is not there; the collectives run from the installed runtime. Run role runtime."
        )
    if module.check_mode:
        module.exit_json(changed=False, actions=["No rank was started."], backend="", network="")
    environment = {}
    for path in params["environment_files"]:
        environment.update(parse_environment(read(path)))
    with tempfile.TemporaryDirectory(prefix="sparkrig-") as folder:
        # Not into the logs of the served model.
        environment["NCCL_DEBUG_FILE"] = os.path.join(folder, "%h.%p.log")
        argv = [params["python"], "-c", PROBE, str(params["rank"]), str(params["world"]), params["address"]]
        argv += [str(params["port"]), str(params["max_bytes"]), str(params["timeout_s"])]
        rc, out, err = module.run_command(
            ["timeout", "--kill-after=5", str(params["timeout_s"]), *argv], environ_update=environment
        )
        seen = parse_transport(newest_log(folder))
    try:
        result = parse_probe(out if "SPARKRIG" in out else out + err)
    except ValueError as error:
        why = f"took longer than {params['timeout_s']} s" if rc == 124 else f"ended with rc {rc}: {error}"
        module.fail_json(msg=f"Rank {params['rank']} of {params['world']} {why}. The other ranks wait for it.", rc=rc)
    problems = collective_problems(result, params["world"], params["min_gbytes_per_s"], params["max_small_us"])
    sentences = [
        f"{result.backend} over {params['world']} nodes: all-gather {result.best_gbytes_per_s:.2f} GB/s, all-reduce of"
        f" 10 KiB {result.all_reduce_small_us:.1f} us."
    ]
    if result.backend == "nccl":
        sentences.append(words(seen))
        names = environment.get("NCCL_IB_HCA", "")
        problems += transport_problems(seen, wanted_devices(f"NCCL_IB_HCA={names}"))
    answer: dict[str, t.Any] = {
        "changed": False,
        "actions": sentences,
        "backend": result.backend,
        "network": seen.network,
        "all_reduce_small_us": round(result.all_reduce_small_us, 1),
        "all_gather_gbytes_per_s": {
            str(size): round(value, 3) for size, value in result.all_gather_gbytes_per_s.items()
        },
    }
    if problems:
        module.fail_json(msg=" ".join(problems), **answer)
    module.exit_json(**answer)


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "mode": {"type": "str", "choices": ["run", "transport"], "default": "run"},
            "rank": {"type": "int", "default": 0},
            "world": {"type": "int", "default": 1},
            "address": {"type": "str", "default": ""},
            "port": {"type": "int", "default": 29555},
            "python": {"type": "path", "default": "/opt/sparkrig/current/bin/python"},
            "environment_files": {
                "type": "list",
                "elements": "path",
                "default": ["/etc/sparkrig/runtime.env", "/etc/sparkrig/fabric.env"],
            },
            "max_bytes": {"type": "int", "default": 1073741824},
            "min_gbytes_per_s": {"type": "dict", "default": {}},
            "max_small_us": {"type": "dict", "default": {}},
            "timeout_s": {"type": "int", "default": 120},
            "log_folder": {"type": "path", "default": "/run/sparkrig/nccl"},
        },
        supports_check_mode=True,
    )
    if module.params["mode"] == "transport":
        transport(module)
    run(module)


if __name__ == "__main__":
    main()
