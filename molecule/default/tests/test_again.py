# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Running the whole path again on nodes that serve."""

from __future__ import annotations

import time

from lab.play import play

SECOND_RUN_S = 90.0


def test_a_second_run_changes_nothing_and_is_quick() -> None:
    started = time.monotonic()
    outcome = play("site.yml")
    seconds = time.monotonic() - started
    assert outcome.code == 0, outcome.text
    assert {host: counters["changed"] for host, counters in outcome.recap.items()} == dict.fromkeys(outcome.recap, 0)
    assert len(outcome.recap) == 4
    assert seconds <= SECOND_RUN_S


def test_check_mode_foresees_no_change() -> None:
    outcome = play("site.yml", options=("--check", "--diff"))
    assert outcome.code == 0, outcome.text
    assert outcome.changed == 0, outcome.text
