# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A changed profile is served by running again, although the old one holds the memory that the new one needs."""

from __future__ import annotations

import json
import typing as t

import pytest

from lab.hosts import HOSTS, NODES
from lab.play import play

# The profile's own budget holds 271 blocks of 16 tokens; this one 189.
SMALLER = {"max_model_len": 1024, "kv_cache_memory_bytes": 14_000_000}


@pytest.mark.parametrize(("overrides", "tokens"), [(SMALLER, 189 * 16), ({}, 271 * 16)])
def test_running_again_serves_the_changed_plan(overrides: dict[str, t.Any], tokens: int) -> None:
    outcome = play("site.yml", {"serving_overrides": overrides})
    assert outcome.code == 0, outcome.text
    assert all(counters["changed"] > 0 for counters in outcome.recap.values())
    plan = json.loads(HOSTS[NODES[0].name].file("/var/lib/sparkrig/plan.json").content_string)
    # Role verify has compared the plan with what the engine reports.
    assert plan["kv_cache_tokens"] == tokens
