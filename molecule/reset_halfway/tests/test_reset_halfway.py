# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`reset` after runs that were killed half-way, and where parts are gone already: the nodes are what they were.

What they were is the snapshot that prepare kept: units, files, sysctls, mounts, links and packages.
"""

from __future__ import annotations

import json
import re

import pytest

from lab.hosts import HOSTS
from lab.play import Outcome, play, play_until
from lab.snapshot import remaining, take_all

OURS = re.compile(r"(?!/tmp/).*sparkrig")

# Where a run is killed, and how many seconds into the task. One that is killed while it brings the rails up is below.
PLACES = [
    ("os_prune : Stop and mask", 1.0),
    ("runtime : Have the tree on every node", 5.0),
]


def reset(*options: str) -> Outcome:
    return play("sparkrig.serving.reset", {"reset_consent": True}, options)


def ours() -> dict[str, dict[str, str]]:
    """By node, the files and units that bear our name."""
    return {
        name: {what: state for area in ("files", "units") for what, state in seen[area].items() if OURS.match(what)}
        for name, seen in take_all().items()
    }


@pytest.mark.parametrize(("task", "seconds"), PLACES)
def test_a_run_that_was_killed_is_taken_back(task: str, seconds: float) -> None:
    play_until("sparkrig.serving.site", task, seconds)
    outcome = reset()
    assert outcome.code == 0, outcome.text
    assert remaining() == {}


def test_it_asks_first_and_a_dry_run_only_tells() -> None:
    play_until("sparkrig.serving.site", "fabric : Bring the rails up", 4.0)
    before = ours()
    refused = play("sparkrig.serving.reset")
    assert refused.code != 0
    assert "then run it with -e reset_consent=true. Nothing was changed." in " ".join(refused.text.split())
    assert refused.changed == 0
    dry = play("sparkrig.serving.reset", options=("--check",))
    assert dry.code == 0, dry.text
    assert all(counters["changed"] > 0 for counters in dry.recap.values())
    assert ours() == before

    # Half of it is gone when somebody has helped himself.
    for host in HOSTS.values():
        host.run(
            "rm -rf /etc/sparkrig /etc/netplan/40-sparkrig-fabric.yaml /opt/sparkrig; systemctl unmask cups.service"
        )
    outcome = reset()
    assert outcome.code == 0, outcome.text
    assert remaining() == {}


def test_on_a_node_without_anything_of_us_it_changes_nothing() -> None:
    outcome = reset()
    assert outcome.code == 0, outcome.text
    assert outcome.changed == 0, outcome.text
    assert remaining(0) == {}


def test_a_journal_of_another_node_undoes_nothing() -> None:
    path = "/var/lib/sparkrig/journal/os_prune.json"
    name, host = next(iter(HOSTS.items()))
    text = json.dumps({"version": 1, "kind": "unit_prune", "machine_id": "f" * 32, "content": {}, "sha256": ""})
    host.run("mkdir -p /var/lib/sparkrig/journal && echo %s > %s", text, path)
    try:
        outcome = play("sparkrig.serving.reset", {"reset_consent": True}, ("--limit", name))
        assert outcome.code != 0
        assert path in " ".join(outcome.text.split())
        assert outcome.changed == 0
    finally:
        # A run that was refused leaves the empty folder of the launch lock, in which the services of a rig may write.
        host.run("rm -r /var/lib/sparkrig; rmdir /run/sparkrig")
    assert remaining(0, [name]) == {}
