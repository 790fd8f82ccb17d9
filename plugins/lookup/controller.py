# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who is this controller, and which run is this?"""

from __future__ import annotations

DOCUMENTATION = r"""
name: controller
short_description: Who this controller is, and which run this is
version_added: 0.1.0
author: The sparkrig engineers (@sparkrig)
description:
  - Names user, machine and process of this run, and the other processes of this machine, so that
    M(sparkrig.serving.launch_lock) can tell a run that goes on from one that was killed.
options:
  _terms:
    description: What this run does, in a word or two.
    type: list
    elements: str
"""

EXAMPLES = r"""
---
- name: Show which run this is
  ansible.builtin.debug:
    msg: "{{ lookup('sparkrig.serving.controller', 'sparkrig.serving.site') }}"
"""

RETURN = r"""
_raw:
  description: A dictionary with C(who), C(controller), C(process), C(what) and C(alive).
  type: list
  elements: dict
"""

import getpass
import os
import platform
import typing as t
from pathlib import Path

from ansible.plugins.lookup import LookupBase


def started(pid: int, proc: Path) -> str:
    """When the process was started, in ticks since the boot; empty when there is none."""
    try:
        # The name may hold blanks and brackets; what comes after the last one does not.
        return (proc / str(pid) / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def command(pid: int, proc: Path) -> bytes:
    """The command line of the process."""
    try:
        return (proc / str(pid) / "cmdline").read_bytes()
    except OSError:
        return b""


def parent(pid: int, proc: Path) -> int:
    """The parent of the process; 0 when it cannot be told."""
    try:
        text = (proc / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
        return int(text.rpartition(")")[2].split()[1])
    except (OSError, IndexError, ValueError):
        return 0


def main_process(pid: int, proc: Path) -> int:
    """The process of the run: Ansible's workers are forks of it and share its command line."""
    own = command(pid, proc)
    above = parent(pid, proc)
    while above > 1 and own and command(above, proc) == own:
        pid, above = above, parent(above, proc)
    return pid


def describe(what: str, pid: int, proc: Path) -> dict[str, t.Any]:
    """What the lookup returns."""
    boot = proc / "sys/kernel/random/boot_id"
    known = boot.is_file()
    pid = main_process(pid, proc) if known else os.getppid()
    pids = [int(entry.name) for entry in proc.iterdir() if entry.name.isdigit()] if known else []
    return {
        "who": f"{getpass.getuser()}@{platform.node()}",
        "controller": f"{platform.node()} {boot.read_text(encoding='utf-8').strip() if known else ''}".strip(),
        "process": f"{pid}:{started(pid, proc)}",
        "what": what,
        "alive": [f"{other}:{started(other, proc)}" for other in sorted(pids)] if known else None,
    }


class LookupModule(LookupBase):
    """The lookup."""

    def run(
        self, terms: list[str], variables: dict[str, t.Any] | None = None, **kwargs: t.Any
    ) -> list[dict[str, t.Any]]:
        """One dictionary."""
        del variables, kwargs
        return [describe(" ".join(terms) or "a playbook", os.getpid(), Path("/proc"))]
