#!/usr/bin/python
# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Look at a node's GPUs again and again until it is told to end."""

from __future__ import annotations

DOCUMENTATION = r"""
module: gpu_watch
short_description: Power and clocks of a node's GPUs while something else is measured
version_added: 0.1.0
author: The sparkrig engineers (@sparkrig)
description:
  - Asks C(nvidia-smi) every few seconds until O(until) exists, and returns what it saw. Run it with C(async).
  - On a node without a GPU it ends at once and says so.
attributes:
  check_mode:
    support: full
    description: Looks once.
  diff_mode:
    support: none
    description: Nothing is changed.
  idempotent:
    support: full
    description: It reads and changes nothing.
options:
  until:
    description: The file whose existence ends the watch.
    type: path
    required: true
  every_s:
    description: How often to look.
    type: float
    default: 2
  at_most_s:
    description: How long to look when the file never comes, as when the controller was interrupted.
    type: int
    default: 21600
"""

EXAMPLES = r"""
---
- name: Watch the GPUs while the next tasks run
  sparkrig.serving.gpu_watch:
    until: /run/sparkrig-bench.over
  async: 21660
  poll: 0
  register: watch
"""

RETURN = r"""
samples:
  description:
    - What was seen in the order of time. C(epoch_s) is when, C(power_watts) that of all GPUs of the node together and
      C(sm_clock_mhz) the clock of the slowest, null where a GPU does not tell.
  returned: always
  type: list
  elements: dict
sentence:
  description: What the node's GPUs are, or that it has none.
  returned: always
  type: str
  sample: This node has no GPU.
"""

import os
import time
import typing as t
from dataclasses import asdict

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.sparkrig.serving.plugins.module_utils._bench import GpuSample
from ansible_collections.sparkrig.serving.plugins.module_utils._gpu_probe import smi_of

if t.TYPE_CHECKING:
    from collections.abc import Sequence

    from ansible_collections.sparkrig.serving.plugins.module_utils._gpu import Gpu


def looked(gpus: Sequence[Gpu]) -> GpuSample:
    """The GPUs of this node as one sample of now."""
    watts = [gpu.power_watts for gpu in gpus if gpu.power_watts is not None]
    clocks = [gpu.sm_clock_mhz for gpu in gpus if gpu.sm_clock_mhz is not None]
    return GpuSample(time.time(), sum(watts) if len(watts) == len(gpus) else None, min(clocks) if clocks else None)


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "until": {"type": "path", "required": True},
            "every_s": {"type": "float", "default": 2.0},
            "at_most_s": {"type": "int", "default": 21600},
        },
        supports_check_mode=True,
    )
    params = module.params
    if params["every_s"] <= 0:
        module.fail_json(msg=f"every_s is {params['every_s']:g}; it must be more than 0.")
    smi = smi_of(module)
    samples: list[GpuSample] = []
    end_s = time.monotonic() + params["at_most_s"]
    while True:
        seen = smi.query()
        if not seen.gpus:
            break
        samples.append(looked(seen.gpus))
        if module.check_mode or os.path.exists(params["until"]) or time.monotonic() >= end_s:
            break
        time.sleep(params["every_s"])
    module.exit_json(changed=False, samples=[asdict(one) for one in samples], sentence=seen.sentence)


if __name__ == "__main__":
    main()
