#!/usr/bin/python
# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One controller at a time."""

from __future__ import annotations

DOCUMENTATION = r"""
module: launch_lock
short_description: One controller at a time changes the rig
version_added: 0.1.0
author: The sparkrig engineers (@sparkrig)
description:
  - Takes, keeps or releases the launch lock of this node. A second launch is refused with who holds it.
  - The lock is a file in C(/run), so a reboot releases it. That of a run that was killed is taken over, at once by the
    same controller, and by another one when the lease has run out.
  - The lock says who works on the rig and is no part of it, so taking or releasing it counts as no change.
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
  state:
    description: What to do with the lock.
    type: str
    choices: [held, released]
    default: held
  holder:
    description: Who wants it, as P(sparkrig.serving.controller#lookup) gives it.
    type: dict
    required: true
  lease_s:
    description: How long a holder that says nothing any more keeps it from other controllers.
    type: int
    default: 900
  take_over:
    description: Take the lock whoever has it. For a person who knows that the holder is gone.
    type: bool
    default: false
"""

EXAMPLES = r"""
---
- name: Be the only one
  sparkrig.serving.launch_lock:
    holder: "{{ lookup('sparkrig.serving.controller', 'sparkrig.serving.site') }}"

- name: Let others
  sparkrig.serving.launch_lock:
    holder: "{{ lookup('sparkrig.serving.controller', 'sparkrig.serving.site') }}"
    state: released
"""

RETURN = r"""
actions:
  description: One sentence on what was done.
  returned: always
  type: list
  elements: str
"""

import os
import time

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.sparkrig.serving.plugins.module_utils._launch_ground import read_text
from ansible_collections.sparkrig.serving.plugins.module_utils._launch_lock import (
    LOCK,
    Holder,
    holder_of,
    may_take,
    parse_holder,
)


def take(module: AnsibleModule, wanted: Holder, path: str) -> None:
    """Put the lock there so that of two who try at once only one gets it."""
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    temporary = f"{path}.{os.getpid()}"
    with open(temporary, "w", encoding="utf-8") as handle:
        handle.write(wanted.text())
    present = parse_holder(read_text(path))
    try:
        if present is not None or os.path.exists(path):
            os.replace(temporary, path)
        else:
            os.link(temporary, path)
            os.unlink(temporary)
    except FileExistsError:
        os.unlink(temporary)
    # Who was a moment later has written over it, or was there first.
    winner = parse_holder(read_text(path))
    if winner is None or winner.token != wanted.token:
        module.fail_json(
            msg="Another launch took the lock of this node in the same moment. What to do: run this again."
        )


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["held", "released"], "default": "held"},
            "holder": {"type": "dict", "required": True},
            "lease_s": {"type": "int", "default": 900},
            "take_over": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    params = module.params
    now = time.time()
    try:
        asking, alive = holder_of(params["holder"])
    except ValueError as error:
        module.fail_json(msg=f"launch_lock: {error}.")
    present = parse_holder(read_text(LOCK))
    if params["state"] == "released":
        ours = present is not None and present.token == asking.token
        if ours and not module.check_mode:
            os.unlink(LOCK)
        module.exit_json(changed=False, actions=["launch lock: released" if ours else "launch lock: not ours"])
    may, why = may_take(present, asking, alive, now)
    if not may and not params["take_over"]:
        module.fail_json(
            msg=f"A launch is under way on this node: {why}. Two at once would break each other. What to do: wait until"
            " it is done; when it is surely gone, run this again with `-e rig_take_over=true`."
        )
    since = present.since if present is not None and present.token == asking.token else now
    wanted = Holder(asking.who, asking.controller, asking.process, asking.what, since, now + params["lease_s"])
    if not module.check_mode:
        take(module, wanted, LOCK)
    module.exit_json(changed=False, actions=[f"launch lock: {why if may else 'taken over by force'}"])


if __name__ == "__main__":
    main()
