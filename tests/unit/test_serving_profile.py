# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A profile as a playbook loads it, and what the processes of the tasks inherit from that."""

from __future__ import annotations

import re
import sys
import typing as t
from pathlib import Path

import pytest
import yaml

from ansible_collections.sparkrig.serving.plugins.action import serving_profile

PROJECT = Path(__file__).parents[2]
VARS = str(PROJECT / "roles" / "profile" / "vars")


def load(name: str, overrides: t.Any = None) -> dict[str, t.Any]:
    return serving_profile.load(name, VARS, overrides or {}, lambda path: yaml.safe_load(Path(path).read_text()))


def test_a_profile_is_laid_over_the_one_it_is_based_on() -> None:
    based, base = load("glm52_128k_dcp4_mtp3"), load("glm52_128k_dcp4_mtp1")
    assert based["model"] == base["model"]
    assert based["speculative_config"]["num_speculative_tokens"] == 3
    assert (based["name"], base["name"]) == ("glm52_128k_dcp4_mtp3", "glm52_128k_dcp4_mtp1")


def test_overrides_are_merged_key_by_key() -> None:
    profile = load("lab_cpu", {"model": {"overlay": None}, "max_model_len": 1024})
    assert (profile["model"]["overlay"], profile["max_model_len"]) == (None, 1024)
    assert profile["model"]["base"] == load("lab_cpu")["model"]["base"]


@pytest.mark.parametrize(
    ("name", "overrides", "sentence"),
    [
        (
            "glm9",
            {},
            "serving_profile is 'glm9', which is no profile of this collection; there are glm52_128k",
        ),
        ("../defaults/main", {}, "serving_profile is '../defaults/main', which is no profile of this collection"),
        ("lab_cpu", {"max_modle_len": 1}, "Profile lab_cpu: 'max_modle_len' is no key of a profile (did you mean"),
        ("lab_cpu", ["x"], "Profile lab_cpu: serving_overrides is ['x']; it must be a dict of profile keys."),
    ],
)
def test_what_is_wrong_is_one_sentence(name: str, overrides: t.Any, sentence: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(sentence)):
        load(name, overrides)


def test_a_file_of_the_users_own(tmp_path: Path) -> None:
    own = tmp_path / "mine.yml"
    own.write_text("profile_based_on: qwen3_32b\nprofile_content: {description: mine, max_model_len: 1024}\n")
    profile = load(str(own))
    assert (profile["name"], profile["description"], profile["max_model_len"]) == ("mine", "mine", 1024)
    assert profile["model"] == load("qwen3_32b")["model"]


def test_a_file_that_is_no_profile(tmp_path: Path) -> None:
    own = tmp_path / "mine.yml"
    with pytest.raises(ValueError, match=f"there is no file {own}"):
        load(str(own))
    for text in ("[]", "profile_content: 3", "max_model_len: 1024"):
        own.write_text(text)
        with pytest.raises(ValueError, match=f"{own} is no profile: expected a dictionary profile_content"):
            load(str(own))
    own.write_text("profile_based_on: glm9\nprofile_content: {}\n")
    with pytest.raises(ValueError, match="'glm9', which is no profile of this collection"):
        load(str(own))


def test_every_filter_is_imported_with_the_action() -> None:
    prefix = "ansible_collections.sparkrig.serving.plugins.filter."
    files = {path.stem for path in (PROJECT / "plugins" / "filter").glob("*.py")}
    assert {prefix + name for name in files} <= set(sys.modules)


@pytest.mark.parametrize("path", sorted((PROJECT / "playbooks").glob("*.yml")), ids=lambda path: path.stem)
def test_a_play_that_loads_a_profile_begins_with_that(path: Path) -> None:
    """Tasks before it would not have the filters that it imports."""
    for play in yaml.safe_load(path.read_text(encoding="utf-8")):
        names = [task.get("name") for task in play.get("tasks", [])]
        if "Load the profile" in names:
            assert names.index("Load the profile") <= 1, names
