# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How a node of the rig is, in one line.

Private to the collection.
"""

from __future__ import annotations

import typing as t

if t.TYPE_CHECKING:
    from collections.abc import Mapping

GIB = 2**30
_CALLED = {"sparkrig-ray.service": "Ray", "sparkrig-vllm.service": "engine"}


def _unit(name: str, unit: Mapping[str, t.Any]) -> str:
    called = _CALLED.get(name, name)
    if unit["load_state"] == "not-found":
        return f"{called} absent"
    if not unit["main_pid"]:
        return f"{called} {unit['active_state']} ({unit['result']})"
    return f"{called} {unit['active_state']} (process {unit['main_pid']}, {unit['restarts']} restarts)"


def status_line(node: str, seen: Mapping[str, t.Any]) -> str:
    """*seen* is what module serving_state returned for *node*."""
    # The engine runs on the head only; that it is absent elsewhere is no news.
    parts = [
        _unit(name, unit)
        for name, unit in sorted(seen["units"].items())
        if unit["load_state"] != "not-found" or _CALLED.get(name) != "engine" or seen.get("health")
    ]
    if seen.get("health"):
        parts.append("API healthy" if seen["health"] == "200" else f"API not healthy ({seen['health']})")
    available, total = seen["memory_available_bytes"] / GIB, seen["memory_total_bytes"] / GIB
    parts.append(f"{available:.1f} of {total:.1f} GiB memory available")
    return f"{node}: {', '.join(parts)}"
