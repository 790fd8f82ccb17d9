# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One controller at a time; a lock that nobody holds any more is in nobody's way."""

from __future__ import annotations

import json
import os
import platform
import time
import typing as t
from pathlib import Path

from lab.hosts import HOSTS, NODES
from lab.play import play

LOCK = "/run/sparkrig/launch.lock"
BOOT = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()


def hold(**changes: t.Any) -> None:
    """Put a lock on the second node, as another run would."""
    now = time.time()
    holder = {
        "who": "bob@laptop",
        "controller": "laptop 1",
        "process": "4711:99",
        "what": "sparkrig.serving.site",
        "since": now - 60,
        "until": now + 600,
        **changes,
    }
    host = HOSTS[NODES[1].name]
    host.check_output(f"mkdir -p /run/sparkrig; echo '{json.dumps(holder)}' > {LOCK}")


def held() -> bool:
    """Whether any node still has a lock."""
    return any(HOSTS[node.name].file(LOCK).exists for node in NODES)


def test_a_second_launch_is_refused_with_who_holds_the_lock() -> None:
    hold()
    try:
        outcome = play("sparkrig.serving.serve")
        text = " ".join(outcome.text.split())
        assert outcome.code != 0
        assert "A launch is under way on this node: bob@laptop runs sparkrig.serving.site here since" in text
        assert outcome.changed == 0
    finally:
        HOSTS[NODES[1].name].check_output(f"rm -f {LOCK}")
        for node in NODES:
            HOSTS[node.name].check_output(f"rm -f {LOCK}")


def test_the_lock_of_a_run_that_was_killed_is_taken_over() -> None:
    # A process number that is ours, of a process that began at another time: it is gone.
    hold(controller=f"{platform.node()} {BOOT}", process=f"{os.getpid()}:1")
    outcome = play("sparkrig.serving.serve")
    assert outcome.code == 0, outcome.text
    assert not held()
