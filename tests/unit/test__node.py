# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import pytest

from ansible_collections.sparkrig.serving.plugins.module_utils._node import (
    Memory,
    belongs_to,
    held_bytes,
    memory,
    parse_limit,
    parse_meminfo,
    reclaimable_bytes,
)

MEMINFO = (
    "MemTotal:       24689328 kB\nMemFree:        1000 kB\nMemAvailable:   20000000 kB\nHugePages_Total:       7\n"
)
GIB = 2**30


def test_meminfo_is_in_bytes() -> None:
    fields = parse_meminfo(MEMINFO)
    assert fields["MemTotal"] == 24689328 * 1024
    assert fields["HugePages_Total"] == 7


def test_meminfo_without_a_field_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^/proc/meminfo has no MemAvailable: 'MemTotal: 1 kB'$"):
        parse_meminfo("MemTotal: 1 kB")


@pytest.mark.parametrize(
    ("text", "limit"), [(None, None), ("max\n", None), ("9223372036854771712\n", None), ("4294967296\n", 4294967296)]
)
def test_limit(text: str | None, limit: int | None) -> None:
    assert parse_limit(text) == limit


def test_v1_counts_the_whole_subtree() -> None:
    assert reclaimable_bytes("inactive_file 1\ntotal_inactive_file 100\ntotal_active_file 50\n") == 150
    assert reclaimable_bytes("inactive_file 7\nactive_file 1\n") == 8


def test_memory_without_a_control_group() -> None:
    assert memory(MEMINFO, None, None, None) == Memory(24689328 * 1024, 20000000 * 1024)


def test_memory_is_the_smaller_of_machine_and_limit() -> None:
    seen = memory(MEMINFO, str(4 * GIB), str(2 * GIB), f"inactive_file {GIB}\n")
    assert seen == Memory(4 * GIB, 3 * GIB)
    tight = memory("MemTotal: 1048576 kB\nMemAvailable: 524288 kB\n", str(4 * GIB), "0", "")
    assert tight == Memory(GIB, GIB // 2)


@pytest.mark.parametrize(
    ("cgroup", "inside"),
    [
        ("0::/system.slice/sparkrig-vllm.service\n", True),
        ("3:memory:/system.slice/sparkrig-ray.service\n0::/init.scope\n", True),
        ("0::/system.slice/ssh.service\n", False),
        ("", False),
    ],
)
def test_a_process_of_the_rig_is_known_by_its_control_group(cgroup: str, inside: bool) -> None:
    assert belongs_to(cgroup, ["sparkrig-ray.service", "sparkrig-vllm.service"]) is inside


def test_files_are_not_held_by_a_process() -> None:
    rollup = "Rss: 9000 kB\nPss: 700 kB\nPss_Anon:  500 kB\nPss_File: 150 kB\nPss_Shmem:  50 kB\n"
    assert held_bytes(rollup) == 550 * 1024
    assert held_bytes("") == 0


def test_a_full_control_group_leaves_nothing() -> None:
    assert memory(MEMINFO, "1000", "2000", "").available_bytes == 0
