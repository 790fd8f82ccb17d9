# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The processes of the rig on a node: in which unit, with which environment and how much memory."""

from __future__ import annotations

import json
import typing as t
from dataclasses import dataclass

UNITS = ("sparkrig-ray.service", "sparkrig-vllm.service")

# Runs on the node. A process that ends meanwhile is left out.
_LOOK = """
import json, os, sys
found = []
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        lines = open(f"/proc/{pid}/cgroup").read().splitlines()
        units = [unit for unit in sys.argv[1:] if any(unit in line.split("/") for line in lines)]
        if units:
            pss = [int(line.split()[1]) for line in open(f"/proc/{pid}/smaps_rollup") if line.startswith("Pss:")]
            words = open(f"/proc/{pid}/cmdline").read().split(chr(0))
            entries = open(f"/proc/{pid}/environ", errors="replace").read().split(chr(0))
            environment = dict(entry.split("=", 1) for entry in entries if "=" in entry)
            found.append([int(pid), units[0], " ".join(words).strip(), 1024 * sum(pss), environment])
    except (FileNotFoundError, ProcessLookupError):
        continue
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Process:
    """One process of a unit; *environment* is that of its start."""

    pid: int
    unit: str
    command: str
    pss_bytes: int
    environment: dict[str, str]


def rig_processes(host: t.Any, units: t.Sequence[str] = UNITS) -> list[Process]:
    """What runs in *units* on *host* now, by process id."""
    words = " ".join(units)
    found = json.loads(host.check_output(f"python3 -I -c %s {words}", _LOOK))
    return sorted((Process(*entry) for entry in found), key=lambda process: process.pid)
