# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a node's memory is, and what changed between two looks at it: texts of /proc in, values out, no I/O.

MemAvailable hardly moves when a node is pruned; what moves is swap and major faults while a rank works. So a
look at the memory holds the kernel's counters too, and two looks make a report.

Private to this collection: import it from nowhere else.
"""

from __future__ import annotations

import re
import typing as t
from dataclasses import asdict, dataclass

from ansible_collections.sparkrig.serving.plugins.module_utils._node import (
    gib,
    parse_limit,
    parse_meminfo,
    reclaimable_bytes,
)

# The kernel's counters that say whether memory is short. Pages, faults and kills since boot.
COUNTERS = ("pswpin", "pswpout", "pgmajfault", "pgfault", "oom_kill")
# GPUs that have no memory of their own.
_UNIFIED = re.compile(r"\b(GB10|Thor|Orin|Xavier|Tegra)\b")
_UNIT = re.compile(r"[^/]+\.(?:service|scope|slice|socket|mount|swap)")
_USER_MANAGER = re.compile(r"/user@(\d+)\.service/")
# The parts of a report that a person reads: what is below this is noise.
_WORTH_A_LINE_BYTES = 2**20


@dataclass(frozen=True)
class Cgroup:
    """The control group that bounds the node; version 0 where none is mounted. ``limit_bytes`` None: no limit."""

    version: int
    limit_bytes: int | None
    usage_bytes: int
    reclaimable_bytes: int


@dataclass(frozen=True)
class Process:
    """One process: the unit that it belongs to and what it holds."""

    pid: int
    unit: str
    pss_bytes: int
    swap_bytes: int
    major_faults: int


@dataclass(frozen=True)
class UnitMemory:
    """What all processes of a unit hold together. Shared pages are counted by share (PSS), so sums are right."""

    unit: str
    pss_bytes: int
    swap_bytes: int
    major_faults: int
    processes: int


@dataclass(frozen=True)
class Swap:
    """One swap device or file."""

    name: str
    kind: str
    size_bytes: int
    used_bytes: int
    priority: int


@dataclass(frozen=True)
class NumaNode:
    """One NUMA node."""

    index: int
    total_bytes: int
    free_bytes: int


@dataclass(frozen=True)
class Hugepages:
    """The huge pages of one size."""

    page_bytes: int
    total: int
    free: int


@dataclass(frozen=True)
class Look:
    """One look at a node's memory; sizes in bytes."""

    total_bytes: int
    free_bytes: int
    available_bytes: int
    page_cache_bytes: int
    swap_total_bytes: int
    swap_free_bytes: int
    swappiness: int | None
    cgroup: Cgroup
    swaps: tuple[Swap, ...]
    numa: tuple[NumaNode, ...]
    hugepages: tuple[Hugepages, ...]
    counters: t.Mapping[str, int]
    units: tuple[UnitMemory, ...]
    gpu_memory: str  # unified, discrete or none


def cgroup(version: int, limit: str | None, usage: str | None, stat: str | None) -> Cgroup:
    """The control group from the texts of its files; None where one is absent (the root of v2 has none)."""
    return Cgroup(version, parse_limit(limit), int(usage or 0), reclaimable_bytes(stat or ""))


def unit_of(text: str) -> str:
    """The unit of a process, from its ``/proc/PID/cgroup``, v1 or v2; empty for a process of no unit.

    A unit of a user's own manager is named with that user, as in ``pipewire.service (user 1000)``.
    """
    path = ""
    for line in text.splitlines():
        _number, controllers, where = ([*line.split(":", 2), "", ""])[:3]
        if controllers == "name=systemd" or (controllers == "" and not path):
            path = where
    found = _UNIT.findall(path)
    if not found:
        return ""
    user = _USER_MANAGER.search(path)
    return f"{found[-1]} (user {user.group(1)})" if user and not found[-1].startswith("user@") else found[-1]


def process(pid: int, cgroup_text: str, smaps_rollup: str, stat: str) -> Process:
    """One process from its files under ``/proc/PID``."""
    sizes = {key: int(value) * 1024 for key, value in re.findall(r"^(Pss|SwapPss):\s+(\d+) kB$", smaps_rollup, re.M)}
    # The name in parentheses may hold spaces and parentheses itself; majflt is the tenth field after it.
    fields = stat.rpartition(")")[2].split()
    faults = int(fields[9]) if len(fields) > 9 else 0
    return Process(pid, unit_of(cgroup_text), sizes.get("Pss", 0), sizes.get("SwapPss", 0), faults)


def by_unit(processes: t.Iterable[Process]) -> tuple[UnitMemory, ...]:
    """The units, the largest first; what belongs to no unit is called ``(no unit)``."""
    found: dict[str, list[Process]] = {}
    for one in processes:
        found.setdefault(one.unit or "(no unit)", []).append(one)
    units = [
        UnitMemory(
            unit,
            sum(one.pss_bytes for one in members),
            sum(one.swap_bytes for one in members),
            sum(one.major_faults for one in members),
            len(members),
        )
        for unit, members in found.items()
    ]
    return tuple(sorted(units, key=lambda unit: (-unit.pss_bytes - unit.swap_bytes, unit.unit)))


def parse_counters(text: str) -> dict[str, int]:
    """The counters of ``/proc/vmstat`` that matter here; one that this kernel lacks is 0."""
    fields = dict(line.split() for line in text.splitlines() if len(line.split()) == 2)
    return {name: int(fields.get(name, "0")) for name in COUNTERS}


def parse_swaps(text: str) -> tuple[Swap, ...]:
    """The devices and files of ``/proc/swaps``, whose sizes are in KiB."""
    rows = [line.rsplit(maxsplit=4) for line in text.splitlines()[1:]]
    # The kernel writes a space in a name as \040.
    return tuple(
        Swap(name.strip().replace("\\040", " "), kind, int(size) * 1024, int(used) * 1024, int(priority))
        for name, kind, size, used, priority in (row for row in rows if len(row) == 5)
    )


def parse_numa(index: int, text: str) -> NumaNode:
    """A NUMA node from its ``meminfo``, or ValueError."""
    fields = {key: int(value) * 1024 for key, value in re.findall(r"Node \d+ (MemTotal|MemFree):\s+(\d+) kB", text)}
    if len(fields) != 2:
        raise ValueError(f"the meminfo of NUMA node {index} has no MemTotal or MemFree: {text[:80]!r}")
    return NumaNode(index, fields["MemTotal"], fields["MemFree"])


def gpu_memory(models: t.Sequence[str]) -> str:
    """Whether the GPUs share the machine's memory, from the models in ``/proc/driver/nvidia/gpus``."""
    if not models:
        return "none"
    return "unified" if any(_UNIFIED.search(model) for model in models) else "discrete"


def look(
    meminfo: str,
    group: Cgroup,
    *,
    vmstat: str = "",
    swaps: str = "",
    swappiness: str | None = None,
    numa: t.Mapping[int, str] | None = None,
    hugepages: t.Iterable[Hugepages] = (),
    processes: t.Iterable[Process] = (),
    gpu_models: t.Sequence[str] = (),
) -> Look:
    """One look, from the texts of the kernel's files."""
    fields = parse_meminfo(meminfo)
    cache = fields.get("Cached", 0) + fields.get("Buffers", 0) + fields.get("SReclaimable", 0) - fields.get("Shmem", 0)
    return Look(
        total_bytes=fields["MemTotal"],
        free_bytes=fields.get("MemFree", 0),
        available_bytes=fields["MemAvailable"],
        page_cache_bytes=max(0, cache),
        swap_total_bytes=fields.get("SwapTotal", 0),
        swap_free_bytes=fields.get("SwapFree", 0),
        swappiness=int(swappiness) if swappiness and swappiness.strip() else None,
        cgroup=group,
        swaps=parse_swaps(swaps),
        numa=tuple(parse_numa(index, text) for index, text in sorted((numa or {}).items())),
        hugepages=tuple(sorted(hugepages, key=lambda size: size.page_bytes)),
        counters=parse_counters(vmstat),
        units=by_unit(processes),
        gpu_memory=gpu_memory(gpu_models),
    )


@dataclass(frozen=True)
class Rank:
    """What a rank that starts now can have on this node."""

    available_bytes: int
    total_bytes: int
    limited_by: str  # machine or cgroup
    cuda_free_bytes: int | None  # what CUDA will call free; None where the GPU has memory of its own, or is none
    sentence: str


def rank(seen: Look) -> Rank:
    """What a rank can really have: the smaller of MemAvailable and what the control group leaves.

    On unified memory CUDA's "free" is MemFree: page cache counts as used until it is dropped.
    """
    group = seen.cgroup
    available, total, limited_by = seen.available_bytes, seen.total_bytes, "machine"
    why = "MemAvailable"
    if group.limit_bytes is not None:
        room = max(0, group.limit_bytes - (group.usage_bytes - group.reclaimable_bytes))
        total = min(total, group.limit_bytes)
        if room < available:
            available, limited_by = room, "cgroup"
            why = f"the control group's limit of {gib(group.limit_bytes)} less what is used of it"
    cuda = None
    sentence = f"A rank can have {gib(available)} ({why})."
    if seen.gpu_memory == "unified":
        cuda = min(seen.free_bytes, available)
        if available - cuda >= 2**30:
            sentence += f" CUDA sees only {gib(cuda)} of it as free until the page cache is dropped."
    return Rank(available, total, limited_by, cuda, sentence)


def to_dict(seen: Look) -> dict[str, t.Any]:
    """A look as a module returns it."""
    found = asdict(seen)
    found["counters"] = dict(seen.counters)
    for name in ("swaps", "numa", "hugepages", "units"):
        found[name] = list(found[name])
    found["swap_used_bytes"] = seen.swap_total_bytes - seen.swap_free_bytes
    found["rank"] = asdict(rank(seen))
    return found


@dataclass(frozen=True)
class Probe:
    """What happened on a node over an interval."""

    seconds: float
    counters: t.Mapping[str, int]
    faults_by_unit: t.Mapping[str, int]


def probe(first: Look, second: Look, seconds: float) -> Probe:
    """What the counters did between two looks. A unit that ended in between has no difference."""
    earlier = {unit.unit: unit.major_faults for unit in first.units}
    faults = {
        unit.unit: unit.major_faults - earlier[unit.unit]
        for unit in second.units
        if unit.unit in earlier and unit.major_faults > earlier[unit.unit]
    }
    counters = {name: second.counters[name] - first.counters[name] for name in COUNTERS}
    return Probe(round(seconds, 3), counters, dict(sorted(faults.items(), key=lambda row: (-row[1], row[0]))))


@dataclass(frozen=True)
class Drain:
    """What emptying the swap means: the devices to switch off and on again, and a sentence."""

    swaps: tuple[Swap, ...]
    sentence: str
    warning: bool = False


def plan_drain(swaps: t.Sequence[Swap], available_bytes: int, reserve_bytes: int) -> Drain:
    """Which swap is switched off and on again so that it is empty, and never more than memory can take in."""
    if not swaps:
        return Drain((), "This node has no swap; there is nothing to drain.")
    used = tuple(swap for swap in swaps if swap.used_bytes)
    if not used:
        return Drain((), "The swap is empty already; it stays on.")
    needed = sum(swap.used_bytes for swap in used)
    if available_bytes < needed + reserve_bytes:
        return Drain(
            (),
            f"The swap holds {gib(needed)}, but only {gib(available_bytes)} of memory are available, and "
            f"{gib(reserve_bytes)} stay free: it is not drained. End what was swapped out, then run this again.",
            warning=True,
        )
    names = ", ".join(swap.name for swap in used)
    return Drain(used, f"The swap's {gib(needed)} on {names} are taken back into memory; the swap stays on.")


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:.1f} MiB"


def _before_after(what: str, before: str, after: str) -> str:
    return f"{what}: {before} before, {after} after."


def evidence(
    before: t.Mapping[str, t.Any],
    after: t.Mapping[str, t.Any],
    probe_before: t.Mapping[str, t.Any] | None = None,
    probe_after: t.Mapping[str, t.Any] | None = None,
) -> dict[str, t.Any]:
    """The report of two looks (as :func:`to_dict` gives them) and of the probes that belong to them.

    ValueError when one is not a look.
    """
    for name, one in (("before", before), ("after", after)):
        missing = [key for key in ("available_bytes", "swap_used_bytes", "units", "counters") if key not in one]
        if missing:
            raise ValueError(
                f"{name} is not what node_memory_info returns as 'memory': it lacks {', '.join(missing)}. Hand over "
                "the whole of it."
            )
    rows = []
    units = [{unit["unit"]: unit for unit in one["units"]} for one in (before, after)]
    for name in {**units[0], **units[1]}:
        held = [units[side].get(name, {"pss_bytes": 0, "swap_bytes": 0}) for side in (0, 1)]
        rows.append(
            {
                "unit": name,
                "before_bytes": held[0]["pss_bytes"] + held[0]["swap_bytes"],
                "after_bytes": held[1]["pss_bytes"] + held[1]["swap_bytes"],
            }
        )
    for row in rows:
        row["freed_bytes"] = row["before_bytes"] - row["after_bytes"]
    rows.sort(key=lambda row: (-row["freed_bytes"], row["unit"]))
    gone = [row for row in rows if row["before_bytes"] and row["unit"] not in units[1]]
    freed = sum(row["freed_bytes"] for row in gone)
    lines = [
        f"{row['unit']}: {_mib(row['before_bytes'])} before, {_mib(row['after_bytes'])} after."
        for row in rows
        if abs(row["freed_bytes"]) >= _WORTH_A_LINE_BYTES
    ]
    lines.append(f"Units that ended held {_mib(freed)} (PSS and swap) together.")
    lines.append(_before_after("MemAvailable", gib(before["available_bytes"]), gib(after["available_bytes"])))
    lines.append(_before_after("Swap in use", gib(before["swap_used_bytes"]), gib(after["swap_used_bytes"])))
    probes: list[t.Mapping[str, t.Any]] = [one for one in (probe_before, probe_after) if one]
    if len(probes) == 2:
        for what, counter in (
            ("Pages swapped out", "pswpout"),
            ("Pages swapped in", "pswpin"),
            ("Major faults", "pgmajfault"),
        ):
            values = [f"{one['counters'][counter]} in {one['seconds']:g} s" for one in probes]
            lines.append(_before_after(what, *values))
    return {
        "units": rows,
        "freed_bytes": freed,
        "available_gained_bytes": after["available_bytes"] - before["available_bytes"],
        "swap_freed_bytes": before["swap_used_bytes"] - after["swap_used_bytes"],
        "probe_before": dict(probe_before) if probe_before else None,
        "probe_after": dict(probe_after) if probe_after else None,
        "lines": lines,
    }
