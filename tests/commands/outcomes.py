# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What has to come out of the commands that are typed in a fresh clone."""

from __future__ import annotations

import re

# What a whole command looks like, and what it has to print.
OUTCOMES = (
    ("make demo", r"(?s)^endpoint +http://10\.98\.0\.11:18089/v1$.*^KV tokens +(\d+) predicted, \1 reported"),
    (r"make up|lab/beside\.sh \w+ python -m lab\.nodes up", r"^lab: 4 nodes are up: spark1 "),
    (r"make down|lab/beside\.sh \w+ python -m lab\.nodes down", r"^lab: nothing of the lab is left but its cache$"),
    (r"source \S+", r"\A\Z"),
    (r"(lab/beside\.sh \w+ )?pytest \S+( -k \w+)?|make unit", r"^\d+ passed"),
    ("make static", r"(?s)^All checks passed!$.*^Success: no issues found.*^\d+ passed.*^what Sparks are needed for"),
    ("make reference", r"\A\Z"),
    ("make docs", r"^build/site/index\.html opens as it is"),
    ("make changelog", ""),
    ("make clean", r"^lab: nothing of the lab is left but its cache$"),
    ("make bench", r"^lab: wrote docs/performance\.md and its plots$"),
)
# What a test that has to fail prints.
FAILS = r"^FAILED tests/unit/test_collection\.py|^FAILED molecule/fabric/tests/test_fabric\.py"


def outcome_of(text: str) -> str:
    """The pattern for what this command prints; KeyError when nobody has said yet what comes out of it."""
    for pattern, outcome in OUTCOMES:
        if re.fullmatch(pattern, text):
            return outcome
    raise KeyError(f"say in tests/commands/outcomes.py what comes out of '{text}'")
