# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""On what machine something is measured, and how busy it is with other things; never its name."""

from __future__ import annotations

import os
import platform
import re
import time
import typing as t
from dataclasses import asdict, dataclass
from pathlib import Path

LOOK_S = 3.0


@dataclass(frozen=True)
class Machine:
    """What a reader has to know to compare his own machine with it."""

    cores: int
    processor: str
    memory_gib: float
    system: str

    def sentence(self) -> str:
        """The machine in words."""
        cores = "1 core" if self.cores == 1 else f"{self.cores} cores"
        return f"{cores} ({self.processor}), {self.memory_gib:.1f} GiB of memory, {self.system}"


def described(cpuinfo: str, meminfo: str, os_release: str, cores: int, kernel: str) -> Machine:
    """The machine of these files' texts."""

    def found(pattern: str, text: str, otherwise: str) -> str:
        match = re.search(pattern, text, re.MULTILINE)
        return match[1].strip() if match else otherwise

    return Machine(
        cores=cores,
        # ARM has no name there.
        processor=found(r"^model name\s*:\s*(.+)$", cpuinfo, platform.machine()),
        memory_gib=round(int(found(r"^MemTotal:\s*(\d+) kB$", meminfo, "0")) / 2**20, 1),
        system=found(r'^PRETTY_NAME="?([^"\n]+)"?$', os_release, "Linux") + f", kernel {kernel}",
    )


def this_machine() -> Machine:
    """The machine that this runs on."""
    cpuinfo, meminfo, os_release = (
        Path(path).read_text(encoding="utf-8") for path in ("/proc/cpuinfo", "/proc/meminfo", "/etc/os-release")
    )
    kernel = re.split(r"[^0-9.]", platform.release())[0]
    return described(cpuinfo, meminfo, os_release, len(os.sched_getaffinity(0)), kernel)


def busy_share(before: str, after: str) -> float:
    """What share of all cores was not idle between two readings of ``/proc/stat``."""
    (first, last) = ([int(word) for word in text.splitlines()[0].split()[1:9]] for text in (before, after))
    # In order: user, nice, system, idle, iowait, irq, softirq, steal.
    spent = [now - then for then, now in zip(first, last, strict=True)]
    return 1 - (spent[3] + spent[4]) / (sum(spent) or 1)


def surroundings() -> dict[str, t.Any]:
    """The machine, its load average, and how busy others keep it while we do nothing."""
    stat = Path("/proc/stat")
    before = stat.read_text(encoding="utf-8")
    time.sleep(LOOK_S)
    busy = busy_share(before, stat.read_text(encoding="utf-8"))
    return {**asdict(this_machine()), "load_average": round(os.getloadavg()[0], 2), "busy_share": round(busy, 3)}
