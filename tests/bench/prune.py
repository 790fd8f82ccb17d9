# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""unit_prune with nothing to do, beside a loop of ansible.builtin.systemd_service over the same 40 units.

Needs a lab that is up, and leaves its first node as it was.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import yaml

from lab.nodes import read_nodes
from lab.play import play

PLAYBOOK = Path(__file__).with_suffix(".yml")
# All of them are installed on a lab node, and none of them is needed there.
UNITS: list[str] = yaml.safe_load(PLAYBOOK.read_text(encoding="utf-8"))[0]["vars"]["units"]


@dataclass(frozen=True)
class Figures:
    """Seconds of the one call and of the loop, over so many units."""

    units: int
    call_s: float
    loop_s: float

    @property
    def ratio(self) -> float:
        """What the call takes of the loop's time."""
        return self.call_s / self.loop_s


def measure() -> Figures:
    """Both in one run on the first node. AssertionError when the run fails or one of them changed something."""
    with tempfile.TemporaryDirectory() as folder:
        figures = Path(folder) / "figures.json"
        variables = {"target": read_nodes()[0].name, "figures": str(figures)}
        outcome = play(str(PLAYBOOK), variables)
        assert outcome.code == 0, outcome.text
        seen = json.loads(figures.read_text(encoding="utf-8"))
    assert seen["changed"] == [False, False], outcome.text
    return Figures(len(UNITS), seen["call_s"], seen["loop_s"])
