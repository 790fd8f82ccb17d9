# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Somebody presses Ctrl-C while site.yml is in each of its roles, from bare nodes on, and starts it again each time."""

from __future__ import annotations

import signal

import pytest

from lab.play import play, play_until

# A task of every role, in the order of the path, and the seconds into it.
PLACES = [
    ("profile : Load the profile", 0.3),
    ("preflight : gather | See what", 1.0),
    ("checkpoint : look | See which files", 0.5),
    ("kv_budget : fit | Fit the model", 0.5),
    ("runtime : archive | Build", 0.5),
    ("os_prune : Stop and mask", 1.0),
    ("fabric : Bring the rails up", 2.0),
    ("runtime : Have the tree on every node", 8.0),
    ("checkpoint : Lay the overlay", 0.5),
    ("kv_budget : Measure the nodes", 0.5),
    ("ray_cluster : node | Run", 1.0),
    ("vllm_serve : engine | Wait until the engine", 10.0),
    ("verify : Ask for a completion", 0.5),
]


@pytest.fixture(scope="module", autouse=True)
def bare() -> None:
    outcome = play("sparkrig.serving.reset", {"reset_consent": True})
    assert outcome.code == 0, outcome.text


@pytest.mark.parametrize(("task", "seconds"), PLACES, ids=[task.split(" :")[0] for task, _seconds in PLACES])
def test_the_next_run_gets_past_an_interrupted_one(task: str, seconds: float) -> None:
    text = play_until("sparkrig.serving.site", task, seconds, by=signal.SIGINT)
    assert "UNREACHABLE" not in text


def test_the_last_run_serves() -> None:
    outcome = play("sparkrig.serving.site")
    assert outcome.code == 0, outcome.text
    again = play("sparkrig.serving.site")
    assert (again.code, again.changed) == (0, 0), again.text
