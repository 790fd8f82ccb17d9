# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who may launch."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ansible_collections.sparkrig.serving.plugins.lookup.controller import describe, started
from ansible_collections.sparkrig.serving.plugins.module_utils._launch_lock import (
    Holder,
    holder_of,
    holder_sentence,
    may_take,
    parse_holder,
)

OURS = Holder("ann@desk", "desk boot1", "7:100", "site")
THEIRS = Holder("bob@lap", "lap boot2", "9:300", "serve", since=1000.0, until=1900.0)
EARLIER = Holder("ann@desk", "desk boot1", "5:90", "site", since=1000.0, until=1900.0)


@pytest.mark.parametrize(
    ("present", "alive", "now", "expected"),
    [
        (None, [], 1100.0, (True, "free")),
        (OURS, ["7:100"], 1100.0, (True, "held already")),
        (
            THEIRS,
            ["7:100"],
            1100.0,
            (False, "bob@lap runs serve here since 100 s (process 9, its lease ends in 13 min)"),
        ),
        (THEIRS, ["7:100"], 1900.0, (True, "taken over from bob@lap: its lease has run out")),
        # Our own controller knows which of its runs are gone, whatever became of the process number.
        (EARLIER, ["5:555", "7:100"], 1100.0, (True, "taken over from ann@desk: process 5 there is gone")),
        (EARLIER, ["5:90", "7:100"], 1100.0, (False, holder_sentence(EARLIER, 1100.0))),
        (EARLIER, None, 1100.0, (False, holder_sentence(EARLIER, 1100.0))),
    ],
)
def test_who_may_take_the_lock(
    present: Holder | None, alive: list[str] | None, now: float, expected: tuple[bool, str]
) -> None:
    assert may_take(present, OURS, alive, now) == expected


def test_a_holder_survives_the_file() -> None:
    assert parse_holder(THEIRS.text()) == THEIRS
    assert parse_holder("") is None
    assert parse_holder("{}") is None
    assert parse_holder("half a li") is None


def test_a_controller_knows_itself() -> None:
    option = describe("site", os.getpid(), Path("/proc"))
    holder, alive = holder_of(option)
    assert alive is not None
    assert holder.process in alive
    assert started(os.getpid(), Path("/proc"))
    with pytest.raises(ValueError, match="the holder has no 'process'"):
        holder_of({"who": "a", "controller": "b"})


def test_a_controller_without_proc_knows_only_itself(tmp_path: Path) -> None:
    assert describe("site", os.getpid(), tmp_path)["alive"] is None
