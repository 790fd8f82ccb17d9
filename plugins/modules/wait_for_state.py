#!/usr/bin/python
# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The documentation of an action that runs on the controller; see plugins/action/wait_for_state.py."""

from __future__ import annotations

DOCUMENTATION = r"""
module: wait_for_state
short_description: Wait for a state that a module reads, with progress that a person can follow
version_added: 0.1.0
author: The sparkrig engineers (@sparkrig)
description:
  - Runs a module on the node until its result has C(ready=true), and shows its C(message) when it changes and at
    least every O(report_s) seconds.
  - A result with C(failed_state=true) ends the wait at once with the module's C(sentence).
  - In check mode nothing was started, so nothing is waited for.
options:
  module:
    description: The module to ask, by its full name. It must not change anything.
    type: str
    required: true
  args:
    description: Its options.
    type: dict
    default: {}
  what:
    description: What is waited for, in a few words.
    type: str
    required: true
  timeout_s:
    description: How long to wait at most.
    type: int
    required: true
  interval_s:
    description: The pause between two questions.
    type: float
    default: 2
  report_s:
    description: After how many seconds without news the last message is shown again.
    type: float
    default: 10
  advice:
    description: What a person should do when the time is over.
    type: str
    default: Look at the journal of the unit on that node.
attributes:
  check_mode:
    support: full
    description: Says that nothing was waited for.
  diff_mode:
    support: none
    description: Nothing is changed.
  idempotent:
    support: full
    description: Nothing is changed.
"""

EXAMPLES = r"""
---
- name: Wait for the engine
  sparkrig.serving.wait_for_state:
    what: the engine
    module: sparkrig.serving.serving_state
    args:
      units: [sparkrig-vllm.service]
      health_url: http://127.0.0.1:18089/health
    timeout_s: 300
"""

RETURN = r"""
waited_s:
  description: How long it took.
  returned: always
  type: float
state:
  description: The module's last result.
  returned: always
  type: dict
"""
