# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""node_memory_info and node_memory on recorded /proc and /sys."""

from __future__ import annotations

import json
import os
import re
import shutil
import types
import typing as t
from pathlib import Path

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testing import patch_module_args

from ansible_collections.sparkrig.serving.plugins.module_utils import _memory, _memory_probe
from ansible_collections.sparkrig.serving.plugins.modules import node_memory, node_memory_info

RECORDED = Path(__file__).parents[1] / "fixtures/proc"
MIB = 2**20
GIB = 2**30
SWAPS = (
    "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"
    "/swap\\040file                           file\t\t16777212\t1048576\t\t-2\n"
    "/dev/zram0                              partition\t4194304\t\t0\t\t100\n"
    "/dev/nvme0n1p3                          partition\t8388604\t\t524288\t\t5\n"
)


class Machine:
    """A copy of a recording that a test may change; commands are remembered."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.commands: list[list[str]] = []
        self.rc: dict[str, int] = {}

    def write(self, path: str, text: str) -> None:
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)

    def run_command(self, argv: list[str]) -> tuple[int, str, str]:
        self.commands.append(argv)
        rc = self.rc.get(Path(argv[0]).name, 0)
        return rc, "", "swapon: it is busy\n" if rc else ""


def use(recording: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    folder = tmp_path / "machine"
    shutil.copytree(RECORDED / recording, folder)
    monkeypatch.setattr(_memory_probe, "PROC", str(folder / "proc"))
    monkeypatch.setattr(_memory_probe, "SYS", str(folder / "sys"))
    monkeypatch.setattr(_memory_probe, "RUN", str(folder / "run"))
    # The disks of this machine are no part of these tests.
    monkeypatch.setattr(os, "sync", lambda: None)
    machine = Machine(folder)
    monkeypatch.setattr(AnsibleModule, "run_command", lambda _module, argv, **_more: machine.run_command(argv))
    monkeypatch.setattr(AnsibleModule, "get_bin_path", lambda _module, name, **_more: f"/usr/sbin/{name}")
    return machine


@pytest.fixture
def lab(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    """A lab node: a container with cgroup v1 and no swap."""
    return use("lab", monkeypatch, tmp_path)


@pytest.fixture
def spark(lab: Machine) -> Machine:
    """A Spark, as far as its figures are known."""
    lab.write("proc/meminfo", (RECORDED / "spark.meminfo").read_text())
    shutil.rmtree(lab.folder / "run")
    shutil.rmtree(lab.folder / "sys/fs")
    lab.write("sys/fs/cgroup/cgroup.controllers", "cpuset cpu io memory\n")
    lab.write("proc/driver/nvidia/gpus/000f:01:00.0/information", "Model: \t\t NVIDIA GB10\nIRQ:   \t\t 41\n")
    return lab


def run(module: types.ModuleType, capsys: pytest.CaptureFixture[str], **arguments: t.Any) -> dict[str, t.Any]:
    with patch_module_args(arguments), pytest.raises(SystemExit):
        module.main()
    result: dict[str, t.Any] = json.loads(capsys.readouterr().out)
    return result


def test_a_container_has_what_its_limit_leaves(lab: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    result = run(node_memory_info, capsys)
    memory = result["memory"]
    group = memory["cgroup"]
    assert lab.commands == []
    assert (result["changed"], result["probe"], result["evidence"], result["unreadable_processes"]) == (
        False,
        None,
        None,
        0,
    )
    assert memory["total_bytes"] == 24684096 * 1024
    assert memory["available_bytes"] == 17513832 * 1024
    assert (group["version"], group["limit_bytes"]) == (1, 4 * GIB)
    assert memory["rank"]["available_bytes"] == 4 * GIB - group["usage_bytes"] + group["reclaimable_bytes"]
    assert (memory["rank"]["total_bytes"], memory["rank"]["limited_by"]) == (4 * GIB, "cgroup")
    assert memory["rank"]["cuda_free_bytes"] is None
    assert re.fullmatch(
        r"A rank can have 3\.\d\d GiB \(the control group's limit of 4\.00 GiB less what is used of it\)\.",
        memory["rank"]["sentence"],
    )
    assert (memory["gpu_memory"], memory["swaps"], memory["swappiness"]) == ("none", [], 60)
    assert [node["index"] for node in memory["numa"]] == [0]
    assert memory["numa"][0]["total_bytes"] == 24684096 * 1024
    assert memory["hugepages"] == [
        {"page_bytes": 2 * MIB, "total": 0, "free": 0},
        {"page_bytes": GIB, "total": 0, "free": 0},
    ]


def test_memory_by_unit(lab: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    units = {unit["unit"]: unit for unit in run(node_memory_info, capsys)["memory"]["units"]}
    assert set(units) == {
        "init.scope",
        "cups.service",
        "NetworkManager.service",
        "pipewire.service (user 1000)",
        "wireplumber.service (user 1000)",
    }
    assert (units["init.scope"]["major_faults"], units["init.scope"]["processes"]) == (3, 1)
    pss = re.search(r"^Pss:\s+(\d+) kB", (RECORDED / "lab/proc/55/smaps_rollup").read_text(), re.MULTILINE)
    assert pss is not None
    assert units["NetworkManager.service"]["pss_bytes"] == int(pss.group(1)) * 1024
    assert run(node_memory_info, capsys, units=False)["memory"]["units"] == []


def test_cgroup_v2(lab: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(lab.folder / "sys/fs")
    lab.write("sys/fs/cgroup/cgroup.controllers", "cpuset cpu io memory\n")
    lab.write("sys/fs/cgroup/memory.max", "3221225472\n")
    lab.write("sys/fs/cgroup/memory.current", "1073741824\n")
    lab.write("sys/fs/cgroup/memory.stat", "anon 5\ninactive_file 1048576\nactive_file 1048576\n")
    memory = run(node_memory_info, capsys)["memory"]
    assert memory["cgroup"] == {
        "version": 2,
        "limit_bytes": 3 * GIB,
        "usage_bytes": GIB,
        "reclaimable_bytes": 2 * MIB,
    }
    assert memory["rank"]["available_bytes"] == 2 * GIB + 2 * MIB
    shutil.rmtree(lab.folder / "sys/fs")
    assert run(node_memory_info, capsys)["memory"]["cgroup"]["version"] == 0


def test_a_machine_with_a_gpu_of_its_own_memory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    use("h100", monkeypatch, tmp_path)
    memory = run(node_memory_info, capsys)["memory"]
    assert (memory["gpu_memory"], memory["rank"]["cuda_free_bytes"]) == ("discrete", None)
    assert memory["rank"]["limited_by"] == "machine"
    assert memory["swappiness"] is None


def test_unified_memory(spark: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    memory = run(node_memory_info, capsys)["memory"]
    assert memory["gpu_memory"] == "unified"
    # MemFree is more than MemAvailable there: a rank cannot have more than is available.
    assert memory["rank"]["cuda_free_bytes"] == memory["available_bytes"] == 123345084 * 1024
    assert memory["rank"]["sentence"] == "A rank can have 117.63 GiB (MemAvailable)."
    spark.write("proc/meminfo", (RECORDED / "spark.meminfo").read_text().replace("124052532", "62026266"))
    assert run(node_memory_info, capsys)["memory"]["rank"]["sentence"] == (
        "A rank can have 117.63 GiB (MemAvailable). CUDA sees only 59.15 GiB of it as free until the page cache is "
        "dropped."
    )


def test_a_process_of_somebody_else_is_counted(lab: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    (lab.folder / "proc/55/smaps_rollup").unlink()
    # A kernel thread has no memory; it is not one that could not be read.
    lab.write("proc/2/stat", "2 (kthreadd) S 0 0 0 0 -1 2129984 0 0 0 0 0\n")
    lab.write("proc/2/statm", "0 0 0 0 0 0 0\n")
    assert run(node_memory_info, capsys)["unreadable_processes"] == 1


def test_a_probe_counts_what_happens_in_between(
    spark: Machine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spark.write("proc/vmstat", "pgmajfault 0\npswpin 0\npswpout 0\n")

    def decode(seconds: float) -> None:
        assert seconds == 10
        spark.write("proc/vmstat", (RECORDED / "spark.vmstat.before").read_text())
        stat = (spark.folder / "proc/55/stat").read_text()
        spark.write("proc/55/stat", stat.replace(" 1350 0 1 0 ", " 1350 0 1637 0 "))

    plain = _memory_probe.watch
    monkeypatch.setattr(_memory_probe, "watch", lambda seconds: plain(seconds, decode))
    before = run(node_memory_info, capsys, interval_s=10)
    assert before["probe"]["counters"] == {
        "pswpin": 0,
        "pswpout": 81524,
        "pgmajfault": 1636,
        "pgfault": 0,
        "oom_kill": 0,
    }
    assert before["probe"]["faults_by_unit"] == {"NetworkManager.service": 1636}

    def quiet(_seconds: float) -> None:
        spark.write("proc/vmstat", "pgmajfault 1662\npswpin 0\npswpout 81524\n")

    spark.write("proc/vmstat", (RECORDED / "spark.vmstat.before").read_text())
    shutil.rmtree(spark.folder / "proc/1253")
    monkeypatch.setattr(_memory_probe, "watch", lambda seconds: plain(seconds, quiet))
    after = run(node_memory_info, capsys, interval_s=10, before=before)
    evidence = after["evidence"]
    assert evidence["units"][0]["unit"] == "cups.service"
    assert evidence["freed_bytes"] == evidence["units"][0]["before_bytes"] > MIB
    assert [re.sub(r"in \S+ s", "in 10 s", line) for line in evidence["lines"]] == [
        f"cups.service: {evidence['freed_bytes'] / MIB:.1f} MiB before, 0.0 MiB after.",
        f"Units that ended held {evidence['freed_bytes'] / MIB:.1f} MiB (PSS and swap) together.",
        "MemAvailable: 117.63 GiB before, 117.63 GiB after.",
        "Swap in use: 0.00 GiB before, 0.00 GiB after.",
        "Pages swapped out: 81524 in 10 s before, 0 in 10 s after.",
        "Pages swapped in: 0 in 10 s before, 0 in 10 s after.",
        "Major faults: 1636 in 10 s before, 26 in 10 s after.",
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"interval_s": -1}, "interval_s is -1; it is a number of seconds, 0 or more."),
        (
            {"before": {"memory": {"units": []}}},
            "The memory of this node cannot be told: before is not what node_memory_info returns as 'memory': it lacks "
            "available_bytes, swap_used_bytes, counters. Hand over the whole of it.",
        ),
    ],
)
def test_bad_input(lab: Machine, capsys: pytest.CaptureFixture[str], arguments: dict[str, t.Any], said: str) -> None:
    assert run(node_memory_info, capsys, **arguments)["msg"] == said


def test_an_odd_meminfo_is_an_error(lab: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    lab.write("proc/meminfo", "nonsense\n")
    assert run(node_memory_info, capsys)["msg"] == (
        "The memory of this node cannot be told: /proc/meminfo has no MemTotal: 'nonsense\\n'"
    )
    with pytest.raises(ValueError, match=r"^the meminfo of NUMA node 1 has no MemTotal or MemFree: 'x'$"):
        _memory.parse_numa(1, "x")


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        ("0::/system.slice/ssh.service\n", "ssh.service"),
        ("0::/system.slice/docker-0123.scope/payload\n", "docker-0123.scope"),
        ("0::/user.slice/user-1000.slice/user@1000.service/init.scope\n", "init.scope (user 1000)"),
        ("4:memory:/process_api/1\n9:name=systemd:/system.slice/cups.service\n0::/x\n", "cups.service"),
        ("0::/\n", ""),
        ("", ""),
    ],
)
def test_the_unit_of_a_process(text: str, unit: str) -> None:
    assert _memory.unit_of(text) == unit


# --- node_memory ------------------------------------------------------------------------------------------------


def test_a_container_leaves_its_hosts_memory_alone(lab: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    result = run(node_memory, capsys, drain_swap=True, drop_page_cache=True)
    assert result["changed"] is False
    assert result["actions"] == [
        f"This node is a container (podman): its {what} is its host's, and is left alone. shared_kernel: true acts on "
        "it all the same."
        for what in ("swap", "page cache")
    ]
    assert lab.commands == []


def test_no_swap_is_said(spark: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    result = run(node_memory, capsys, drain_swap=True)
    assert (result["changed"], result["actions"]) == (False, ["This node has no swap; there is nothing to drain."])
    spark.write("proc/swaps", "Filename Type Size Used Priority\n/swap file 1024 0 -2\n")
    assert run(node_memory, capsys, drain_swap=True)["actions"] == ["The swap is empty already; it stays on."]
    assert spark.commands == []


def test_only_swap_that_holds_something_is_drained(spark: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    spark.write("proc/swaps", SWAPS)
    sentence = "The swap's 1.50 GiB on /swap file, /dev/nvme0n1p3 are taken back into memory; the swap stays on."
    predicted = run(node_memory, capsys, drain_swap=True, _ansible_check_mode=True)
    assert (predicted["changed"], predicted["actions"], spark.commands) == (True, [sentence], [])
    result = run(node_memory, capsys, drain_swap=True)
    assert (result["changed"], result["actions"]) == (True, [sentence])
    assert spark.commands == [
        ["/usr/sbin/swapoff", "/swap file"],
        ["/usr/sbin/swapon", "/swap file"],
        ["/usr/sbin/swapoff", "/dev/nvme0n1p3"],
        ["/usr/sbin/swapon", "--priority", "5", "/dev/nvme0n1p3"],
    ]


def test_swap_that_memory_cannot_take_in_stays(spark: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    spark.write("proc/swaps", SWAPS)
    meminfo = (RECORDED / "spark.meminfo").read_text().replace("123345084", "2097152")
    spark.write("proc/meminfo", meminfo)
    result = run(node_memory, capsys, drain_swap=True)
    assert result["changed"] is False
    sentence = (
        "The swap holds 1.50 GiB, but only 2.00 GiB of memory are available, and 1.00 GiB stay free: it is not "
        "drained. End what was swapped out, then run this again."
    )
    assert result["actions"] == [sentence]
    assert sentence in json.dumps(result["warnings"])
    assert spark.commands == []


def test_a_swap_that_does_not_come_back_is_an_error(spark: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    spark.write("proc/swaps", SWAPS)
    spark.rc["swapon"] = 255
    assert run(node_memory, capsys, drain_swap=True)["msg"] == (
        "'/usr/sbin/swapon /swap file' failed (swapon: it is busy, exit 255). See /proc/swaps on the node; "
        "`swapon /swap file` switches it on again."
    )


CACHE = "Cached:         41943040 kB\n"


def test_the_page_cache_is_dropped(spark: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(node_memory, capsys, drop_page_cache=True)["actions"] == ["The page cache is only 0.00 GiB; it stays."]
    spark.write("proc/meminfo", (RECORDED / "spark.meminfo").read_text() + CACHE)
    predicted = run(node_memory, capsys, drop_page_cache=True, _ansible_check_mode=True)
    assert (predicted["changed"], predicted["actions"]) == (True, ["The page cache of 40.00 GiB would be dropped."])
    assert not (spark.folder / "proc/sys/vm/drop_caches").exists()
    result = run(node_memory, capsys, drop_page_cache=True)
    assert result["actions"] == ["The page cache of 40.00 GiB was dropped; 118.31 GiB of memory are free."]
    assert (result["free_bytes"], result["swap_used_bytes"]) == (124052532 * 1024, 0)
    assert (spark.folder / "proc/sys/vm/drop_caches").read_text() == "3\n"


def test_a_read_only_proc_is_said(spark: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    spark.write("proc/meminfo", (RECORDED / "spark.meminfo").read_text() + CACHE)
    (spark.folder / "proc/sys/vm/drop_caches").mkdir()
    result = run(node_memory, capsys, drop_page_cache=True)
    assert result["changed"] is False
    assert result["actions"] == ["The page cache of 40.00 GiB stays: /proc/sys is not writable (Is a directory)."]
