# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every process of the rig on every node has the planned environment, key by key, and nothing that nobody planned."""

from __future__ import annotations

import re
import typing as t
from pathlib import Path

import pytest
import yaml

from lab.hosts import HOSTS, NODES, Host, environment
from lab.processes import UNITS, Process, rig_processes

PROJECT = Path(__file__).parents[3]
PROFILE = yaml.safe_load((PROJECT / "roles/profile/vars/lab_cpu.yml").read_text(encoding="utf-8"))["profile_content"]
HEAD = NODES[0].name
# Written when the unit starts, because the index of a GID moves; in the lab there is none.
AT_START = "/run/sparkrig/gid.env"
SECRETS = {"RAY_AUTH_TOKEN", "VLLM_API_KEY"}

# What is added on the way, by whom. None of it says how the rig serves.
SYSTEMD = {"HOME", "INVOCATION_ID", "JOURNAL_STREAM", "LANG", "LOGNAME", "PATH", "RUNTIME_DIRECTORY", "SHELL"}
SYSTEMD |= {"SPARKRIG_STAMP", "STATE_DIRECTORY", "SYSTEMD_EXEC_PID", "USER"}
RAY = {"LD_LIBRARY_PATH", "PWD", "PYTHONBREAKPOINT", "RAY_JOB_ID", "RAY_LD_PRELOAD_ON_WORKERS", "RAY_NODE_ID"}
RAY |= {"CUDA_VISIBLE_DEVICES", "RAY_RAYLET_PID", "RAY_enable_pipe_based_agent_to_parent_health_check"}
VLLM = {"AITER_SITUV2_A4W4", "LD_PRELOAD", "LOCAL_WORLD_SIZE", "NUMEXPR_MAX_THREADS", "PYTORCH_NVML_BASED_CUDA_CHECK"}
VLLM |= {"RAY_CLIENT_MODE", "TILELANG_CLEANUP_TEMP_FILES", "TORCHINDUCTOR_CACHE_DIR", "TORCHINDUCTOR_COMPILE_THREADS"}
VLLM |= {"TORCHINDUCTOR_CPP_DYNAMIC_THREADS", "TRITON_CACHE_AUTOTUNING", "VLLM_DISABLE_SHARED_EXPERTS_STREAM"}
VLLM |= {"VLLM_DIST_IDENT", "VLLM_WORKER_MULTIPROC_METHOD"}


@pytest.fixture(scope="module", name="running")
def processes_by_node() -> dict[str, list[Process]]:
    """What the rig runs on each node."""
    return {name: rig_processes(host) for name, host in HOSTS.items()}


def files_of(host: Host, unit: str) -> list[str]:
    """The environment files of a unit, in their order."""
    shown = host.check_output("systemctl show --property=EnvironmentFiles --value %s", unit)
    return re.findall(r"^(\S+) \(ignore_errors", shown, re.MULTILINE)


def plan_of(host: Host, unit: str) -> dict[str, str]:
    """What the files of the unit say; the last word counts."""
    plan: dict[str, str] = {}
    for path in files_of(host, unit):
        if host.file(path).exists:
            plan |= environment(host, path)
    return plan


def units_of(running: list[Process]) -> list[str]:
    return [unit for unit in UNITS if any(process.unit == unit for process in running)]


def test_every_node_runs_what_the_executor_needs(running: dict[str, list[Process]], executor: str) -> None:
    for name, found in running.items():
        ours = ["sparkrig-ray.service"] if executor == "ray" else []
        engine = ["sparkrig-vllm.service"] if executor == "mp" or name == HEAD else []
        assert units_of(found) == ours + engine, name
        ranks = [process for process in found if re.search(r"RayWorkerProc|VLLM::Worker", process.command)]
        assert len(ranks) == 1, name


def test_environment_comes_from_files_only(running: dict[str, list[Process]]) -> None:
    for name, found in running.items():
        for unit in units_of(found):
            paths = files_of(HOSTS[name], unit)
            assert {path for path in paths if not re.fullmatch(r"/etc/sparkrig/[a-z-]+\.env", path)} <= {AT_START}
            # The stamp says what the unit was made from, and the home belongs to the user that it runs as.
            said = HOSTS[name].check_output("systemctl show --property=Environment --value %s", unit)
            assert {word.split("=")[0] for word in said.split()} <= {"HOME", "SPARKRIG_STAMP"}, (name, unit)


def test_the_files_say_what_was_planned() -> None:
    for node in NODES:
        host = HOSTS[node.name]
        assert environment(host, "/etc/sparkrig/runtime.env") == PROFILE["environment"]
        fabric = environment(host, "/etc/sparkrig/fabric.env")
        rail = host.check_output("ip -4 -o address show dev %s", fabric["GLOO_SOCKET_IFNAME"])
        own = rail.split()[3].split("/")[0]
        assert (fabric["VLLM_HOST_IP"], fabric["HOST_IP"]) == (own, own)


def test_every_process_has_every_planned_variable(running: dict[str, list[Process]]) -> None:
    wrong = []
    for name, found in running.items():
        for unit in units_of(found):
            plan = plan_of(HOSTS[name], unit)
            assert plan
            for process in (process for process in found if process.unit == unit):
                for key, value in plan.items():
                    seen = process.environment.get(key)
                    if seen != value:
                        shown = "another secret" if key in SECRETS else repr(seen)
                        wrong.append(f"{name} {process.pid} {process.command[:40]}: {key} is {shown}")
    assert wrong == []


def test_no_process_has_a_variable_that_nobody_planned(running: dict[str, list[Process]]) -> None:
    # The driver hands its own environment to the ranks on all nodes.
    driver = plan_of(HOSTS[HEAD], "sparkrig-vllm.service")
    wrong = set()
    for name, found in running.items():
        for unit in units_of(found):
            known = plan_of(HOSTS[name], unit).keys() | SYSTEMD | RAY | VLLM
            for process in (process for process in found if process.unit == unit):
                for key in process.environment.keys() - known:
                    if process.environment[key] != driver.get(key) or key in SECRETS:
                        wrong.add(f"{name} {process.command[:40]}: {key}={process.environment[key]}")
    assert sorted(wrong) == []


def test_secrets_are_where_they_belong(running: dict[str, list[Process]], executor: str) -> None:
    tokens = {process.environment.get("RAY_AUTH_TOKEN") for found in running.values() for process in found}
    assert len(tokens) == 1
    assert (tokens == {None}) == (executor == "mp")
    for name, host in HOSTS.items():
        keys = {process.unit for process in running[name] if "VLLM_API_KEY" in process.environment}
        assert keys == ({"sparkrig-vllm.service"} if name == HEAD else set())
        for secret in tokens - {None}:
            assert host.file("/etc/sparkrig/ray-token.env").mode == 0o600
            assert t.cast("str", secret) not in host.check_output("ps -eo args")
