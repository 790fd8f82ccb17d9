# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Reads /proc and /sys for a look at a node's memory. What the texts mean is in ``_memory.py``.

Private to this collection: import it from nowhere else.
"""

from __future__ import annotations

import os
import re
import time
import typing as t

from ansible_collections.sparkrig.serving.plugins.module_utils import _memory

PROC = "/proc"
SYS = "/sys"
RUN = "/run"


def read_text(path: str) -> str | None:
    """The text of *path*, or None when it is not there or this user may not read it."""
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read()
    except OSError:
        return None


def _numbered(folder: str, pattern: str) -> list[tuple[int, str]]:
    """The entries of *folder* whose name matches *pattern* with a number, in the order of the numbers."""
    if not os.path.isdir(folder):
        return []
    matches = [(re.fullmatch(pattern, name), os.path.join(folder, name)) for name in os.listdir(folder)]
    return sorted((int(match.group(1)), path) for match, path in matches if match)


def cgroup() -> _memory.Cgroup:
    """The control group that bounds this node: that of v2 if it has a memory controller, else that of v1."""
    unified, classic = f"{SYS}/fs/cgroup", f"{SYS}/fs/cgroup/memory"
    if os.path.isfile(f"{classic}/memory.limit_in_bytes"):
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "memory.stat")
        return _memory.cgroup(1, *(read_text(f"{classic}/{name}") for name in names))
    if os.path.isfile(f"{unified}/cgroup.controllers"):
        names = ("memory.max", "memory.current", "memory.stat")
        return _memory.cgroup(2, *(read_text(f"{unified}/{name}") for name in names))
    return _memory.cgroup(0, None, None, None)


def container() -> str:
    """The kind of container that this node is (its kernel is another machine's), or an empty string."""
    kind = (read_text(f"{RUN}/systemd/container") or "").strip()
    return kind or ("podman" if os.path.exists(f"{RUN}/.containerenv") else "")


def processes() -> tuple[list[_memory.Process], int]:
    """Every process that holds memory, and how many were not to be read (their owner is somebody else)."""
    found, unreadable = [], 0
    for pid, folder in _numbered(PROC, r"(\d+)"):
        stat = read_text(f"{folder}/stat")
        if stat is None:
            # It ended meanwhile.
            continue
        smaps = read_text(f"{folder}/smaps_rollup")
        if smaps is None:
            # A kernel thread has no memory of its own; `statm` is all zeros for one, and readable for everybody.
            if (read_text(f"{folder}/statm") or "0").split()[0] != "0":
                unreadable += 1
            continue
        found.append(_memory.process(pid, read_text(f"{folder}/cgroup") or "", smaps, stat))
    return found, unreadable


def gpu_models() -> list[str]:
    """The model of each GPU that NVIDIA's driver has, without asking the driver's tools."""
    folder = f"{PROC}/driver/nvidia/gpus"
    if not os.path.isdir(folder):
        return []
    texts = [read_text(f"{folder}/{name}/information") or "" for name in sorted(os.listdir(folder))]
    models = [re.search(r"^Model:\s*(.+?)\s*$", text, re.MULTILINE) for text in texts]
    return [match.group(1) if match else "unknown" for match in models]


def hugepages() -> list[_memory.Hugepages]:
    """The huge pages of every size that this machine has."""
    return [
        _memory.Hugepages(
            size * 1024,
            int(read_text(f"{path}/nr_hugepages") or 0),
            int(read_text(f"{path}/free_hugepages") or 0),
        )
        for size, path in _numbered(f"{SYS}/kernel/mm/hugepages", r"hugepages-(\d+)kB")
    ]


def look(with_units: bool = True) -> tuple[_memory.Look, int]:
    """One look at this node, and how many processes were not to be read. ValueError when /proc is odd."""
    found, unreadable = processes() if with_units else ([], 0)
    nodes = {
        index: read_text(f"{path}/meminfo") or ""
        for index, path in _numbered(f"{SYS}/devices/system/node", r"node(\d+)")
    }
    seen = _memory.look(
        read_text(f"{PROC}/meminfo") or "",
        cgroup(),
        vmstat=read_text(f"{PROC}/vmstat") or "",
        swaps=read_text(f"{PROC}/swaps") or "",
        swappiness=read_text(f"{PROC}/sys/vm/swappiness"),
        numa=nodes,
        hugepages=hugepages(),
        processes=found,
        gpu_models=gpu_models(),
    )
    return seen, unreadable


def watch(seconds: float, wait: t.Callable[[float], None] = time.sleep) -> tuple[_memory.Look, _memory.Probe, int]:
    """Two looks, *seconds* apart: the second, what happened between them, and the unreadable processes."""
    first, _unreadable = look()
    started = time.monotonic()
    wait(seconds)
    second, unreadable = look()
    return second, _memory.probe(first, second, time.monotonic() - started), unreadable
