# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run a playbook against the lab as a user would, for the tests that read what it says."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import typing as t
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lab.nodes import INVENTORY, PROJECT

BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Outcome:
    """How a playbook run ended: exit code, all it printed, and each host's counters from the recap."""

    code: int
    text: str
    recap: dict[str, dict[str, int]]

    @property
    def changed(self) -> int:
        """How many tasks changed something, over all hosts."""
        return sum(counters["changed"] for counters in self.recap.values())


def parse_recap(text: str) -> dict[str, dict[str, int]]:
    """The counters of ``PLAY RECAP`` by host."""
    recap = {}
    for host, counters in re.findall(r"^(\S+)\s+: (ok=\d+ .*)$", text, re.MULTILINE):
        recap[host] = {name: int(value) for name, value in re.findall(r"(\w+)=(\d+)", counters)}
    return recap


def _command(playbook: str, variables: dict[str, t.Any], options: Sequence[str]) -> list[str]:
    command = [str(BIN / "ansible-playbook"), "-i", str(INVENTORY), playbook, *options]
    return [*command, "--extra-vars", json.dumps(variables)] if variables else command


def _environment() -> dict[str, str]:
    return {**os.environ, "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg"), "ANSIBLE_FORCE_COLOR": "0"}


def play(playbook: str, variables: dict[str, t.Any] | None = None, options: Sequence[str] = ()) -> Outcome:
    """Run *playbook* on the lab to its end."""
    result = subprocess.run(
        _command(playbook, variables or {}, options),
        cwd=PROJECT,
        env=_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return Outcome(result.returncode, result.stdout, parse_recap(result.stdout))


def play_until(
    playbook: str,
    task: str,
    seconds: float,
    variables: dict[str, t.Any] | None = None,
    by: signal.Signals = signal.SIGKILL,
) -> str:
    """Run *playbook*, and kill it *seconds* after *task* has begun, with everything that it started.

    *task* is the beginning of "role : name", as the play shows it. *by* is the signal that every process of the run
    gets; SIGINT is what a terminal sends on Ctrl-C.

    Returns what it printed. Raises AssertionError when the run ends by itself before that.
    """
    process = subprocess.Popen(
        _command(playbook, variables or {}, ()),
        cwd=PROJECT,
        env=_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    printed = []
    for line in process.stdout:
        printed.append(line)
        if line.startswith(f"TASK [sparkrig.serving.{task}"):
            threading.Timer(seconds, os.killpg, (process.pid, by)).start()
            break
    printed += process.stdout.readlines()
    text = "".join(printed)
    # Ansible answers Ctrl-C with an exit status of its own. Where its handler meets a worker that has just ended, it
    # trips over that one, and is interrupted all the same.
    code = process.wait()
    tripped = code == 250 and "process object is closed" in text
    if code != -by and not (by == signal.SIGINT and (code == 99 or tripped)):
        raise AssertionError(f"{playbook} ended by itself before it was killed in {task}:\n{text}")
    return text
