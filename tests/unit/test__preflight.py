# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What preflight makes of the facts of all nodes."""

from __future__ import annotations

import ast
import copy
import typing as t
from dataclasses import replace
from pathlib import Path

import pytest

from ansible_collections.sparkrig.serving.plugins.module_utils import _preflight
from ansible_collections.sparkrig.serving.plugins.module_utils._launch_lock import Holder
from ansible_collections.sparkrig.serving.plugins.module_utils._preflight import (
    IDS,
    Finding,
    Node,
    Plan,
    accept,
    judge,
    merged,
    status,
    table,
)

GIB = 2**30
GPU: dict[str, t.Any] = {
    "status": "ok",
    "sentence": "NVIDIA GB10, driver 580.159.03.",
    "driver_version": "580.159.03",
    "cuda_version": "13.0",
    "gpus": [{"load": None, "load_skipped": "", "stuck": ""}],
    "leftovers": [],
}
FACTS: dict[str, t.Any] = {
    "architecture": "aarch64",
    "clock": {"least_s": -0.2, "most_s": 0.4},
    "disk_free_bytes": 600 * GIB,
    "distribution": "ubuntu 24.04",
    "memory_available_bytes": 116 * GIB,
    "memory_for_launch_bytes": 116 * GIB,
    "memory_total_bytes": 120 * GIB,
    "python_version": "3.12.3",
    "serving_plan_sha256": "",
    "details": {
        "kernel": "6.17.0-1032-nvidia",
        "dgx_os": "7.3.1",
        "uptime_s": 86400.0,
        "clock_synchronized": True,
        "reboot": {"required": False, "packages": []},
        "next_kernel": None,
        "packages": {"nvidia-container-toolkit": "1.18.0-1"},
        "gpu": GPU,
        "memory": {
            "swap_total_bytes": 16 * GIB,
            "swap_used_bytes": 0,
            "page_cache_bytes": 0,
            "gpu_memory": "unified",
        },
        "prunable_units": [],
        "prunable_bytes": 0,
        "earlyoom": None,
        "containers": [],
        "leftovers": [],
        "lock": None,
        "peers": {"spark1": "", "spark3": ""},
        "privileged": True,
    },
}
PLAN = Plan(
    node_count=3,
    memory_total_bytes=119 * GIB,
    disk_free_bytes=40 * GIB,
    device="cuda",
    architecture="aarch64",
    needed_bytes=(115 * GIB,) * 3,
)


def node(number: int, change: t.Mapping[str, t.Any] | None = None, **more: t.Any) -> Node:
    """A good node, but for *change*: dotted paths into its facts, with the value there."""
    facts = copy.deepcopy(FACTS)
    facts["hostname"] = f"spark{number}"
    for path, value in (change or {}).items():
        place: t.Any = facts
        *parents, last = path.split(".")
        for key in parents:
            place = place[int(key)] if isinstance(place, list) else place[key]
        place[last] = value
    return Node(f"spark{number}", f"10.0.0.{number}", facts=facts, **more)


def nodes(change: t.Mapping[str, t.Any] | None = None, **more: t.Any) -> list[Node]:
    """Three nodes, the second with *change*."""
    return [node(1), node(2, change, **more), node(3)]


def test_good_sparks_have_no_finding() -> None:
    assert judge(nodes(), PLAN) == ()
    assert status(()) == "ok"
    assert table(()) == ["ok: nothing was found that would make a launch fail"]


LOCK = {"who": "ann@desk", "controller": "desk 1", "process": "77:1", "what": "site", "since": 100.0, "until": 1000.0}
LEFT = {"pid": 9, "name": "python", "used_bytes": None, "unit": "", "sentence": "python (pid 9) uses the GPU"}
SLOW = "The GPU runs at 660 MHz at 17 W under load; at least 1500 MHz are expected."
LOAD = {"throttle_reasons": ["sw_power_cap"], "sentence": "1800 MHz at 30 W under 2.0 s of load."}
BOX = [{"engine": "docker", "id": "ab" * 32, "name": "old-vllm", "held_bytes": 3 * GIB}]
CASES: list[tuple[dict[str, t.Any], str, str, str]] = [
    ({"architecture": "x86_64"}, "node.architecture", "error", "The processor is x86_64"),
    ({"distribution": "debian 12"}, "os.mixed", "error", "The operating system is debian 12"),
    ({"memory_total_bytes": 60 * GIB}, "memory.total", "error", "60.00 GiB of memory"),
    ({"disk_free_bytes": GIB}, "disk.free", "error", "1.00 GiB free for /opt/sparkrig and /var/lib/sparkrig"),
    ({"details.kernel": "7.0.0-1019-nvidia"}, "kernel.denied", "error", "Kernel 7.0.0-1019-nvidia: registering memory"),
    ({"details.kernel": "6.8.0-51-generic"}, "kernel.unknown", "warning", "Kernel 6.8.0-51-generic, with which"),
    ({"details.kernel": "6.17.0-1014-nvidia"}, "kernel.mixed", "error", "The kernel is 6.17.0-1014-nvidia"),
    (
        {"details.gpu.driver_version": "590.44"},
        "driver.denied",
        "error",
        "Driver 590.44: it deadlocks while CUDA graphs",
    ),
    ({"details.gpu.driver_version": "570.1"}, "driver.unknown", "warning", "Driver 570.1, with which nobody"),
    ({"details.gpu.driver_version": "580.142"}, "driver.mixed", "error", "The driver is 580.142"),
    ({"details.gpu.cuda_version": "12.9"}, "cuda.mixed", "error", "The driver's CUDA is 12.9"),
    ({"details.packages": {}}, "toolkit.mixed", "error", "The NVIDIA container toolkit is none"),
    ({"details.dgx_os": "6.1"}, "os.unknown", "warning", "Operating system 6.1, with which"),
    (
        {"details.next_kernel": {"release": "6.17.0-1040-nvidia", "has_driver": False}},
        "kernel.next_without_driver",
        "warning",
        "The next boot takes kernel 6.17.0-1040-nvidia, which has no module nvidia",
    ),
    ({"details.gpu.status": "no_driver"}, "gpu.missing", "error", "NVIDIA GB10, driver 580.159.03"),
    ({"details.gpu.gpus.0.stuck": SLOW}, "gpu.clock", "error", SLOW[:40]),
    ({"details.gpu.gpus.0.load": LOAD}, "gpu.throttled", "warning", "1800 MHz at 30 W"),
    ({"details.gpu.gpus.0.load_skipped": "busy"}, "gpu.clock_unknown", "info", "The clocks were not tried: busy"),
    ({"details.gpu.leftovers": [LEFT]}, "gpu.leftover", "error", "python (pid 9) uses the GPU"),
    ({"details.leftovers": ["12 ray::IDLE"]}, "process.leftover", "warning", "1 processes of an earlier launch"),
    ({"details.containers": BOX}, "container.running", "warning", "1 containers run: old-vllm (docker, 3.00 GiB)"),
    ({"details.lock": LOCK}, "launch.locked", "error", "ann@desk runs site here since 100 s"),
    ({"memory_for_launch_bytes": 100 * GIB}, "memory.fit", "error", "A launch could have 100.00 GiB, the 0.00 GiB"),
    ({"details.memory.swap_total_bytes": 0}, "swap.small", "warning", "0.00 GiB of swap"),
    ({"details.memory.swap_used_bytes": GIB}, "swap.used", "info", "1.00 GiB are swapped out"),
    ({"details.memory.page_cache_bytes": 2 * GIB}, "page_cache", "info", "2.00 GiB of page cache, which CUDA counts"),
    (
        {"details.earlyoom": {"term_percent": 10.0, "kill_percent": 5.0}},
        "earlyoom.thresholds",
        "warning",
        "earlyoom ends processes below 10 % of memory and kills them below 5 %",
    ),
    ({"details.uptime_s": 30.0}, "boot.recent", "warning", "It booted 30 s ago"),
    ({"details.uptime_s": 100 * 86400.0}, "boot.long", "info", "It booted 100 days ago"),
    (
        {"details.reboot": {"required": True, "packages": ["linux-image-nvidia"]}},
        "reboot.pending",
        "warning",
        "A reboot is pending for linux-image-nvidia",
    ),
    ({"details.clock_synchronized": False}, "clock.free", "info", "No time service keeps the clock"),
    (
        {"details.peers": {"spark1": "no answer", "spark3": ""}},
        "ssh.peers",
        "warning",
        "The SSH server of spark1 (no answer) does not answer from here",
    ),
    (
        {"details.prunable_units": ["cups.service"], "details.prunable_bytes": GIB},
        "units.prunable",
        "info",
        "1 units would be pruned, which hold 1.00 GiB: cups.service",
    ),
    ({"details.privileged": False}, "node.unprivileged", "info", "Looked at without root"),
    ({"clock": {"least_s": 5.0, "most_s": 6.0}}, "clock.skew", "warning", "Its clock is at least 4.9 s ahead of"),
    ({"clock": {"least_s": -99.0, "most_s": -98.0}}, "clock.skew", "error", "Its clock is at least 98.1 s behind"),
]


@pytest.mark.parametrize(("change", "name", "severity", "seen"), CASES, ids=[case[1] for case in CASES])
def test_one_thing_is_wrong_on_one_node(change: dict[str, t.Any], name: str, severity: str, seen: str) -> None:
    found = [finding for finding in judge(nodes(change), PLAN, now=200.0) if finding.id == name]
    assert [(finding.severity, finding.node) for finding in found] == [(severity, "spark2")]
    assert found[0].seen.startswith(seen)
    assert found[0].fix


def test_every_id_is_listed_and_every_listed_one_exists() -> None:
    tree = ast.parse(Path(_preflight.__file__).read_text(encoding="utf-8"))
    written: set[str] = set()
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "Finding":
            first = call.args[0]
            if isinstance(first, ast.Constant):
                written.add(str(first.value))
            elif isinstance(first, ast.JoinedStr):
                suffix = str(t.cast("ast.Constant", first.values[-1]).value)
                written |= {f"{kind}{suffix}" for kind in ("kernel", "driver", "os")}
    mixed = {name for name in IDS if name.endswith(".mixed")}
    assert written | mixed | {"node.architecture"} == set(IDS)
    assert list(IDS) == sorted(IDS)


def test_readme_explains_every_id() -> None:
    readme = (Path(__file__).parents[2] / "roles/preflight/README.md").read_text(encoding="utf-8")
    assert [name for name in IDS if f"`{name}`" not in readme] == []


def test_the_inventory() -> None:
    twins = [node(1), replace(node(2), address="10.0.0.1")]
    found = judge(twins, PLAN, ["spark1 and spark2 have the same address 10.1.0.1 on their rails"])
    assert [finding.sentence for finding in found] == [
        "The inventory has 2 nodes (spark1, spark2). Needed: 3, because the profile has 3 ranks, one GPU each."
        " Correct the inventory's group, or choose a profile for 2 nodes. (inventory.count)",
        "spark1 and spark2 have the same ansible_host 10.0.0.1. Needed: one address for each node."
        " Correct the inventory. (inventory.address)",
        "spark1 and spark2 have the same address 10.1.0.1 on their rails. Correct the inventory. (inventory.rails)",
    ]


def test_a_node_that_is_not_reached_hides_nothing_of_the_others() -> None:
    gone = Node("spark1", "10.0.0.1", unreachable="Connection timed out.")
    found = judge([gone, node(2, {"disk_free_bytes": 0}), node(3)], PLAN)
    assert [finding.id for finding in found] == ["node.unreachable", "disk.free"]
    assert found[0].sentence == (
        "spark1: spark1 (10.0.0.1) was not reached: Connection timed out. Needed: all 3 nodes, because each holds a"
        " part of the model. Check its power, its cable and `ssh 10.0.0.1`. (node.unreachable)"
    )


def test_old_python_and_the_same_host_name() -> None:
    found = judge([node(1), node(2, {"python_version": "3.8.10", "hostname": "spark1"}), node(3)], PLAN)
    assert [finding.id for finding in found] == ["node.python", "python.mixed", "node.hostname"]
    assert found[2].seen == "spark1 and spark2 have the same host name 'spark1'"


def test_pruning_counts_and_a_plan_that_is_served_is_not_compared_again() -> None:
    low = {"memory_for_launch_bytes": 114 * GIB}
    assert [finding.id for finding in judge(nodes(low), PLAN)] == ["memory.fit"]
    assert judge(nodes({**low, "details.prunable_bytes": 2 * GIB}), PLAN) == ()
    assert judge(nodes({**low, "serving_plan_sha256": "ab"}), PLAN) == ()


def test_what_only_gpus_need_is_not_asked_of_other_nodes() -> None:
    bare = {
        "architecture": "x86_64",
        "details.kernel": "6.1.0-18-amd64",
        "details.dgx_os": "",
        "details.gpu": {**GPU, "status": "no_gpu", "driver_version": "", "cuda_version": "", "gpus": []},
        "details.memory.swap_total_bytes": 0,
    }
    plan = replace(PLAN, device="cpu", architecture="x86_64")
    assert judge([node(number, bare) for number in (1, 2, 3)], plan) == ()


def test_a_known_bad_kernel_is_refused_everywhere() -> None:
    plan = replace(PLAN, device="cpu")
    found = judge([node(number, {"details.kernel": "7.0.0-1019-generic"}) for number in (1, 2, 3)], plan)
    assert {finding.id for finding in found} == {"kernel.denied"}


def test_without_a_known_machine_the_nodes_only_have_to_be_alike() -> None:
    plan = replace(PLAN, architecture="")
    assert judge([node(number, {"architecture": "x86_64"}) for number in (1, 2, 3)], plan) == ()
    found = judge(nodes({"architecture": "x86_64"}), plan)
    assert [finding.sentence for finding in found] == [
        "spark2: The processor is x86_64. Needed: aarch64, as on the others. One runtime is built for all of them:"
        " bring them to the same state first. (node.architecture)"
    ]


def test_our_own_lock_is_no_finding() -> None:
    own = Holder("ann@desk", "desk 1", "77:1", "preflight")
    assert judge(nodes({"details.lock": LOCK}), replace(PLAN, holder=own, alive=("77:1",)), now=200.0) == ()
    # So is that of a run of this controller that was killed, and one whose lease has run out.
    other = Holder("ann@desk", "desk 1", "78:1", "preflight")
    assert judge(nodes({"details.lock": LOCK}), replace(PLAN, holder=other, alive=("78:1",)), now=200.0) == ()
    assert judge(nodes({"details.lock": LOCK}), PLAN, now=2000.0) == ()
    assert judge(nodes({"details.lock": {"odd": 1}}), PLAN) == ()


def test_clocks_that_may_agree_are_not_blamed() -> None:
    # A slow connection makes the bounds wide; it proves nothing.
    assert judge(nodes({"clock": {"least_s": -9.0, "most_s": 9.0}}), PLAN) == ()
    # All clocks off the controller's in the same way agree with each other.
    assert judge([node(n, {"clock": {"least_s": 50.0, "most_s": 51.0}}) for n in (1, 2, 3)], PLAN) == ()


def test_checkpoint_and_plan() -> None:
    found = judge(
        nodes(None, checkpoint="/srv/base has no config.json"), replace(PLAN, refusal="It needs 5 bytes more.")
    )
    assert [(finding.id, finding.node) for finding in found] == [("checkpoint", "spark2"), ("plan.refused", "")]


def test_the_table_has_errors_first_and_names_nodes_once() -> None:
    everywhere = [node(number, {"details.clock_synchronized": False}) for number in (1, 3)]
    found = judge([everywhere[0], node(2, {"disk_free_bytes": 0, "details.uptime_s": 9.0}), everywhere[1]], PLAN)
    lines = table(found)
    assert [line.split()[0] for line in lines] == ["ERROR", "WARNING", "INFO", "errors:"]
    assert "  spark1, spark3  No time service" in lines[2]
    assert lines[3] == "errors: 1 errors, 1 warnings, 2 remarks"
    assert [finding.node for finding in merged(found)] == ["spark2", "spark2", "spark1, spark3"]
    assert (status(found), status(found[1:]), status(found[2:])) == ("errors", "warnings", "ok")


def test_what_is_accepted_is_information() -> None:
    found = judge(nodes({"details.kernel": "6.8.0-51-generic"}), PLAN)
    assert status(found) == "errors"
    softened = accept(found, ["kernel.unknown", "kernel.mixed"])
    assert status(softened) == "ok"
    assert all(finding.fix.startswith("Accepted by preflight_accept. ") for finding in softened)
    with pytest.raises(ValueError, match=r"^preflight_accept names kernel; the ids are boot\.long, "):
        accept(found, ["kernel"])


def test_a_finding_in_one_sentence() -> None:
    finding = Finding("disk.free", "error", "spark2", "1 GiB free", "5 GiB", "Free some.")
    assert finding.sentence == "spark2: 1 GiB free. Needed: 5 GiB. Free some. (disk.free)"
