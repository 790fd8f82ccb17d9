# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a node's memory is, and how sizes are told.

Private to the collection. The parsers take the text of the kernel's files; nothing here reads a file.
"""

from __future__ import annotations

import re
import typing as t
from dataclasses import dataclass

# The lowest Python that the modules of this collection run on.
PYTHON_MINIMUM = (3, 9)
# cgroup v1 writes "no limit" as a number close to 2**63.
_NO_LIMIT_BYTES = 2**62


@dataclass(frozen=True)
class Memory:
    """A node's memory in bytes, as it counts for a process that is started now.

    ``total_bytes`` is the smaller of the machine's memory and the control group's limit; ``available_bytes``
    the smaller of MemAvailable and what the limit leaves.
    """

    total_bytes: int
    available_bytes: int


def parse_meminfo(text: str) -> dict[str, int]:
    """``/proc/meminfo`` as a mapping from field to bytes.

    The kernel's "kB" is 1024 bytes. Raises ValueError when MemTotal or MemAvailable is missing.
    """
    fields = {}
    for line in text.splitlines():
        match = re.fullmatch(r"(\S+):\s+(\d+)(?: (kB))?\s*", line)
        if match:
            fields[match.group(1)] = int(match.group(2)) * (1024 if match.group(3) else 1)
    for name in ("MemTotal", "MemAvailable"):
        if name not in fields:
            raise ValueError(f"/proc/meminfo has no {name}: {text[:80]!r}")
    return fields


def parse_limit(text: str | None) -> int | None:
    """A control group's memory limit in bytes; None for no limit (``max`` in v2, about 2**63 in v1)."""
    if text is None or text.strip() == "max":
        return None
    limit = int(text)
    return None if limit >= _NO_LIMIT_BYTES else limit


def reclaimable_bytes(memory_stat: str) -> int:
    """The page cache in a control group's ``memory.stat`` that the kernel gives back at once, in bytes.

    v1 names the whole subtree's ``total_inactive_file``; v2 has only ``inactive_file``.
    """
    fields = dict(line.split() for line in memory_stat.splitlines() if len(line.split()) == 2)
    return int(fields.get("total_inactive_file", fields.get("inactive_file", "0"))) + int(
        fields.get("total_active_file", fields.get("active_file", "0"))
    )


def memory(meminfo: str, limit: str | None, usage: str | None, memory_stat: str | None) -> Memory:
    """The memory that counts on a node, from the texts of the kernel's files (None where one is absent)."""
    fields = parse_meminfo(meminfo)
    limit_bytes = parse_limit(limit)
    if limit_bytes is None or usage is None:
        return Memory(fields["MemTotal"], fields["MemAvailable"])
    used_bytes = int(usage) - reclaimable_bytes(memory_stat or "")
    return Memory(
        min(fields["MemTotal"], limit_bytes),
        min(fields["MemAvailable"], max(0, limit_bytes - used_bytes)),
    )


def belongs_to(cgroup: str, units: t.Sequence[str]) -> bool:
    """Whether a process whose ``/proc/PID/cgroup`` reads *cgroup* runs in one of the systemd *units*."""
    return any(f"/{unit}" in line for line in cgroup.splitlines() for unit in units)


def held_bytes(smaps_rollup: str) -> int:
    """The bytes of memory that end with a process, from its ``smaps_rollup``: anonymous and shared, not files.

    Proportional shares are counted, so that the sum over processes that share memory is what they hold together.
    """
    fields = dict(re.findall(r"^(Pss_Anon|Pss_Shmem):\s+(\d+) kB$", smaps_rollup, re.MULTILINE))
    return 1024 * sum(int(value) for value in fields.values())


def gib(size_bytes: int) -> str:
    """*size_bytes* for a person: two decimals, in GiB."""
    return f"{size_bytes / 2**30:.2f} GiB"
