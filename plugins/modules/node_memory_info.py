#!/usr/bin/python
# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read where a node's memory is, and compare two looks at it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: node_memory_info
short_description: Where a node's memory is, by unit, and what a rank can really have
version_added: 0.1.0
author: The sparkrig engineers (@sparkrig)
description:
  - Reads C(/proc) and C(/sys); runs no command, changes nothing.
  - What counts for a rank is the smaller of C(MemAvailable) and what the control group (v1 or v2) leaves.
  - With O(interval_s) it looks twice and says what was swapped and faulted in between. Run it so while the model
    decodes, before and after pruning, and the two results are the evidence. MemAvailable alone shows next to nothing.
  - Root sees the memory of every process; another user only that of its own (RV(unreadable_processes)).
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
  interval_s:
    description: Seconds between two looks; with V(0) there is one look and no RV(probe).
    type: float
    default: 0
  units:
    description: Whether the memory of every unit is read. It takes about a millisecond a process.
    type: bool
    default: true
  before:
    description: The result of an earlier run of this module, to compare with. It makes RV(evidence).
    type: dict
"""

EXAMPLES = r"""
---
- name: Look while the model decodes
  sparkrig.serving.node_memory_info:
    interval_s: 10
  register: before

- name: Look again after pruning, while the model decodes, and compare
  sparkrig.serving.node_memory_info:
    interval_s: 10
    before: "{{ before }}"
  register: after

- name: Show the evidence
  ansible.builtin.debug:
    var: after.evidence.lines
"""

RETURN = r"""
memory:
  description: The memory of the node. Sizes are in bytes.
  returned: always
  type: dict
  contains:
    total_bytes:
      description: MemTotal.
      type: int
    free_bytes:
      description: MemFree.
      type: int
    available_bytes:
      description: MemAvailable.
      type: int
    page_cache_bytes:
      description: Cached and Buffers and SReclaimable without Shmem, which dropping the page cache can give back.
      type: int
    swap_total_bytes:
      description: SwapTotal.
      type: int
    swap_free_bytes:
      description: SwapFree.
      type: int
    swap_used_bytes:
      description: The difference of both.
      type: int
    swaps:
      description: The swap devices and files (C(name), C(kind), C(size_bytes), C(used_bytes)).
      type: list
      elements: dict
    swappiness:
      description: The kernel's C(vm.swappiness); null where it cannot be read.
      type: int
    cgroup:
      description:
        - The control group that bounds the node (C(version) 0, 1 or 2, C(limit_bytes) or null, C(usage_bytes),
          C(reclaimable_bytes)).
      type: dict
    counters:
      description: C(pswpin), C(pswpout) (pages), C(pgmajfault), C(pgfault) and C(oom_kill) since boot.
      type: dict
    numa:
      description: The NUMA nodes (C(index), C(total_bytes), C(free_bytes)).
      type: list
      elements: dict
    hugepages:
      description: The huge pages of each size (C(page_bytes), C(total), C(free)).
      type: list
      elements: dict
    gpu_memory:
      description: V(unified) where the GPU uses the machine's memory, V(discrete), or V(none) without a GPU.
      type: str
    units:
      description: The units by what they hold, the largest first.
      type: list
      elements: dict
      contains:
        unit:
          description: The unit; a user's own is named with the user, as in C(pipewire.service (user 1000)).
          type: str
        pss_bytes:
          description: The proportional share of its processes in memory.
          type: int
        swap_bytes:
          description: The proportional share that is swapped out.
          type: int
        major_faults:
          description: The major faults of its processes since their start.
          type: int
        processes:
          description: How many processes it has.
          type: int
    rank:
      description: What a rank that starts now can have.
      type: dict
      contains:
        available_bytes:
          description: The smaller of MemAvailable and what the control group leaves.
          type: int
        total_bytes:
          description: The smaller of MemTotal and the control group's limit.
          type: int
        limited_by:
          description: V(machine) or V(cgroup).
          type: str
        cuda_free_bytes:
          description: On unified memory, what CUDA calls free; null elsewhere.
          type: int
        sentence:
          description: The same in a sentence.
          type: str
probe:
  description:
    - What happened within O(interval_s) (C(seconds), C(counters), C(faults_by_unit)); null with an interval of 0.
  returned: always
  type: dict
  sample:
    seconds: 10.003
    counters: {pswpin: 0, pswpout: 0, pgmajfault: 26, pgfault: 41211, oom_kill: 0}
    faults_by_unit: {sparkrig-vllm.service: 26}
evidence:
  description:
    - The comparison with O(before); null without it. C(lines) is for people; C(units) (C(unit), C(before_bytes),
      C(after_bytes), C(freed_bytes)), C(freed_bytes), C(available_gained_bytes) and C(swap_freed_bytes) are for
      programs.
  returned: always
  type: dict
unreadable_processes:
  description: The number of processes that this user may not look into. 0 for root.
  returned: always
  type: int
  sample: 0
"""

from dataclasses import asdict

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.sparkrig.serving.plugins.module_utils import _memory, _memory_probe


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "interval_s": {"type": "float", "default": 0},
            "units": {"type": "bool", "default": True},
            "before": {"type": "dict"},
        },
        supports_check_mode=True,
    )
    interval_s, before = module.params["interval_s"], module.params["before"]
    if interval_s < 0:
        module.fail_json(msg=f"interval_s is {interval_s:g}; it is a number of seconds, 0 or more.")
    probe = None
    evidence = None
    try:
        if interval_s:
            seen, happened, unreadable = _memory_probe.watch(interval_s)
            probe = {**asdict(happened), "counters": dict(happened.counters)}
        else:
            seen, unreadable = _memory_probe.look(module.params["units"])
        memory = _memory.to_dict(seen)
        if before:
            evidence = _memory.evidence(before.get("memory", before), memory, before.get("probe"), probe)
    except ValueError as error:
        module.fail_json(msg=f"The memory of this node cannot be told: {error}")
    module.exit_json(changed=False, memory=memory, probe=probe, evidence=evidence, unreadable_processes=unreadable)


if __name__ == "__main__":
    main()
