# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The runtimes that are shipped: every file that they name is there, and each has one digest."""

from __future__ import annotations

import typing as t
from pathlib import Path

import pytest
import yaml

from ansible_collections.sparkrig.serving.plugins.module_utils._runtime import (
    Description,
    Target,
    description_from,
    digest_of,
    normalized,
    parse_lock,
)
from ansible_collections.sparkrig.serving.plugins.module_utils._runtime_lock import requirement_lines
from ansible_collections.sparkrig.serving.plugins.module_utils._wheel_patch import Patch
from tests.fixtures.wheels import ROLE

FILES = ROLE / "files"
PROFILES = ROLE.parent / "profile" / "vars"


def read(path: Path) -> t.Any:
    return yaml.safe_load(path.read_text())["profile_content"]["runtime"]


SHIPPED = {
    "the fork": read(PROFILES / "glm52_128k_dcp4_mtp1.yml"),
    "upstream": read(PROFILES / "qwen3_32b.yml"),
    "the lab": read(PROFILES / "lab_cpu.yml"),
}


def patches_of(description: Description) -> list[Patch]:
    folder = FILES / "patches" / description.series
    return [Patch(name, (folder / name).read_bytes()) for name in description.patch_files]


@pytest.mark.parametrize("name", SHIPPED)
def test_every_file_that_a_description_names_is_there(name: str) -> None:
    description = description_from(SHIPPED[name])
    assert patches_of(description)
    for python in (description.python,) if description.python else ("3.11", "3.12", "3.13"):
        lock = FILES / "locks" / f"{description.lock}.py{python}.txt"
        if description.source.kind == "git":
            # Part of it is on no index: the build host makes the lock from these.
            assert requirement_lines((FILES / "locks" / f"{description.lock}.in").read_text())
            continue
        entries = {entry.name: entry for entry in parse_lock(lock.read_text())}
        assert entries[normalized(description.source.name)].version == description.source.version
        assert entries["ray"].version == "2.60.0"
        assert all(entry.hashes for entry in entries.values())


def test_the_fork_is_built_with_the_seeds_pins() -> None:
    description = description_from(SHIPPED["the fork"])
    pins = {source.name: source.commit for source in description.git_sources}
    assert pins == {
        "vllm": "a663653d8cf3a66ee3c0060aea8c2fd28e3f1362",
        "b12x": "9cd63a726e9b188701f3dff0e6b95d7814c42fc5",
        "flashinfer-python": "9c5ed7c194e7412780862491742fc655daaad6ac",
    }
    # What vLLM builds against comes before it.
    assert description.git_sources[-1].name == "vllm"
    assert description.build.cuda_arch_list == "12.1a"


@pytest.mark.parametrize("name", SHIPPED)
def test_the_same_description_gives_the_same_digest(name: str) -> None:
    description = description_from(SHIPPED[name])
    target, patches = Target("3.12", "aarch64", "2.39"), patches_of(description)
    lock = f"ray==2.60.0 --hash=sha256:{'a' * 64}\n"
    first = digest_of(description, target, lock, patches)
    assert digest_of(description_from(SHIPPED[name]), target, lock, patches) == first
    # How fast and where it is built is not what it is.
    for key, value in (("max_jobs", 1), ("timeout_s", 5), ("memory_max_bytes", 1 << 30)):
        change = {**SHIPPED[name], "build": {**SHIPPED[name].get("build", {}), key: value}}
        assert digest_of(description_from(change), target, lock, patches) == first
    change = {**SHIPPED[name], "local_version": "other"}
    assert digest_of(description_from(change), target, lock, patches) != first
