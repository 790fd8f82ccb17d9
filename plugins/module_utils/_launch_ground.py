# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What has to be gone from a node before a model is launched on it.

Private to the collection. Reads /proc and /dev/shm; who uses the GPU tells ``_gpu_probe.py``.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
import typing as t

from ansible_collections.sparkrig.serving.plugins.module_utils._node import Memory, belongs_to, memory

if t.TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

SHARED_MEMORY = "/dev/shm"
# What Ray, vLLM, torch and Python's shared memory leave there when they are killed.
_SHARED_NAMES = re.compile(r"(?:plasma|ray_|psm_|sem\.mp-|sem\.loky-|torch_|nccl-|cpu_shm|vllm|VLLM|wnsm_).*")
# The control group of the whole node: v2 first, v1 second. Each is (limit, usage, stat).
_CGROUP_FILES = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        "/sys/fs/cgroup/memory/memory.stat",
    ),
)


def read_bytes(path: str) -> bytes:
    """The content of *path*; empty when it is gone or may not be read."""
    try:
        with open(path, "rb") as handle:
            return handle.read()
    except OSError:
        return b""


def read_text(path: str) -> str | None:
    """The text of *path*, or None when there is no such file."""
    if not os.path.isfile(path):
        return None
    return read_bytes(path).decode("utf-8", "replace")


def memory_now() -> Memory:
    """The memory of this node, control group included."""
    texts: list[str | None] = [None, None, None]
    for paths in _CGROUP_FILES:
        if os.path.isfile(paths[0]):
            texts = [read_text(path) for path in paths]
            break
    return memory(read_text("/proc/meminfo") or "", *texts)


def bytes_read(units: Sequence[str]) -> int:
    """What the processes of these units have read so far, from disk or through the page cache."""
    found = 0
    for entry in filter(str.isdigit, os.listdir("/proc")):
        if belongs_to(read_text(f"/proc/{entry}/cgroup") or "", units):
            match = re.search(rb"^rchar: (\d+)$", read_bytes(f"/proc/{entry}/io"), re.MULTILINE)
            found += int(match.group(1)) if match else 0
    return found


def process_titles(proc: str = "/proc") -> list[str]:
    """What every process calls itself, its words in one line; the kernel's own threads have none."""
    texts = (read_bytes(f"{proc}/{entry}/cmdline") for entry in os.listdir(proc) if entry.isdigit())
    return [text.replace(b"\0", b" ").decode("utf-8", "replace").strip() for text in texts if text]


def processes_under(folder: str, but: Sequence[str]) -> list[str]:
    """Processes whose program or libraries lie under *folder* and that run in no unit of *but*, as "PID NAME"."""
    found = []
    prefix = folder.rstrip("/").encode() + b"/"
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            exe = os.readlink(f"/proc/{entry}/exe").encode()
        except OSError:
            continue
        first = read_bytes(f"/proc/{entry}/cmdline").split(b"\0")[0]
        # The maps tell it also for a process that gave itself another name, as Ray's do.
        ours = exe.startswith(prefix) or first.startswith(prefix) or prefix in read_bytes(f"/proc/{entry}/maps")
        if ours and not belongs_to(read_text(f"/proc/{entry}/cgroup") or "", but):
            found.append(f"{entry} {(read_text(f'/proc/{entry}/comm') or '').strip()}")
    return sorted(found, key=lambda item: int(item.split()[0]))


def end_processes(find: Callable[[], list[str]], patience_s: float = 10.0) -> list[str]:
    """End what *find* finds ("PID NAME"), politely first; ValueError when something stays."""
    first = left = find()
    for number, wait_s in ((signal.SIGTERM, patience_s / 2), (signal.SIGKILL, patience_s / 2)):
        for item in left:
            try:
                os.kill(int(item.split()[0]), number)
            except ProcessLookupError:
                continue
        deadline = time.monotonic() + wait_s
        while left and time.monotonic() < deadline:
            time.sleep(0.1)
            left = find()
    if left:
        raise ValueError(
            f"{len(left)} process(es) of an earlier start cannot be ended: {', '.join(left[:8])}."
            " What to do: see what they wait for (`cat /proc/PID/stack`); a process in state D may need a reboot"
        )
    return first


def mapped_shared_memory(maps: Iterable[str]) -> set[str]:
    """The files of shared memory that processes have mapped, from the texts of /proc/PID/maps."""
    return {
        match.group(1)
        for text in maps
        for match in re.finditer(rf"\s({SHARED_MEMORY}/\S+)(?: \(deleted\))?$", text, re.MULTILINE)
    }


def stale_shared_memory(folder: str = SHARED_MEMORY) -> list[str]:
    """Files of shared memory that the rig's programs make and that no living process has open or mapped."""
    try:
        names = [name for name in os.listdir(folder) if _SHARED_NAMES.fullmatch(name)]
    except OSError:
        return []
    if not names:
        return []
    used = mapped_shared_memory(
        read_bytes(f"/proc/{pid}/maps").decode("utf-8", "replace") for pid in os.listdir("/proc") if pid.isdigit()
    )
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            for number in os.listdir(f"/proc/{pid}/fd"):
                # One that is closed meanwhile says nothing about the others.
                with contextlib.suppress(OSError):
                    used.add(os.readlink(f"/proc/{pid}/fd/{number}"))
    paths = (os.path.join(folder, name) for name in sorted(names))
    return [path for path in paths if os.path.isfile(path) and path not in used]
