# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`site` on bare nodes, role by role, and then with nothing to do."""

from __future__ import annotations

import resource
import time
import typing as t

from lab.common import LabError
from lab.demo import drive
from lab.nodes import read_nodes
from lab.play import play

# The first one after a change may still make what later ones find, such as connections.
WARM_ROUNDS = 3


def processor_s() -> float:
    """Processor time of all that this process has started and that has ended: of Ansible, not of the nodes."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure() -> dict[str, t.Any]:
    """Seconds of the whole path on these nodes, which have to be bare."""
    started = time.monotonic()
    progress = drive("site.yml")
    cold_s = time.monotonic() - started
    warm, controller = [], []
    for _round in range(WARM_ROUNDS):
        started, before_s = time.monotonic(), processor_s()
        outcome = play("site.yml")
        warm.append(round(time.monotonic() - started, 2))
        controller.append(round(processor_s() - before_s, 2))
        if outcome.code != 0 or outcome.changed != 0:
            raise LabError(f"a second `site` changed {outcome.changed} things (exit {outcome.code}):\n{outcome.text}")
    return {
        "nodes": len(read_nodes()),
        "cold_s": round(cold_s, 1),
        "roles_s": {role: round(seconds, 1) for role, seconds in progress.seconds_by_role.items() if role},
        "warm_s": warm,
        "controller_processor_s": controller,
    }
