# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

from dataclasses import replace

import pytest

from ansible_collections.sparkrig.serving.plugins.module_utils._node import (
    Memory,
    Node,
    Requirements,
    belongs_to,
    held_bytes,
    inventory_problems,
    memory,
    node_problems,
    parse_limit,
    parse_meminfo,
    reclaimable_bytes,
)

MEMINFO = (
    "MemTotal:       24689328 kB\nMemFree:        1000 kB\nMemAvailable:   20000000 kB\nHugePages_Total:       7\n"
)
GIB = 2**30
REQUIREMENTS = Requirements(node_count=2, memory_total_bytes=3 * GIB, disk_free_bytes=5 * GIB)
GOOD = Node(
    name="spark1",
    address="10.0.0.1",
    architecture="aarch64",
    distribution="ubuntu 24.04",
    python_version="3.12.3",
    memory_total_bytes=4 * GIB,
    disk_free_bytes=6 * GIB,
    hostname="spark1",
)
TWIN = replace(GOOD, name="spark2", address="10.0.0.2", hostname="spark2")


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


def test_good_nodes_have_no_problem() -> None:
    assert inventory_problems([GOOD, TWIN], REQUIREMENTS) == []
    assert node_problems([GOOD, TWIN], REQUIREMENTS) == []


def test_node_count() -> None:
    assert inventory_problems([GOOD], REQUIREMENTS) == [
        "The profile has 2 ranks and needs as many nodes, one GPU each; the inventory has 1 (spark1)."
        " Correct the inventory's group, or choose a profile for 1 nodes."
    ]


def test_same_address() -> None:
    assert inventory_problems([GOOD, replace(TWIN, address="10.0.0.1")], REQUIREMENTS) == [
        "spark1 and spark2 have the same ansible_host 10.0.0.1; every node needs its own. Correct the inventory."
    ]


ODD_ONE = " One runtime is built for all of them: bring them to the same state first."
NODE_CASES = [
    (
        replace(TWIN, unreachable="Connection timed out."),
        "spark2 (10.0.0.2) was not reached: Connection timed out. All 2 nodes are needed, because each holds a part of"
        " the model. Check its power, its cable and `ssh 10.0.0.2`.",
    ),
    (
        replace(TWIN, memory_total_bytes=2 * GIB),
        "spark2 has 2.00 GiB of memory; the profile needs 3.00 GiB on every node."
        " Choose a smaller profile, or another node.",
    ),
    (
        replace(TWIN, disk_free_bytes=GIB),
        "spark2 has 1.00 GiB free for /opt/sparkrig and /var/lib/sparkrig; 5.00 GiB are needed. Free some disk there.",
    ),
    (
        replace(TWIN, architecture="x86_64"),
        "The nodes differ in their processor architecture: spark1 has aarch64, the others have x86_64." + ODD_ONE,
    ),
    (
        replace(TWIN, distribution="debian 12"),
        "The nodes differ in their operating system: spark2 has debian 12, the others have ubuntu 24.04." + ODD_ONE,
    ),
    (
        replace(TWIN, python_version="3.11.2"),
        "The nodes differ in their Python version: spark2 has 3.11, the others have 3.12." + ODD_ONE,
    ),
    (
        replace(TWIN, hostname="spark1"),
        "spark1 and spark2 have the same host name 'spark1'; the ranks tell nodes apart by it."
        " Give each its own with `hostnamectl hostname`.",
    ),
]


@pytest.mark.parametrize(("node", "sentence"), NODE_CASES)
def test_node_problems(node: Node, sentence: str) -> None:
    assert node_problems([GOOD, node], REQUIREMENTS) == [sentence]


def test_old_python() -> None:
    old = [replace(GOOD, python_version="3.8.10"), replace(TWIN, python_version="3.8.10")]
    assert node_problems(old, REQUIREMENTS) == [
        f"{name} has Python 3.8.10; 3.9 or newer is needed. Install a newer python3 there."
        for name in ("spark1", "spark2")
    ]


def test_all_problems_come_at_once() -> None:
    broken = replace(TWIN, memory_total_bytes=0, disk_free_bytes=0)
    assert len(node_problems([replace(GOOD, unreachable="gone"), broken], REQUIREMENTS)) == 3
