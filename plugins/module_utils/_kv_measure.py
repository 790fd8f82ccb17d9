# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the memory of this node is: the machine's, or less where a control group says so.

Private to this collection.
"""

from __future__ import annotations

import os
from typing import Dict, Optional, Tuple

# Limit, usage and the key of reclaimable file cache, for cgroup v2 and v1.
_GROUPS = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
)


def parse_meminfo(text: str) -> Tuple[int, int]:
    """Total and available bytes of /proc/meminfo."""
    values: Dict[str, int] = {}
    for line in text.splitlines():
        name, _colon, rest = line.partition(":")
        fields = rest.split()
        if fields:
            values[name] = int(fields[0]) * 1024
    for name in ("MemTotal", "MemAvailable"):
        if name not in values:
            raise ValueError("/proc/meminfo: it has no %s" % name)
    return values["MemTotal"], values["MemAvailable"]


def within_group(total: int, available: int, limit: Optional[int], usage: int, reclaimable: int) -> Tuple[int, int]:
    """Total and available bytes under a control group's limit, usage and reclaimable bytes."""
    if limit is None or limit >= total:
        return total, available
    return limit, max(0, min(available, limit - (usage - reclaimable)))


def _read(path: str) -> Optional[str]:
    try:
        with open(path, encoding="utf-8") as stream:
            return stream.read()
    except OSError:
        return None


def _group_figures(root: str) -> Optional[Tuple[Optional[int], int, int]]:
    for limit_name, usage_name, stat_name, key in _GROUPS:
        limit, usage = _read(os.path.join(root, limit_name)), _read(os.path.join(root, usage_name))
        if limit is None or usage is None:
            continue
        stat = dict(line.split()[:2] for line in (_read(os.path.join(root, stat_name)) or "").splitlines() if line.strip())
        return None if limit.strip() == "max" else int(limit), int(usage), int(stat.get(key, 0))
    return None


def measure(meminfo: str = "/proc/meminfo", groups: str = "/sys/fs/cgroup") -> Tuple[int, int]:
    """Total and available bytes of this node."""
    text = _read(meminfo)
    if text is None:
        raise ValueError("%s: it cannot be read, so the memory of this node is not known" % meminfo)
    total, available = parse_meminfo(text)
    figures = _group_figures(groups)
    return (total, available) if figures is None else within_group(total, available, *figures)
