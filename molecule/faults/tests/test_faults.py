# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Faults are done to a rig that serves, and nobody helps.

With SPARKRIG_FAULTS=all the whole matrix is done, otherwise the representative ones; a part of a name picks those.
"""

from __future__ import annotations

import os
import typing as t

import pytest

from lab.faults import FAULTS, Fault, Rig, observe, table
from lab.play import play

WANTED = os.environ.get("SPARKRIG_FAULTS", "")
CHOSEN = [
    fault
    for fault in FAULTS
    if (fault.representative if not WANTED else WANTED == "all" or any(w in fault.name for w in WANTED.split(",")))
]
SEEN: list[list[str]] = []


@pytest.fixture(scope="module", autouse=True)
def matrix() -> t.Iterator[None]:
    """Print the table after the last fault."""
    yield
    print("\n" + table(SEEN))


@pytest.mark.parametrize("fault", CHOSEN, ids=[fault.name for fault in CHOSEN])
def test_served_again_or_down_with_a_reason(fault: Fault) -> None:
    rig = Rig()
    if rig.completion(60.0) is None:
        outcome = play("sparkrig.serving.restart")
        assert outcome.code == 0, outcome.text
    seen = observe(rig, fault)
    SEEN.append(seen.line())
    assert seen.ok, seen
