# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ray on a lab that serves: its nodes, its processes, its secret, and faults that are refused with one sentence."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import typing as t
from collections.abc import Iterator

import pytest

from lab.hosts import HOSTS, NODES, environment
from lab.nodes import INVENTORY, PROJECT
from lab.play import BIN, play
from lab.processes import rig_processes

ADDRESSES = {node.name: environment(HOSTS[node.name], "/etc/sparkrig/fabric.env")["VLLM_HOST_IP"] for node in NODES}
HEAD = NODES[0].name
GCS = f"{ADDRESSES[HEAD]}:26479"
OTHER_TOKEN = "/root/other-token.env"  # A secret that the cluster does not know.


def ray_nodes_info(node: str, **options: t.Any) -> dict[str, t.Any]:
    """What the module says on *node*."""
    arguments = json.dumps({"address": GCS, "nodes": ADDRESSES, **options})
    command = [str(BIN / "ansible"), "-i", str(INVENTORY), node, "-b", "-m", "sparkrig.serving.ray_nodes_info"]
    # Molecule asks for colours, which are no JSON.
    variables = {**os.environ, "ANSIBLE_CALLBACK_RESULT_FORMAT": "json", "ANSIBLE_FORCE_COLOR": "0"}
    done = subprocess.run(
        [*command, "-a", arguments], cwd=PROJECT, env=variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, t.Any] = json.loads(done.stdout.partition("=>")[2])
    return found


@pytest.fixture
def other_token() -> Iterator[str]:
    """The last node has another secret in a file of its own."""
    host = HOSTS[NODES[-1].name]
    host.check_output(f"sh -c 'umask 077; echo RAY_AUTH_TOKEN=not-the-one > {OTHER_TOKEN}'")
    yield OTHER_TOKEN
    host.check_output(f"rm {OTHER_TOKEN}")


@pytest.mark.parametrize("node", [HEAD, NODES[-1].name])
def test_every_node_can_ask_for_the_nodes(node: str) -> None:
    found = ray_nodes_info(node)
    assert (found["ok"], found["problems"], found["missing"]) == (True, [], [])
    alive = [entry for entry in found["nodes"] if entry["alive"]]
    assert {entry["host"]: entry["ip"] for entry in alive} == ADDRESSES
    assert {(entry["cpus"], entry["gpus"]) for entry in alive} == {(1.0, 1.0)}
    assert found["versions"]["cluster"] == found["versions"]["here"]


def test_a_node_that_is_missing_or_has_another_address_is_named() -> None:
    wrong = {**ADDRESSES, "spark2": "10.98.1.99", "spark9": "10.98.1.19"}
    found = ray_nodes_info(HEAD, nodes=wrong)
    assert found["missing"] == ["spark2", "spark9"]
    assert found["problems"] == [
        "Ray sees 3 of 5 nodes alive; missing: spark2 (10.98.1.99), spark9 (10.98.1.19)",
        f"spark2 is in Ray with the stale address {ADDRESSES['spark2']}; the inventory says 10.98.1.99 (restart its"
        " sparkrig-ray.service)",
    ]


def test_a_head_that_is_not_there_is_one_sentence() -> None:
    absent = f"{ADDRESSES[HEAD]}:27000"
    found = ray_nodes_info(NODES[-1].name, address=absent)
    assert found["problems"] == [f"Ray's GCS at {absent} does not answer: Connection refused"]


def test_another_secret_opens_nothing(other_token: str) -> None:
    found = ray_nodes_info(NODES[-1].name, token_file=other_token)
    assert found["ok"] is False
    assert found["problems"] == [
        f"Ray's GCS at {GCS} refuses this node: the secret in {OTHER_TOKEN} is not that of the head"
    ]


def test_a_machine_with_another_secret_cannot_join(other_token: str) -> None:
    host = HOSTS[NODES[-1].name]
    start = (
        "timeout 60 /opt/sparkrig/current/bin/python -m ray.scripts.scripts start"
        f" --address={GCS} --node-ip-address={ADDRESSES[NODES[-1].name]} --temp-dir=/tmp/stranger --num-cpus=1"
    )
    files = "set -a; . /etc/sparkrig/ray.env; . /etc/sparkrig/fabric.env"
    done = host.run("sh -c %s", f"{files}; . {other_token}; {start}")
    assert done.rc != 0
    assert "InvalidAuthToken" in done.stdout + done.stderr
    host.run("rm -rf /tmp/stranger")
    assert len([entry for entry in ray_nodes_info(HEAD)["nodes"] if entry["alive"]]) == len(NODES)


def test_only_what_ray_cannot_live_without_is_there() -> None:
    wanted = {HEAD: ["RuntimeEnvAgent", "gcs_server", "python", "raylet", "sleep"]}
    for node in NODES:
        names = []
        for process in rig_processes(HOSTS[node.name], ["sparkrig-ray.service"]):
            words = shlex.split(process.command.replace("'", " "))
            name = words[0].rsplit("/", 1)[-1].removeprefix("ray::")
            # The ranks and what they start belong to the engine.
            if not name.startswith("RayWorkerProc") and "resource_tracker" not in process.command:
                names.append(name)
        assert sorted(names) == wanted.get(node.name, ["RuntimeEnvAgent", "python", "raylet", "sleep"]), node.name


def test_an_object_store_under_rays_minimum_is_refused_with_rays_number() -> None:
    outcome = play("sparkrig.serving.site", {"serving_overrides": {"ray": {"object_store_memory": 1000}}})
    assert outcome.code != 0
    text = " ".join(outcome.text.split())
    assert "profile key 'ray.object_store_memory' is 1000; it must be at least 78643200" in text
    assert outcome.changed == 0


def test_a_port_that_somebody_has_is_refused_before_anything_is_touched() -> None:
    name = NODES[2].name
    host = HOSTS[name]
    listen = f"import socket, time; s = socket.create_server(('{ADDRESSES[name]}', 27001)); time.sleep(300)"
    host.check_output("systemd-run --quiet --unit=test-listener python3 -c %s", listen)
    try:
        outcome = play("sparkrig.serving.site", {"serving_overrides": {"ray": {"port": 27000}}})
    finally:
        host.check_output("systemctl stop test-listener")
    text = " ".join(outcome.text.split())
    assert outcome.code != 0
    assert "Ray is not started, and what serves is left as it is: " in text
    assert f"{name}: port 27001 on {ADDRESSES[name]} is taken by process" in text
    assert outcome.changed == 0, outcome.text
    assert play("sparkrig.serving.verify").code == 0
