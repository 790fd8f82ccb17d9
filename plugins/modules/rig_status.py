#!/usr/bin/python
# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How one node of the rig is."""

from __future__ import annotations

DOCUMENTATION = r"""
module: rig_status
short_description: How one node of the rig is, for a table
version_added: 0.1.0
author: The sparkrig engineers (@sparkrig)
description:
  - Reads the units of the rig, memory, swap and GPU, and on the head the engine's counters and what its watchdog wrote
    down. It needs no profile, because what it has to know is on the node.
extends_documentation_fragment:
  - sparkrig.serving._attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: N/A
  idempotent:
    support: full
options:
  units:
    description: The units of the rig.
    type: list
    elements: str
    default: [sparkrig-vllm.service, sparkrig-ray.service]
  sample_s:
    description: How long to look at the engine's counters, for the speed.
    type: float
    default: 1.0
"""

EXAMPLES = r"""
---
- name: How is this node
  sparkrig.serving.rig_status:
"""

RETURN = r"""
units:
  description: The units by name, as systemd sees them.
  returned: always
  type: dict
memory_available_bytes:
  description: Memory that a process could get.
  returned: always
  type: int
memory_total_bytes:
  description: Memory of this node, or of its control group when that is less.
  returned: always
  type: int
swap_used_bytes:
  description: Swap in use.
  returned: always
  type: int
gpu:
  description: Load, temperature, power and clock of the GPU in words.
  returned: always
  type: str
rank:
  description: The rank that runs here, as its process calls itself. Null when none is seen.
  returned: always
  type: int
health:
  description: The HTTP status of the API, or why there is none. Null where no API is expected.
  returned: always
  type: str
kv_usage:
  description: The part of the KV cache that is in use.
  returned: on the head while the engine answers
  type: float
tokens_per_second:
  description: The speed during O(sample_s).
  returned: on the head while the engine answers
  type: float
requests_running:
  description: Requests that the engine works on.
  returned: on the head while the engine answers
  type: float
requests_waiting:
  description: Requests that wait for their turn.
  returned: on the head while the engine answers
  type: float
object_store_bytes:
  description: Ray's shared memory on this node, as its raylet was told. Null when there is none.
  returned: always
  type: int
unknown_processes:
  description: Processes with the runtime's files or on the GPU that run in none of the rig's units.
  returned: always
  type: list
  elements: str
waiting:
  description: What the start of the engine waits for. Empty when it does not.
  returned: always
  type: str
watchdog:
  description: What the watchdog saw last when that was not good.
  returned: always
  type: str
last_failure:
  description: Why the engine ended last. Empty when it did not.
  returned: always
  type: dict
lock:
  description: Who holds the launch lock. Empty when nobody does.
  returned: always
  type: str
"""

import json
import re
import time
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.sparkrig.serving.plugins.module_utils._launch_ground import (
    memory_now,
    process_titles,
    processes_under,
    read_text,
)
from ansible_collections.sparkrig.serving.plugins.module_utils._launch_lock import LOCK, holder_sentence, parse_holder
from ansible_collections.sparkrig.serving.plugins.module_utils._metrics import parse_metrics, total
from ansible_collections.sparkrig.serving.plugins.module_utils._node import parse_meminfo
from ansible_collections.sparkrig.serving.plugins.module_utils._rig_unit import SHOWN_PROPERTIES, parse_show
from ansible_collections.sparkrig.serving.plugins.module_utils._status import (
    KV_USAGE,
    rank_of,
    tokens_per_second,
)

if t.TYPE_CHECKING:
    from collections.abc import Sequence

SETTINGS = "/etc/sparkrig/watchdog.json"
STATE = "/var/lib/sparkrig/watch"


def stored(path: str) -> t.Any:
    """The JSON in a file; None when there is none that can be read."""
    try:
        return json.loads(read_text(path) or "null")
    except ValueError:
        return None


def fetch(url: str) -> tuple[str, str]:
    """(status or the reason why there is none, body), never through a proxy."""
    # Only the head needs it, and it is a good part of what the others would take.
    import urllib.error
    import urllib.request

    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=2) as answer:
            return str(answer.status), str(answer.read().decode("utf-8", "replace"))
    except urllib.error.HTTPError as error:
        return str(error.code), ""
    except OSError as error:
        return str(getattr(error, "reason", error)), ""


def gpu_of(module: AnsibleModule, own: Sequence[str]) -> tuple[str, list[str]]:
    """The GPUs in words, and who else uses them; nothing where there is no driver to ask."""
    if not module.get_bin_path("nvidia-smi"):
        return "", []
    # Not before: most of what a node without a driver would take is to compile this.
    from ansible_collections.sparkrig.serving.plugins.module_utils._gpu import cell
    from ansible_collections.sparkrig.serving.plugins.module_utils._gpu_probe import smi_of

    smi = smi_of(module)
    driver = smi.query()
    return cell(driver.gpus), smi.strangers(driver, own)


def object_store(seen: list[str]) -> int | None:
    """What the raylet was told, from its command line."""
    sizes = (re.search(r"/raylet .*--object_store_memory=([0-9]+)", title) for title in seen)
    return next((int(size.group(1)) for size in sizes if size), None)


def engine(url: str, sample_s: float) -> dict[str, t.Any]:
    """What the engine tells about itself."""
    health, _body = fetch(url + "/health")
    if health != "200":
        return {"health": health}
    begin = time.monotonic()
    before = parse_metrics(fetch(url + "/metrics")[1])
    time.sleep(sample_s)
    after = parse_metrics(fetch(url + "/metrics")[1])
    return {
        "health": health,
        "kv_usage": total(after, KV_USAGE),
        "tokens_per_second": tokens_per_second(before, after, time.monotonic() - begin),
        "requests_running": total(after, "vllm:num_requests_running"),
        "requests_waiting": total(after, "vllm:num_requests_waiting"),
    }


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "units": {
                "type": "list",
                "elements": "str",
                "default": ["sparkrig-vllm.service", "sparkrig-ray.service"],
            },
            "sample_s": {"type": "float", "default": 1.0},
        },
        supports_check_mode=True,
    )
    systemctl = module.get_bin_path("systemctl", required=True)
    names = module.params["units"]
    _code, out, _err = module.run_command([systemctl, "show", f"--property={','.join(SHOWN_PROPERTIES)}", *names])
    # One block for each, in the order in which they were asked for.
    units = {name: parse_show(block) for name, block in zip(names, out.split("\n\n"))}
    fields = parse_meminfo(read_text("/proc/meminfo") or "")
    memory = memory_now()
    settings = stored(SETTINGS) or {}
    first = units[names[0]]
    result: dict[str, t.Any] = {"health": None}
    if settings.get("url") and first.load != "not-found":
        result = engine(settings["url"], module.params["sample_s"]) if first.active == "active" else {"health": ""}
    seen = process_titles()
    own = [*units, "sparkrig-watchdog.service", "sparkrig-lifeline.service"]
    gpu, strangers = gpu_of(module, own)
    waiting = (stored(f"{STATE}/waiting.json") or {}) if first.active == "activating" else {}
    watched = stored(f"{STATE}/watch.json") or {}
    problem = str(watched.get("problem") or "")
    holder = parse_holder(read_text(LOCK))
    module.exit_json(
        changed=False,
        units={name: unit.as_dict() for name, unit in units.items()},
        memory_available_bytes=memory.available_bytes,
        memory_total_bytes=memory.total_bytes,
        swap_used_bytes=fields.get("SwapTotal", 0) - fields.get("SwapFree", 0),
        gpu=gpu,
        rank=rank_of(seen),
        object_store_bytes=object_store(seen),
        unknown_processes=processes_under("/opt/sparkrig", own) + strangers,
        waiting=str(waiting.get("sentence", "")),
        watchdog=f"the watchdog's last completion failed: {problem}" if problem else "",
        last_failure=stored(f"{STATE}/last_failure.json") or {},
        lock=holder_sentence(holder, time.time()) if holder else "",
        **result,
    )


if __name__ == "__main__":
    main()
