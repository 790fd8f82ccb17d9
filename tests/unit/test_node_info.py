# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module node_info on this machine, and its full look at a recorded DGX Spark."""

from __future__ import annotations

import json
import socket
import threading
import types
import typing as t
from pathlib import Path

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testing import patch_module_args

from ansible_collections.sparkrig.serving.plugins.action.node_info import bounds
from ansible_collections.sparkrig.serving.plugins.filter import preflight
from ansible_collections.sparkrig.serving.plugins.module_utils import _memory_probe, _preflight_probe
from ansible_collections.sparkrig.serving.plugins.modules import node_info

GB10 = (Path(__file__).parents[1] / "fixtures/gpu/gb10.xml").read_text(encoding="utf-8")
MEMINFO = "MemTotal: 125000000 kB\nMemFree: 1000000 kB\nMemAvailable: 120000000 kB\nCached: 9000000 kB\nShmem: 0 kB\n"


def call(capsys: pytest.CaptureFixture[str], **options: t.Any) -> dict[str, t.Any]:
    with patch_module_args(options), pytest.raises(SystemExit):
        node_info.main()
    result: dict[str, t.Any] = json.loads(capsys.readouterr().out)
    return result


@pytest.fixture
def spark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root file system with what matters of a Spark; its commands answer from recordings."""
    files = {
        "etc/dgx-release": 'DGX_SWBUILD_VERSION="7.2.3"\n',
        "proc/meminfo": MEMINFO,
        "proc/uptime": "4000.5 1.0\n",
        "proc/1/cgroup": "0::/init.scope\n",
        "proc/50/cgroup": "0::/system.slice/docker-0123456789abcdef.scope\n",
        "proc/50/smaps_rollup": "Pss_Anon: 1048576 kB\n",
        "proc/60/cmdline": "earlyoom\0-m\0004\0",
        "proc/60/stat": "60 (earlyoom) S",
        "proc/60/cgroup": "0::/system.slice/earlyoom.service\n",
        "proc/60/smaps_rollup": "Pss: 1024 kB\nSwapPss: 0 kB\n",
        "proc/70/stat": "70 (cupsd) S",
        "proc/70/cgroup": "0::/system.slice/cups.service\n",
        "proc/70/smaps_rollup": "Pss: 8192 kB\nSwapPss: 0 kB\n",
        "proc/driver/nvidia/gpus/000f:01:00.0/information": "Model: \t NVIDIA GB10\n",
        "run/reboot-required": "*** System restart required ***\n",
        "run/reboot-required.pkgs": "linux-image-nvidia\nlinux-base\nlinux-base\n",
        "run/sparkrig/launch.lock": '{"who": "ann"}\n',
        "sys/module/nvidia/version": "580.159.03\n",
        "lib/modules/9.9.0-1-nvidia/modules.dep": "kernel/drivers/net/x.ko:\n",
        "boot/vmlinuz-9.9.0-1-nvidia": "",
        "var/lib/dpkg/status": "Package: nvidia-container-toolkit\nStatus: install ok installed\nVersion: 1.18.0-1\n",
        "var/lib/docker/containers/0123456789abcdef/config.v2.json": '{"Name": "/old-vllm"}',
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    monkeypatch.setattr(_preflight_probe, "ROOT", str(tmp_path))
    monkeypatch.setattr(_memory_probe, "PROC", str(tmp_path / "proc"))
    monkeypatch.setattr(_memory_probe, "SYS", str(tmp_path / "sys"))
    monkeypatch.setattr(AnsibleModule, "get_bin_path", lambda _self, name, required=False: f"/usr/bin/{name}")
    return tmp_path


def test_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    result = call(capsys)
    node = result["node"]
    assert not result["changed"]
    assert "details" not in node
    assert node["memory_total_bytes"] > node["memory_available_bytes"] > 0
    assert node["clock"]["begin"] <= node["clock"]["end"]


def test_a_full_look_at_a_spark(
    spark: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands: list[list[str]] = []

    def run(_self: AnsibleModule, words: list[str], **_more: t.Any) -> tuple[int, str, str]:
        commands.append(words)
        if words[0].endswith("nvidia-smi"):
            return 0, GB10, ""
        states = {
            "earlyoom.service": "LoadState=loaded\nUnitFileState=enabled\nActiveState=active\nMainPID=60\n",
            "cups.service": "LoadState=loaded\nUnitFileState=enabled\nActiveState=active\nMainPID=70\n",
            "fwupd.service": "LoadState=masked\nUnitFileState=masked\nActiveState=inactive\nMainPID=0\n",
        }
        return 0, "\n".join(states[name] for name in words[words.index("--") + 1 :]), ""

    monkeypatch.setattr(AnsibleModule, "run_command", run)
    prune = ["cups.service", "fwupd.service", "getty@.service"]
    details = call(capsys, details=True, prune_units=prune)["node"]["details"]
    # One call each, however many units there are.
    assert [words[:2] for words in commands] == [["/usr/bin/systemctl", "show"], ["/usr/bin/nvidia-smi", "-q"]]
    assert details["dgx_os"] == "7.2.3"
    assert details["uptime_s"] == 4000.5
    assert details["reboot"] == {"required": True, "packages": ["linux-base", "linux-image-nvidia"]}
    assert details["next_kernel"] == {"release": "9.9.0-1-nvidia", "has_driver": False}
    assert details["packages"] == {"nvidia-container-toolkit": "1.18.0-1"}
    assert details["gpu"]["status"] == "ok"
    assert details["gpu"]["driver_version"].startswith("580.")
    assert details["memory"]["gpu_memory"] == "unified"
    assert details["memory"]["page_cache_bytes"] == 9000000 * 1024
    assert "units" not in details["memory"]
    assert details["prunable_units"] == ["cups.service"]
    assert details["prunable_bytes"] == 8192 * 1024
    assert details["earlyoom"] == {"term_percent": 4.0, "kill_percent": 2.0}
    assert details["containers"] == [
        {"engine": "docker", "id": "0123456789abcdef", "name": "old-vllm", "held_bytes": 2**30}
    ]
    assert details["lock"] == {"who": "ann"}
    assert details["peers"] == {}


def test_a_node_without_systemd_gpu_and_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text(MEMINFO)
    monkeypatch.setattr(_preflight_probe, "ROOT", str(tmp_path))
    monkeypatch.setattr(_memory_probe, "PROC", str(tmp_path / "proc"))
    monkeypatch.setattr(_memory_probe, "SYS", str(tmp_path / "sys"))
    monkeypatch.setattr(AnsibleModule, "get_bin_path", lambda _self, _name, required=False: None)
    details = call(capsys, details=True, prune_units=["cups.service"])["node"]["details"]
    assert details["gpu"]["status"] == "no_gpu"
    assert (details["lock"], details["earlyoom"], details["next_kernel"], details["containers"]) == (
        None,
        None,
        None,
        [],
    )
    assert details["prunable_units"] == []


def test_odd_memory_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_preflight_probe, "ROOT", str(tmp_path))
    monkeypatch.setattr(_memory_probe, "PROC", str(tmp_path))
    result = call(capsys, details=True)
    assert result["failed"]
    assert "cannot be looked at: /proc/meminfo has no MemTotal" in result["msg"]


def serve(answer: bytes) -> int:
    """A server on this machine that says *answer* to the first who comes; its port."""
    listener = socket.create_server(("127.0.0.1", 0))

    def talk() -> None:
        connection, _address = listener.accept()
        connection.sendall(answer)
        connection.close()
        listener.close()

    threading.Thread(target=talk, daemon=True).start()
    return int(listener.getsockname()[1])


def test_peers_are_asked_for_their_ssh_server() -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        closed = unused.getsockname()[1]
    addresses = {
        "good": f"127.0.0.1:{serve(b'SSH-2.0-OpenSSH_9.6')}",
        "odd": f"127.0.0.1:{serve(b'HTTP/1.1 400 Bad Request')}",
        "closed": f"127.0.0.1:{closed}",
    }
    assert _preflight_probe.peers(addresses) == {
        "good": "",
        "odd": "it is no SSH server",
        "closed": "connection refused",
    }


def test_the_clock_is_bounded_without_trusting_the_way() -> None:
    # The node is 10 s ahead; the way there took 0.3 s, the way back 0.5 s, the module 1 s.
    found = bounds(sent=100.0, received=101.8, begin=110.3, end=111.3)
    assert found == {"least_s": 9.5, "most_s": 10.3}
    assert found["least_s"] <= 10.0 <= found["most_s"]


HOSTVARS: dict[str, dict[str, t.Any]] = {
    "a": {"ansible_host": "10.0.0.1"},
    "b": {"ansible_host": "10.0.0.2", "ansible_port": 2222},
    "c": {"ansible_connection": "local"},
}


def test_peers_of_a_node() -> None:
    assert preflight.preflight_peers(["a", "b", "c"], HOSTVARS, "a") == {"b": "10.0.0.2:2222"}


PROFILE: dict[str, t.Any] = {
    "name": "tiny",
    "tensor_parallel_size": 1,
    "pipeline_parallel_size": 1,
    "requires": {"memory_total_bytes": 1, "disk_free_bytes": 1},
    "fit": {"device": "cpu"},
}


def test_findings_as_data_table_and_json() -> None:
    unreachable = {"unreachable": True, "msg": "Failed to connect to the host via ssh: ssh: no route to host"}
    hostvars = {"a": {"ansible_host": "10.0.0.1", "__preflight_node": unreachable}}
    found = preflight.preflight_findings(["a"], hostvars, PROFILE)
    assert (found["status"], found["counts"]) == ("errors", {"error": 1, "warning": 0, "info": 0})
    assert found["sentences"]["error"][0].startswith("a: a (10.0.0.1) was not reached: ")
    document = json.loads(found["document"])
    assert {key: document[key] for key in ("version", "status", "profile", "nodes")} == {
        "version": 1,
        "status": "errors",
        "profile": "tiny",
        "nodes": ["a"],
    }
    assert set(document["findings"][0]) == {"id", "severity", "node", "seen", "needed", "fix"}


def test_a_problem_that_only_follows_from_another_is_left_out() -> None:
    problems = {"a": "no config.json", "b": "'dict object' has no attribute 'digests'", "c": ""}
    assert preflight._checkpoints(problems) == {"a": "no config.json"}
    assert preflight._checkpoints({"b": "'x' is undefined"}) == {"b": "'x' is undefined"}


@pytest.mark.parametrize(
    ("active", "served"),
    [
        ("sparkrig-ray.service", True),
        # Without Ray.
        ("sparkrig-vllm.service", True),
        ("ssh.service", False),
    ],
)
def test_a_plan_is_served_while_a_unit_of_the_rig_is_active(tmp_path: Path, active: str, served: bool) -> None:
    plan = tmp_path / "plan.json"
    plan.write_bytes(b"{}")

    def systemctl(words: list[str]) -> tuple[int, str, str]:
        assert words[:3] == ["systemctl", "is-active", "--quiet"]
        return (0 if active in words[3:] else 3), "", ""

    params = {"plan": str(plan), "units": ["sparkrig-ray.service", "sparkrig-vllm.service"]}
    module = t.cast("AnsibleModule", types.SimpleNamespace(params=params, run_command=systemctl))
    assert bool(node_info.serving_plan(module)) is served
