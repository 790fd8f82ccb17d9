# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The program before every start of a service, in this process and as it lies on a node, without Ansible."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import typing as t
from pathlib import Path

import pytest

from ansible_collections.sparkrig.serving.plugins.module_utils import _fabric_start
from tests.fixtures.sysfs_tree import plant

A, B = "enp1s0f0np0", "enP2p1s0f0np0"
UTILS = Path(__file__).parents[2] / "plugins" / "module_utils"
GOOD = {"NCCL_IB_DISABLE": "0", "NCCL_SOCKET_IFNAME": "lo", "VLLM_HOST_IP": "127.0.0.1"}


@pytest.fixture
def config(tmp_path: Path) -> dict[str, t.Any]:
    return {
        "rails": {A: "192.168.100.1"},
        "gid_policy": "always",
        "gid_file": str(tmp_path / "run" / "gid.env"),
        "nccl_log_folder": str(tmp_path / "run" / "nccl"),
        "sys_root": plant(tmp_path / "sys", "two_ports"),
        "wait_s": 0,
    }


def test_the_index_follows_the_table_of_this_boot(config: dict[str, t.Any], tmp_path: Path) -> None:
    assert _fabric_start.start(config, GOOD)[-1] == "NCCL_IB_GID_INDEX is 3"
    gid_file = Path(config["gid_file"])
    assert gid_file.read_text().endswith("\nNCCL_IB_GID_INDEX=3\n")
    assert Path(config["nccl_log_folder"]).is_dir()
    # systemd hands this program what it wrote the time before; that is no value of somebody else.
    port = "class/infiniband/mlx5_0/ports/1"
    moved: dict[str, str | None] = {f"{port}/gids/3": "::", f"{port}/gids/7": "0000:0000:0000:0000:0000:ffff:c0a8:6401"}
    plant(tmp_path / "sys", "two_ports", {**moved, f"{port}/gid_attrs/types/7": "RoCE v2"})
    assert _fabric_start.start(config, {**GOOD, "NCCL_IB_GID_INDEX": "3"})[-1] == "NCCL_IB_GID_INDEX is 7"
    with pytest.raises(ValueError, match="The environment of this service takes RoCE away: NCCL_IB_GID_INDEX is '3'"):
        _fabric_start.start(config, {**GOOD, "NCCL_IB_GID_INDEX": "3"})
    config["gid_policy"] = "auto"
    assert _fabric_start.start(config, GOOD)[-1] == "NCCL_IB_GID_INDEX is left unset"
    assert "GID" not in gid_file.read_text()


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"NCCL_IB_DISABLE": "1"}, "NCCL_IB_DISABLE is '1'; it must stay '0'"),
        ({"NCCL_IB_GID_INDEX": ""}, "NCCL_IB_GID_INDEX is ''; the right index differs"),
        ({"GLOO_SOCKET_IFNAME": "enp77s0"}, "this node has no interface enp77s0"),
        ({"NCCL_IB_HCA": "=mlx5_0,mlx5_7"}, "this node has no RDMA device mlx5_7 (it has mlx5_0, mlx5_1)"),
    ],
)
def test_a_service_that_takes_roce_away_does_not_start(
    config: dict[str, t.Any], environment: dict[str, str], said: str
) -> None:
    with pytest.raises(ValueError) as caught:
        _fabric_start.start(config, {**GOOD, **environment})
    assert said in str(caught.value)
    assert not Path(config["gid_file"]).exists()


def test_an_address_that_does_not_come_up(config: dict[str, t.Any]) -> None:
    with pytest.raises(ValueError, match="VLLM_HOST_IP is '192.0.2.7', which no interface of this node has, after 0 s"):
        _fabric_start.start(config, {**GOOD, "VLLM_HOST_IP": "192.0.2.7"})
    config["rails"] = {A: "10.1.1.1"}
    with pytest.raises(ValueError, match="mlx5_0 port 1 has no RoCE v2 GID for 10.1.1.1 .* run role fabric here"):
        _fabric_start.start(config, GOOD)


def test_an_address_that_comes_up_late(config: dict[str, t.Any], monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([False, False, True])
    monkeypatch.setattr(_fabric_start, "has_address", lambda _address: next(answers))
    monkeypatch.setattr("time.sleep", lambda _seconds: None)
    config["wait_s"] = 30
    assert _fabric_start.start(config, GOOD)


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """The program as it lies on a node."""
    package = tmp_path / "node" / _fabric_start.PACKAGE
    package.mkdir(parents=True)
    for part in _fabric_start.PARTS:
        shutil.copy(UTILS / f"{part}.py", package)
    path = package.parent / "fabric"
    path.write_text(_fabric_start.MAIN)
    return path


def call(program: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", "-B", "-c", f"import sys; sys.path.insert(0, {str(program.parent)!r})"]
    # -I keeps the collection out of reach: the copy has to stand alone.
    command[-1] += f"; sys.argv = {['fabric', *arguments]!r}; exec(open({str(program)!r}).read())"
    clean = {"PATH": os.environ["PATH"], **environment}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=clean)


def test_the_copy_on_a_node_stands_alone(program: Path, config: dict[str, t.Any], tmp_path: Path) -> None:
    path = tmp_path / "fabric.json"
    path.write_text(json.dumps(config))
    good = call(program, "start", str(path), **GOOD)
    assert (good.returncode, good.stdout.splitlines()[-1]) == (0, "sparkrig: NCCL_IB_GID_INDEX is 3"), good.stderr
    bad = call(program, "start", str(path), **{**GOOD, "NCCL_IB_DISABLE": "1"})
    assert bad.returncode == 1
    assert bad.stderr.startswith("sparkrig: The environment of this service takes RoCE away: NCCL_IB_DISABLE is '1'")
    none = call(program, "undo", str(tmp_path / "absent.json"))
    assert (none.returncode, none.stdout) == (0, "sparkrig: No change is pending; nothing to undo.\n")
    assert call(program, "help").returncode == 1
    assert sorted(path.name for path in program.parent.iterdir()) == ["fabric", _fabric_start.PACKAGE]


def test_every_part_that_the_program_imports_is_copied() -> None:
    for part in _fabric_start.PARTS:
        text = (UTILS / f"{part}.py").read_text(encoding="utf-8")
        assert "ansible" not in "\n".join(line for line in text.splitlines() if line.startswith(("import ", "from ")))
