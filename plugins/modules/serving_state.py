#!/usr/bin/python
# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Say in one glance how a service of the rig is."""

from __future__ import annotations

DOCUMENTATION = r"""
module: serving_state
short_description: How the rig's services are on this node, in one glance
version_added: 0.1.0
author: The sparkrig engineers (@sparkrig)
description:
  - Reads the state of systemd units, the health of the API, the nodes of the Ray cluster, and from the journal how far
    the engine came or of what it died.
  - Changes nothing. M(sparkrig.serving.wait_for_state) asks it again and again until it says RV(ready).
extends_documentation_fragment:
  - sparkrig.serving._attributes
  - sparkrig.serving._ray_cluster
attributes:
  check_mode:
    support: full
  diff_mode:
    support: N/A
  idempotent:
    support: full
options:
  units:
    description: The units to look at. The first one decides whether the service is there; the others are only reported.
    type: list
    elements: str
    required: true
  health_url:
    description: An URL that must answer with 200.
    type: str
  settings:
    description: The watchdog's settings on this node, which name the URL where O(health_url) does not.
    type: path
  ray:
    description: A Ray cluster that must be complete.
  ports:
    description:
      - Addresses and ports as C(ADDRESS:PORT). What listens there and is not the rig's is told in RV(ports_taken).
    type: list
    elements: str
    default: []
  leftovers_under:
    description: A folder. What runs a program under it is the rig's, even when it was left behind by an earlier start.
    type: path
    default: /opt/sparkrig
  restarts_seen:
    description: How many restarts of the first unit are known already. One more means that it died.
    type: int
  patience_s:
    description: How long the first unit may take to get ready. Older and not ready means RV(wedged).
    type: int
    default: 1800
  log_globs:
    description: Log files that tell about the engine besides the journal, such as those of Ray's workers.
    type: list
    elements: str
    default: []
"""

EXAMPLES = r"""
---
- name: How is the engine
  sparkrig.serving.serving_state:
    units: [sparkrig-vllm.service]
    health_url: http://127.0.0.1:18089/health
"""

RETURN = r"""
ready:
  description: Everything that was asked for is there.
  returned: always
  type: bool
failed_state:
  description: It is not there, and waiting will not help.
  returned: always
  type: bool
wedged:
  description: The first unit runs or failed, is not ready, and only a fresh start of everything below it will help.
  returned: always
  type: bool
message:
  description: What is going on, in a few words.
  returned: always
  type: str
  sample: loading weights, 2 of 4 shards
sentence:
  description: What went wrong, the engine's own error first. Empty when nothing did.
  returned: always
  type: str
phase:
  description: How far the engine came.
  returned: always
  type: str
last_error:
  description: The error in the log of this start that the others follow from.
  returned: always
  type: str
health:
  description: The HTTP status of the API, or the reason why there is none. Null when it was not asked.
  returned: always
  type: str
units:
  description: The units by name, as systemd sees them.
  returned: always
  type: dict
ray_alive:
  description: The addresses of the Ray nodes that are alive. Null when it was not asked or Ray did not answer.
  returned: always
  type: list
  elements: str
drained:
  description: With O(health_url), whether the API is closed to new requests (M(sparkrig.serving.rig_drain)).
  returned: always
  type: bool
ports_taken:
  description: One sentence for each of O(ports) that somebody else listens on.
  returned: always
  type: list
  elements: str
  sample: ["port 26479 on 10.98.1.11 is taken by process 812 (nginx)"]
memory_total_bytes:
  description: Memory of this node, or of its control group when that is less.
  returned: always
  type: int
memory_available_bytes:
  description: What of it is available.
  returned: always
  type: int
"""

import glob
import json
import os
import time
import typing as t
import urllib.error
import urllib.request

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.sparkrig.serving.plugins.module_utils._engine_log import phase, root_error
from ansible_collections.sparkrig.serving.plugins.module_utils._firewall import ASK_DRAINED
from ansible_collections.sparkrig.serving.plugins.module_utils._launch_ground import (
    bytes_read,
    memory_now,
    read_text,
)
from ansible_collections.sparkrig.serving.plugins.module_utils._node import gib
from ansible_collections.sparkrig.serving.plugins.module_utils._ports import taken_ports
from ansible_collections.sparkrig.serving.plugins.module_utils._ray_probe import RAY_OPTION, probe_ray
from ansible_collections.sparkrig.serving.plugins.module_utils._rig_unit import (
    SHOWN_PROPERTIES,
    UnitState,
    parse_show,
    wedged,
)

# What a start of the engine waits for, written by the watchdog's program.
WAITING = "/var/lib/sparkrig/watch/waiting.json"
# What they listen on is the rig's own.
RIG_UNITS = ("sparkrig-ray.service", "sparkrig-vllm.service", "sparkrig-lifeline.service")
# Where the ranks run on this node.
OWN_UNITS = ("sparkrig-ray.service", "sparkrig-vllm.service")
JOURNAL_LINES = 4000
LOG_TAIL_BYTES = 65536


def health_of(url: str) -> str:
    """The status as text, or why there is none. Never through a proxy: it is a machine of the rig."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=5) as answer:
            return str(answer.status)
    except urllib.error.HTTPError as error:
        return str(error.code)
    except (urllib.error.URLError, OSError) as error:
        return str(getattr(error, "reason", error))


def journal(module: AnsibleModule, unit: str, state: UnitState) -> list[str]:
    """The lines that the unit wrote since its last start; of the starts before when it just died."""
    command = ["journalctl", "--unit", unit, "--output=cat", "--no-pager", f"--lines={JOURNAL_LINES}"]
    if state.invocation:
        command.append(f"_SYSTEMD_INVOCATION_ID={state.invocation}")
    code, out, _err = module.run_command(command, errors="surrogate_then_replace")
    return out.splitlines() if code == 0 else []


def tails(patterns: list[str], since: float) -> list[str]:
    """The last lines of the log files that were written since *since*, the newest file last."""
    paths = [path for pattern in patterns for path in glob.glob(pattern)]
    lines: list[str] = []
    for path in sorted(paths, key=os.path.getmtime):
        if os.path.getmtime(path) < since:
            continue
        with open(path, "rb") as handle:
            handle.seek(max(0, os.path.getsize(path) - LOG_TAIL_BYTES))
            lines += handle.read().decode("utf-8", "replace").splitlines()
    return lines


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "units": {"type": "list", "elements": "str", "required": True},
            "health_url": {"type": "str"},
            "settings": {"type": "path"},
            "ray": RAY_OPTION,
            "ports": {"type": "list", "elements": "str", "default": []},
            "leftovers_under": {"type": "path", "default": "/opt/sparkrig"},
            "restarts_seen": {"type": "int"},
            "patience_s": {"type": "int", "default": 1800},
            "log_globs": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    params = module.params
    if params["settings"] and not params["health_url"]:
        params["health_url"] = json.loads(read_text(params["settings"]) or "{}").get("url", "") + "/health"
    systemctl = module.get_bin_path("systemctl", required=True)
    units = {}
    for name in params["units"]:
        _code, out, _err = module.run_command([systemctl, "show", f"--property={','.join(SHOWN_PROPERTIES)}", name])
        units[name] = parse_show(out)
    first = params["units"][0]
    state = units[first]

    result: dict[str, t.Any] = {"health": None, "ray_alive": None, "phase": "", "last_error": ""}
    waiting: list[str] = []
    if state.active != "active":
        # Its own start may wait for the other nodes, and says for what.
        what = json.loads(read_text(WAITING) or "null") if state.sub == "start-pre" else None
        waiting.append(str(what["sentence"]) if what else f"{first} is {state.active} ({state.sub})")
    nft = module.get_bin_path("nft")
    result["drained"] = bool(nft) and bool(params["health_url"]) and module.run_command([nft, *ASK_DRAINED])[0] == 0
    if params["health_url"]:
        result["health"] = health_of(params["health_url"])
        if result["health"] != "200":
            lines = journal(module, first, state)
            since = time.time() - (time.monotonic() - state.started_monotonic_s) if state.main_pid else time.time()
            result["phase"] = phase(lines + tails(params["log_globs"], since))
            result["last_error"] = root_error(lines)
            waiting.append(result["phase"] or f"no answer from the API yet ({result['health']})")
            if state.main_pid:
                waiting.append(f"{gib(bytes_read(OWN_UNITS))} read, {gib(memory_now().available_bytes)} of memory left")
    if params["ray"] and not waiting:
        cluster, problem = probe_ray(
            module.run_command, params["ray"]["python"], params["ray"]["address"], params["ray"]["nodes"]
        )
        if cluster is None:
            waiting.append(problem)
        else:
            result["ray_alive"] = cluster.alive
            waiting += cluster.problems

    died = params["restarts_seen"] is not None and state.restarts > params["restarts_seen"]
    failed = bool(waiting) and (state.active == "failed" or died)
    sentence = ""
    if failed:
        error = result["last_error"] or root_error(journal(module, first, UnitState()))
        result["last_error"] = error
        died_times = f"it died and was restarted {state.restarts} times"
        end = f"systemd says {state.result}" if state.active == "failed" else died_times
        sentence = f"{error or 'No error is in its journal'} ({first}: {end})"
    seen = memory_now()
    module.exit_json(
        changed=False,
        ready=not waiting,
        failed_state=failed,
        wedged=bool(waiting) and wedged(state, time.monotonic() - state.started_monotonic_s, params["patience_s"]),
        message=", ".join(waiting) or "ready",
        sentence=sentence,
        units={name: unit.as_dict() for name, unit in units.items()},
        ports_taken=taken_ports(params["ports"], RIG_UNITS, params["leftovers_under"]),
        memory_total_bytes=seen.total_bytes,
        memory_available_bytes=seen.available_bytes,
        **result,
    )


if __name__ == "__main__":
    main()
