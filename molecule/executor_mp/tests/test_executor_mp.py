# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The same profile without Ray: vLLM's own multi-node executor, one unit on every node."""

from __future__ import annotations

import subprocess
import sys
import time
import typing as t
from pathlib import Path

import pytest

from lab.hosts import HOSTS, NODES
from lab.play import play
from lab.processes import rig_processes

PROJECT = Path(__file__).parents[3]
SAME_TESTS = [f"molecule/default/tests/{name}.py" for name in ("test_serving", "test_environment")]
MP = {"serving_overrides": {"distributed_executor_backend": "mp"}}
# MiB by node, by executor.
Memory = dict[str, dict[str, float]]
HEAD = HOSTS[NODES[0].name]
UNIT = "sparkrig-vllm.service"
# A Ray of somebody else, as `ray stop` knows one: by the name of its process.
STRANGER = "/var/tmp/raylet"
STRANGER_UNIT = "test-stranger.service"


def held_mib() -> dict[str, float]:
    """PSS of everything that the rig runs, by node."""
    return {
        name: round(sum(process.pss_bytes for process in rig_processes(host)) / 2**20, 1)
        for name, host in HOSTS.items()
    }


def pass_the_same_tests() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *SAME_TESTS]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.fixture(scope="module", name="memory")
def switched(request: pytest.FixtureRequest) -> t.Iterator[Memory]:
    """The lab with the executor mp, and what Ray and mp held; Ray is back at the end."""
    outcome = play("sparkrig.serving.verify")
    assert outcome.code == 0, outcome.text
    memory = {"ray": held_mib()}
    node = HOSTS[NODES[1].name]
    node.check_output(f"cp /bin/sleep {STRANGER} && systemd-run --quiet --unit={STRANGER_UNIT} {STRANGER} infinity")
    outcome = play("sparkrig.serving.site", MP)
    assert outcome.code == 0, outcome.text
    time.sleep(5)
    memory["mp"] = held_mib()
    yield memory
    node.check_output(f"systemctl stop {STRANGER_UNIT} && rm {STRANGER}")
    outcome = play("sparkrig.serving.site")
    assert outcome.code == 0, outcome.text
    pass_the_same_tests()


def test_mp_passes_what_ray_passes(memory: Memory) -> None:
    pass_the_same_tests()
    for name, host in HOSTS.items():
        assert not host.file("/etc/systemd/system/sparkrig-ray.service").exists, name
        assert {process.unit for process in rig_processes(host)} == {UNIT}


def test_the_ray_of_somebody_else_lives_on(memory: Memory) -> None:
    """Ours is gone from this node; units end their own processes and nobody calls `ray stop`."""
    assert HOSTS[NODES[1].name].service(STRANGER_UNIT).is_running


def test_the_memory_that_ray_held_is_told(
    memory: dict[str, dict[str, float]], capsys: pytest.CaptureFixture[str]
) -> None:
    """What mp needs instead is its own supervisor on every node, so the sums are compared and not the parts."""
    with capsys.disabled():
        for name in HOSTS:
            ray, mp = memory["ray"][name], memory["mp"][name]
            print(f"\n{name}: {ray:.1f} MiB with Ray, {mp:.1f} MiB with mp, {ray - mp:+.1f} MiB given back", end="")
    assert all(value > 0 for held in memory.values() for value in held.values())


def test_running_again_changes_nothing_and_verify_and_status_know_it(memory: Memory) -> None:
    outcome = play("sparkrig.serving.site", MP)
    assert outcome.code == 0, outcome.text
    assert outcome.changed == 0, outcome.text
    outcome = play("sparkrig.serving.verify", MP)
    assert "4 ranks are connected to 10.98.1.11:29501, each from its own rail address" in " ".join(outcome.text.split())
    outcome = play("sparkrig.serving.status", MP)
    assert outcome.code == 0, outcome.text


def test_the_ranks_end_together(memory: Memory) -> None:
    """Without a controller: the head's unit alone is stopped, and no node keeps an engine in its memory."""
    HEAD.check_output("systemctl stop %s", UNIT)
    deadline = time.monotonic() + 30
    while any(process.pss_bytes > 64 * 2**20 for host in HOSTS.values() for process in rig_processes(host)):
        assert time.monotonic() < deadline, [rig_processes(host) for host in HOSTS.values()]
        time.sleep(1)
    # The others wait for the next head.
    for node in NODES[1:]:
        assert HOSTS[node.name].service(UNIT).is_running
    outcome = play("sparkrig.serving.stop", MP)
    assert outcome.code == 0, outcome.text
    assert [rig_processes(host) for host in HOSTS.values()] == [[], [], [], []]
