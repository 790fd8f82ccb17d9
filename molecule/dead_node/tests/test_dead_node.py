# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A worker dies: verify says which, and running again brings the model back."""

from __future__ import annotations

from lab.common import run
from lab.nodes import read_nodes, up
from lab.play import play


def test_verify_names_the_dead_node_and_site_brings_it_back() -> None:
    victim = read_nodes()[2]
    assert play("sparkrig.serving.verify").code == 0
    run(["podman", "kill", victim.container])

    outcome = play("sparkrig.serving.verify")
    text = " ".join(outcome.text.split())
    assert outcome.code != 0, outcome.text
    assert f"{victim.name} ({victim.management_ip})" in text
    assert "does not answer over SSH" in text

    up()
    outcome = play("sparkrig.serving.site")
    assert outcome.code == 0, outcome.text
    assert play("sparkrig.serving.verify").code == 0
