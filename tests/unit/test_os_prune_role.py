# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The tiers of os_prune: what they hold, and that each unit is documented."""

from __future__ import annotations

import typing as t
from pathlib import Path

import pytest
import yaml

from ansible_collections.sparkrig.serving.plugins.module_utils._systemd_units import (
    check_names,
    check_protected,
    protection,
)

ROLE = Path(__file__).parents[2] / "roles/os_prune"
VARIABLES = yaml.safe_load((ROLE / "vars/main.yml").read_text(encoding="utf-8"))
TABLE: list[dict[str, t.Any]] = VARIABLES["__os_prune_table"]
README = (ROLE / "README.md").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row["unit"])
def test_every_unit_is_documented(row: dict[str, t.Any]) -> None:
    unit = f"`{row['unit']}`" + (" (user)" if row.get("user") else "")
    assert f"| `{row['tier']}` | {unit} | {row['why']} | {row['cost']} |" in README
    assert row["tier"] in VARIABLES["__os_prune_tiers"]


def test_the_readme_lists_no_other_unit() -> None:
    rows = [line for line in README if line.startswith(("| `minimal` |", "| `headless` |", "| `bare` |"))]
    assert len(rows) == len(TABLE)


def test_every_name_is_one_that_the_module_takes() -> None:
    names = [row["unit"] for row in TABLE]
    assert check_names("units", names) == tuple(names)


def test_only_what_is_marked_is_protected() -> None:
    marked = [row["unit"] for row in TABLE if row.get("protected")]
    assert [name for name in marked if not protection([name], [])] == []
    check_protected("units", [row["unit"] for row in TABLE], marked)


@pytest.mark.parametrize("starter", [row["unit"] for row in TABLE if row["unit"].endswith((".socket", ".path"))])
def test_what_is_started_is_in_the_tier_of_its_starter(starter: str) -> None:
    tiers = {row["unit"]: row["tier"] for row in TABLE}
    service = starter.rpartition(".")[0] + ".service"
    # whoopsie.service is started by its path alone.
    assert tiers.get(service, tiers[starter]) == tiers[starter]
