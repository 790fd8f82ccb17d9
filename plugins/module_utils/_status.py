# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How the rig is, as one table: a line for each node, and what has to be known below it.

Private to the collection.
"""

from __future__ import annotations

import re
import typing as t

from ansible_collections.sparkrig.serving.plugins.module_utils._metrics import total

if t.TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ansible_collections.sparkrig.serving.plugins.module_utils._metrics import Sample

GIB = 2**30
HEADINGS = ("node", "rank", "engine", "Ray", "memory free", "swap used", "GPU", "KV use", "tokens/s", "restarts")
ABSENT = "-"

KV_USAGE = "vllm:kv_cache_usage_perc"
GENERATED = "vllm:generation_tokens_total"
_RANK = re.compile(r"(?:Worker|RayWorkerProc|RayWorkerWrapper)\S*?[_ ](?:TP|rank[ =]?)(\d+)")


def rank_of(titles: Sequence[str]) -> int | None:
    """The rank that one of these process titles names; None when none does."""
    for title in titles:
        match = _RANK.search(title)
        if match:
            return int(match.group(1))
    return None


def tokens_per_second(before: Sequence[Sample], after: Sequence[Sample], seconds: float) -> float | None:
    """What was generated between two looks at /metrics; None when the engine does not tell."""
    first, last = total(before, GENERATED), total(after, GENERATED)
    if first is None or last is None or seconds <= 0:
        return None
    return max(0.0, last - first) / seconds


def _unit_cell(unit: Mapping[str, t.Any] | None) -> str:
    if unit is None or unit["load_state"] == "not-found":
        return ABSENT
    state = str(unit["active_state"])
    if state == "activating":
        return "waits" if unit["sub_state"] == "start-pre" else "restarts"
    return {"active": "up", "inactive": "stopped", "failed": "down"}.get(state, state)


def row(node: str, index: int, seen: Mapping[str, t.Any]) -> list[str]:
    """The cells of one node from what module rig_status returned for it."""
    units = seen["units"]
    engine = units.get("sparkrig-vllm.service")
    cell = _unit_cell(engine)
    if cell == "up" and seen.get("health") is not None:
        cell = "serves" if seen["health"] == "200" else "loads"
    rank = seen.get("rank")
    restarts = sum(unit["restarts"] for unit in units.values())
    usage, speed = seen.get("kv_usage"), seen.get("tokens_per_second")
    return [
        node,
        str(index if rank is None else rank),
        cell,
        _unit_cell(units.get("sparkrig-ray.service")),
        f"{seen['memory_available_bytes'] / GIB:.1f} of {seen['memory_total_bytes'] / GIB:.1f} GiB",
        f"{seen['swap_used_bytes'] / GIB:.1f} GiB",
        seen.get("gpu") or ABSENT,
        ABSENT if usage is None else f"{usage:.1%}",
        ABSENT if speed is None else f"{speed:.1f}",
        str(restarts),
    ]


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Headings and rows in columns."""
    lines = [HEADINGS, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADINGS))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines]


def status(nodes: Sequence[str], seen: Mapping[str, Mapping[str, t.Any]], away: Mapping[str, str]) -> list[str]:
    """The whole answer. *seen* is what was returned by node, *away* the reason by node that did not answer."""
    rows = []
    notes = []
    for index, node in enumerate(nodes):
        if node not in seen:
            rows.append([node, str(index), *["?"] * (len(HEADINGS) - 2)])
            notes.append(f"{node} does not answer: {away.get(node, 'nothing was returned')}")
            continue
        rows.append(row(node, index, seen[node]))
        if seen[node].get("waiting"):
            notes.append(f"{node}: {seen[node]['waiting']}")
        if seen[node].get("watchdog"):
            notes.append(f"{node}: {seen[node]['watchdog']}")
        failure = seen[node].get("last_failure") or {}
        if failure:
            notes.append(f"{node}, last failure, {failure.get('when')}: {failure.get('sentence')}")
        holder = seen[node].get("lock")
        if holder:
            notes.append(f"{node}: {holder}")
    return [*table(rows), *notes]
