#!/usr/bin/python
# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Let no new request in and wait for those under way, or let requests in again."""

from __future__ import annotations

DOCUMENTATION = r"""
module: rig_drain
short_description: Let no new request in, and wait until those under way are answered
version_added: 0.1.0
author: The sparkrig engineers (@sparkrig)
description:
  - Closes the API's port to new connections from other machines, with an nftables table of its own, and waits until the
    engine has no request left. Requests that are under way go on.
  - The table goes with a reboot, when C(sparkrig-vllm.service) is started again, and with O(state=open).
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
  settings:
    description: The watchdog's settings, which name the API.
    type: path
    default: /etc/sparkrig/watchdog.json
  state:
    description:
      - V(drained) lets no new request in and waits.
      - V(open) lets requests in again, for an engine that was not stopped.
    type: str
    choices: [drained, open]
    default: drained
  timeout_s:
    description: With O(state=drained), how long to wait.
    type: int
    default: 600
"""

EXAMPLES = r"""
---
- name: Answer what is asked, and nothing new
  sparkrig.serving.rig_drain:
    timeout_s: 300
"""

RETURN = r"""
actions:
  description: One sentence for each step.
  returned: always
  type: list
  elements: str
left:
  description: Requests that were not answered in time.
  returned: always
  type: int
waited_s:
  description: How long was waited.
  returned: always
  type: float
"""

import json
import time
import urllib.parse
import urllib.request

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.sparkrig.serving.plugins.module_utils._firewall import ASK_DRAINED, DRAIN_TABLE, drain_rules
from ansible_collections.sparkrig.serving.plugins.module_utils._launch_ground import read_text
from ansible_collections.sparkrig.serving.plugins.module_utils._metrics import parse_metrics, total


def under_way(url: str) -> int | None:
    """How many requests the engine has; None when it does not answer."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url + "/metrics", timeout=5) as answer:
            samples = parse_metrics(answer.read().decode("utf-8", "replace"))
    except (OSError, ValueError):
        return None
    return int((total(samples, "vllm:num_requests_running") or 0) + (total(samples, "vllm:num_requests_waiting") or 0))


def is_closed(module: AnsibleModule) -> bool:
    """Whether the table is there; without nft nobody can have loaded it."""
    nft = module.get_bin_path("nft")
    return bool(nft) and module.run_command([nft, *ASK_DRAINED])[0] == 0


def let_in(module: AnsibleModule) -> None:
    """What O(state=open) does."""
    if not is_closed(module):
        module.exit_json(changed=False, actions=["The API takes new requests already."], left=0, waited_s=0.0)
    if not module.check_mode:
        code, _out, err = module.run_command(
            [module.get_bin_path("nft", required=True), "delete", "table", "inet", DRAIN_TABLE]
        )
        if code != 0:
            module.fail_json(msg=f"The API cannot be opened to new requests: {err.strip()}.", rc=code)
    module.exit_json(changed=True, actions=["The API takes new requests again."], left=0, waited_s=0.0)


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "settings": {"type": "path", "default": "/etc/sparkrig/watchdog.json"},
            "state": {"type": "str", "choices": ["drained", "open"], "default": "drained"},
            "timeout_s": {"type": "int", "default": 600},
        },
        supports_check_mode=True,
    )
    if module.params["state"] == "open":
        let_in(module)
    url = str(json.loads(read_text(module.params["settings"]) or "{}").get("url") or "")
    begin = time.monotonic()
    left = under_way(url) if url else None
    if left is None:
        module.exit_json(changed=False, actions=["The engine does not answer: nothing to drain."], left=0, waited_s=0.0)
    nft = module.get_bin_path("nft", required=True)
    closed = is_closed(module)
    actions = []
    if not closed:
        actions.append("The API takes no new requests from other machines.")
        if not module.check_mode:
            code, _out, err = module.run_command(
                [nft, "-f", "-"], data=drain_rules(urllib.parse.urlsplit(url).port or 80)
            )
            if code != 0:
                module.fail_json(msg=f"The API cannot be closed to new requests: {err.strip()}.", rc=code)
    while left and not module.check_mode and time.monotonic() - begin < module.params["timeout_s"]:
        time.sleep(0.5)
        left = under_way(url) or 0
    waited = round(time.monotonic() - begin, 1)
    rest = "every request is answered" if not left else f"{left} request(s) are still under way and will be cut off"
    actions.append(f"After {waited:.0f} s {rest}.")
    module.exit_json(changed=not closed, actions=actions, left=left or 0, waited_s=waited)


if __name__ == "__main__":
    main()
