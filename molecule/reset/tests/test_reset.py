# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From a served model back to the nodes as they were found, before the first run of `site`."""

from __future__ import annotations

from lab.hosts import HOSTS, NODES
from lab.play import play
from lab.snapshot import remaining


def test_a_dry_run_tells_what_would_go_and_stops_nothing() -> None:
    head = HOSTS[NODES[0].name]
    pid = head.check_output("systemctl show --property=MainPID --value sparkrig-vllm.service")
    dry = play("sparkrig.serving.reset", options=("--check",))
    assert dry.code == 0, dry.text
    for told in ("sparkrig-vllm.service: stopped and removed", "sparkrig-ray.service: stopped and removed"):
        assert told in " ".join(dry.text.split())
    assert head.check_output("systemctl show --property=MainPID --value sparkrig-vllm.service") == pid != "0"


def test_the_nodes_are_what_they_were() -> None:
    outcome = play("sparkrig.serving.reset", {"reset_consent": True})
    assert outcome.code == 0, outcome.text
    assert remaining() == {}


def test_again_there_is_nothing_to_do() -> None:
    outcome = play("sparkrig.serving.reset", {"reset_consent": True})
    assert outcome.code == 0, outcome.text
    assert outcome.changed == 0, outcome.text
