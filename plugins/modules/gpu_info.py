#!/usr/bin/python
# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read what a node's GPUs are and do, through nvidia-smi's machine-readable output."""

from __future__ import annotations

DOCUMENTATION = r"""
module: gpu_info
short_description: Driver, clocks, power, throttling and left-over processes of a node's GPUs
version_added: 0.1.0
author: The sparkrig engineers (@sparkrig)
description:
  - Runs C(nvidia-smi -q -x) and reads it, whatever its exit code. A node without a GPU is an answer, not an error.
  - With O(load_s) it puts a short load on each GPU and reads the clocks meanwhile, because the clock of an idle
    GPU proves nothing. That needs the driver's C(libcuda.so.1) and nothing else, and about 500 MB for as long.
  - There is no load while another process computes on the GPU.
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
  load_s:
    description: Seconds of load on each GPU, at most 30; V(0) puts no load on it.
    type: float
    default: 0
  minimum_clock_mhz:
    description: The SM clock that a healthy GPU reaches under load. Below it, RV(problems) says so.
    type: int
    default: 1500
  rig_units:
    description: Units whose compute processes belong to the rig; those of others are RV(leftovers).
    type: list
    elements: str
    default: [sparkrig-ray.service, sparkrig-vllm.service]
"""

EXAMPLES = r"""
---
- name: See the GPUs, under five seconds of load
  sparkrig.serving.gpu_info:
    load_s: 5
  register: gpu

- name: Refuse a GPU that is stuck at a low clock, or that somebody else uses
  ansible.builtin.assert:
    that: gpu.problems | length == 0
    fail_msg: "{{ gpu.problems | join(' ') }}"
"""

RETURN = r"""
status:
  description:
    - V(ok), V(no_gpu), V(no_driver), V(blocked) (there is a GPU, but this process may not use it), V(mismatch) (of
      driver and library, until the next reboot) or V(error).
  returned: always
  type: str
  sample: ok
sentence:
  description: The same in a sentence.
  returned: always
  type: str
  sample: NVIDIA GB10, driver 580.159.03.
driver_version:
  description: The version of the driver, empty without one.
  returned: always
  type: str
  sample: 580.159.03
cuda_version:
  description: The newest CUDA that the driver supports, empty without one.
  returned: always
  type: str
  sample: "13.0"
gpus:
  description: The GPUs. What the GPU does not tell is null, as memory and power limit are on a GB10.
  returned: always
  type: list
  elements: dict
  contains:
    index:
      description: The number of the GPU.
      type: int
    bus_id:
      description: Its PCI address.
      type: str
    uuid:
      description: Its UUID.
      type: str
    name:
      description: Its name.
      type: str
    persistence_mode:
      description: Whether the driver stays loaded without a client.
      type: bool
    performance_state:
      description: From P0, the fastest, to P12.
      type: str
    temperature_c:
      description: Its temperature.
      type: int
    utilization_percent:
      description: How much of the last second it computed.
      type: int
    sm_clock_mhz:
      description: The clock of its processors now.
      type: int
    max_sm_clock_mhz:
      description: The highest clock that it has.
      type: int
    power_watts:
      description: What it draws now.
      type: float
    power_limit_watts:
      description: What it may draw.
      type: float
    memory_total_bytes:
      description: Its own memory; null where it uses the machine's.
      type: int
    memory_used_bytes:
      description: What is used of it.
      type: int
    unified_memory:
      description: Whether it uses the machine's memory.
      type: bool
    event_reasons:
      description: Every active reason for the present clock.
      type: list
      elements: str
    throttle_reasons:
      description: Those that hold the clock down against the owner's will.
      type: list
      elements: str
    throttle_counters_us:
      description: How long each reason held it down since the driver was loaded, in microseconds.
      type: dict
    processes:
      description: The processes that use it (C(pid), C(kind), C(name), C(used_bytes)).
      type: list
      elements: dict
    load:
      description:
        - What the clocks did under O(load_s) (C(seconds), C(samples), C(sm_clock_mhz) with C(min), C(median) and
          C(max), C(power_watts), C(temperature_c), C(throttle_reasons), C(sentence)); null without a load.
      type: dict
    load_skipped:
      description: Why there was no load although O(load_s) asks for one; empty otherwise.
      type: str
leftovers:
  description: Compute processes that are not the rig's (C(pid), C(name), C(used_bytes), C(unit), C(sentence)).
  returned: always
  type: list
  elements: dict
problems:
  description: Everything that is wrong, in sentences. A node without a GPU has no problem.
  returned: always
  type: list
  elements: str
  sample: []
"""

from dataclasses import asdict

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.sparkrig.serving.plugins.module_utils import _gpu
from ansible_collections.sparkrig.serving.plugins.module_utils._gpu_probe import smi_of

LONGEST_LOAD_S = 30


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "load_s": {"type": "float", "default": 0},
            "minimum_clock_mhz": {"type": "int", "default": _gpu.MINIMUM_CLOCK_MHZ},
            "rig_units": {
                "type": "list",
                "elements": "str",
                "default": ["sparkrig-ray.service", "sparkrig-vllm.service"],
            },
        },
        supports_check_mode=True,
    )
    load_s = module.params["load_s"]
    if not 0 <= load_s <= LONGEST_LOAD_S:
        module.fail_json(msg=f"load_s is {load_s:g}; it is a number of seconds from 0 to {LONGEST_LOAD_S}.")
    module.run_command_environ_update = {"LANGUAGE": "C", "LC_ALL": "C"}
    smi = smi_of(module)
    seen = smi.query()
    leftovers = smi.leftovers(seen, module.params["rig_units"])
    problems = [] if seen.status in ("ok", "no_gpu") else [seen.sentence]
    problems += [leftover.sentence for leftover in leftovers]
    gpus = []
    for gpu in seen.gpus:
        clocks = smi.clocks(gpu, load_s, module.params["minimum_clock_mhz"])
        problems += [sentence for sentence in (clocks.failure, clocks.stuck) if sentence]
        gpus.append({**_gpu.to_dict(gpu), "load": clocks.load, "load_skipped": clocks.skipped})
    module.exit_json(
        changed=False,
        status=seen.status,
        sentence=seen.sentence,
        driver_version=seen.driver_version,
        cuda_version=seen.cuda_version,
        gpus=gpus,
        leftovers=[asdict(leftover) for leftover in leftovers],
        problems=problems,
    )


if __name__ == "__main__":
    main()
