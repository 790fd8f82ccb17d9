# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Asks nvidia-smi, PCI and /proc about the GPUs of this node. What the answers mean is in ``_gpu.py``.

Private to the collection. One question, ``nvidia-smi -q -x``, answers for everybody who wants to know something.
"""

from __future__ import annotations

import os
import time
import typing as t
from dataclasses import dataclass

from ansible_collections.sparkrig.serving.plugins.module_utils import _gpu, _memory, _memory_probe
from ansible_collections.sparkrig.serving.plugins.module_utils._gpu_load import Load, LoadError

# A command as a list of words, and its exit code, output and error output.
Run = t.Callable[[t.Sequence[str]], "tuple[int, str, str]"]

# Clocks need a moment to rise.
SETTLE_S = 0.5


@dataclass(frozen=True)
class Clocks:
    """What the clocks of one GPU do under load, or the sentence why that was not tried or failed."""

    load: dict[str, t.Any] | None = None
    busy: str = ""
    failure: str = ""
    stuck: str = ""

    @property
    def skipped(self) -> str:
        """Why there was no load; empty with one."""
        return self.busy or self.failure


class Smi:
    """nvidia-smi on this node."""

    def __init__(self, run: Run, program: str | None, root: str = "/") -> None:
        """*run* runs a command, *program* is where nvidia-smi is, None without it; /proc and /sys are below *root*."""
        self._run = run
        self._program = program
        self._root = root
        self._pci_gpus = self._count_pci_gpus()

    def _read_text(self, name: str) -> str | None:
        return _memory_probe.read_text(os.path.join(self._root, name))

    def _count_pci_gpus(self) -> int:
        """How many GPUs of NVIDIA's the PCI bus has, whatever the driver says."""
        folder = os.path.join(self._root, "sys/bus/pci/devices")
        if not os.path.isdir(folder):
            return 0
        return sum(
            (self._read_text(f"{folder}/{name}/vendor") or "").strip() == "0x10de"
            and (self._read_text(f"{folder}/{name}/class") or "").startswith("0x03")
            for name in os.listdir(folder)
        )

    def owner(self, pid: int) -> str | None:
        """The unit of a process; None when there is no such process."""
        text = self._read_text(f"proc/{pid}/cgroup")
        return None if text is None else _memory.unit_of(text)

    def query(self) -> _gpu.Answer:
        """Everything that the driver tells."""
        if not self._program:
            return _gpu.missing_tool(self._pci_gpus)
        return _gpu.answer(*self._run([self._program, "-q", "-x"]), self._pci_gpus)

    def clocks(self, gpu: _gpu.Gpu, seconds: float, minimum_mhz: int) -> Clocks:
        """Put *gpu* under load for some seconds, unless somebody computes on it."""
        if not seconds:
            return Clocks()
        busy = [process for process in gpu.processes if "C" in process.kind]
        if busy:
            return Clocks(busy=f"{busy[0].name} (pid {busy[0].pid}) computes on this GPU; a load would disturb it.")
        samples = []
        try:
            with Load(gpu.index, seconds) as load:
                time.sleep(min(SETTLE_S, seconds / 4))
                while load.running():
                    gpus = self.query().gpus
                    if gpu.index < len(gpus):
                        samples.append(_gpu.sample(gpus[gpu.index]))
            seen = _gpu.summarize([one for one in samples if one is not None], seconds)
        except (LoadError, ValueError) as error:
            return Clocks(failure=f"No load could be put on this GPU: {error}.")
        return Clocks(seen, stuck=_gpu.stuck(seen, minimum_mhz))

    def leftovers(self, seen: _gpu.Answer, units: t.Sequence[str]) -> tuple[_gpu.Leftover, ...]:
        """The processes that compute on a GPU and run in none of *units*."""
        return _gpu.leftovers(seen.gpus, units, self.owner)

    def strangers(self, seen: _gpu.Answer, units: t.Sequence[str]) -> list[str]:
        """The same in a few words each."""
        return [f"process {one.pid} ({one.name}) uses the GPU" for one in self.leftovers(seen, units)]


def smi_of(module: t.Any) -> Smi:
    """nvidia-smi as *module* runs it."""
    return Smi(lambda words: module.run_command(list(words)), module.get_bin_path("nvidia-smi"))
