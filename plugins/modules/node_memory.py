#!/usr/bin/python
# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Empty the swap and drop the page cache right before a launch."""

from __future__ import annotations

DOCUMENTATION = r"""
module: node_memory
short_description: Empty the swap and drop the page cache, right before a launch
version_added: 0.1.0
author: The sparkrig engineers (@sparkrig)
description:
  - On unified memory CUDA counts page cache as used, and what was swapped out comes back page by page while the model
    decodes. Both are put right here, once, before the engine starts.
  - The swap stays on. Each device that holds something is switched off and on again with its priority, and only when
    the memory can take in what it holds.
  - A node that cannot do it (no swap, a read-only C(/proc/sys), a container, whose kernel is its host's) says so in
    RV(actions) and does not fail.
extends_documentation_fragment:
  - sparkrig.serving._attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: partial
    details: Page cache grows again by itself, so dropping it is a change whenever there is some.
options:
  drain_swap:
    description: Take everything that is swapped out back into memory.
    type: bool
    default: false
  drop_page_cache:
    description: Write dirty pages to disk and drop the page cache, dentries and inodes.
    type: bool
    default: false
  reserve_bytes:
    description: The memory that stays available when the swap is drained.
    type: int
    default: 1073741824
  shared_kernel:
    description:
      - Act in a container too. B(Its kernel is the host's, so the swap and the page cache of the host and of all its
        containers are meant.)
    type: bool
    default: false
seealso:
  - module: sparkrig.serving.node_memory_info
"""

EXAMPLES = r"""
---
- name: Begin with an empty swap and no page cache
  sparkrig.serving.node_memory:
    drain_swap: true
    drop_page_cache: true
"""

RETURN = r"""
actions:
  description: One sentence for each thing that was asked for, also when nothing could be done.
  returned: always
  type: list
  elements: str
  sample:
    - This node has no swap; there is nothing to drain.
    - The page cache of 41.20 GiB was dropped; 118.31 GiB of memory are free.
swap_used_bytes:
  description: What the swap holds afterwards.
  returned: always
  type: int
  sample: 0
free_bytes:
  description: MemFree afterwards, which is what CUDA calls free on unified memory.
  returned: always
  type: int
  sample: 127034703872
"""

import os

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.sparkrig.serving.plugins.module_utils import _memory, _memory_probe
from ansible_collections.sparkrig.serving.plugins.module_utils._node import gib

# Less cache than this is always there, and not worth a launch's second.
LITTLE_BYTES = 64 * 2**20


def drain(module: AnsibleModule, seen: _memory.Look) -> tuple[bool, str]:
    """Empty the swap; whether that changed something, and a sentence."""
    plan = _memory.plan_drain(seen.swaps, _memory.rank(seen).available_bytes, module.params["reserve_bytes"])
    if plan.warning:
        module.warn(plan.sentence)
    if not plan.swaps or module.check_mode:
        return bool(plan.swaps), plan.sentence
    swapoff = module.get_bin_path("swapoff", required=True, opt_dirs=["/sbin", "/usr/sbin"])
    swapon = module.get_bin_path("swapon", required=True, opt_dirs=["/sbin", "/usr/sbin"])
    for swap in plan.swaps:
        # The kernel gives negative priorities itself; swapon takes none of them.
        priority = ["--priority", str(swap.priority)] if swap.priority >= 0 else []
        for argv in ([swapoff, swap.name], [swapon, *priority, swap.name]):
            rc, out, err = module.run_command(argv)
            if rc != 0:
                module.fail_json(
                    msg=f"'{' '.join(argv)}' failed ({(err or out).strip() or 'no reason given'}, exit {rc}). See "
                    f"/proc/swaps on the node; `swapon {swap.name}` switches it on again.",
                    rc=rc,
                )
    return True, plan.sentence


def drop(module: AnsibleModule, seen: _memory.Look) -> tuple[bool, str]:
    """Drop the page cache; whether that changed something, and a sentence."""
    size = gib(seen.page_cache_bytes)
    if seen.page_cache_bytes < LITTLE_BYTES:
        return False, f"The page cache is only {size}; it stays."
    if module.check_mode:
        return True, f"The page cache of {size} would be dropped."
    # Only clean pages can be dropped.
    os.sync()
    try:
        with open(f"{_memory_probe.PROC}/sys/vm/drop_caches", "w", encoding="ascii") as stream:
            stream.write("3\n")
    except OSError as error:
        return (
            False,
            f"The page cache of {gib(seen.page_cache_bytes)} stays: /proc/sys is not writable ({error.strerror}).",
        )
    after, _unreadable = _memory_probe.look(with_units=False)
    return (
        True,
        f"The page cache of {gib(seen.page_cache_bytes)} was dropped; {gib(after.free_bytes)} of memory are free.",
    )


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "drain_swap": {"type": "bool", "default": False},
            "drop_page_cache": {"type": "bool", "default": False},
            "reserve_bytes": {"type": "int", "default": 2**30},
            "shared_kernel": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    container = _memory_probe.container()
    changed, actions = False, []
    try:
        for option, act, what in (("drain_swap", drain, "swap"), ("drop_page_cache", drop, "page cache")):
            if not module.params[option]:
                continue
            if container and not module.params["shared_kernel"]:
                actions.append(
                    f"This node is a container ({container}): its {what} is its host's, and is left alone. "
                    "shared_kernel: true acts on it all the same."
                )
                continue
            did, sentence = act(module, _memory_probe.look(with_units=False)[0])
            changed = changed or did
            actions.append(sentence)
        after, _unreadable = _memory_probe.look(with_units=False)
    except ValueError as error:
        module.fail_json(msg=f"The memory of this node cannot be told: {error}")
    module.exit_json(
        changed=changed,
        actions=actions,
        swap_used_bytes=after.swap_total_bytes - after.swap_free_bytes,
        free_bytes=after.free_bytes,
    )


if __name__ == "__main__":
    main()
