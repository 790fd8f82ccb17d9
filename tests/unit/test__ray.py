# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command of a Ray node, and what the cluster says."""

from __future__ import annotations

import json
import re
import socket
import typing as t

import pytest

from ansible_collections.sparkrig.serving.plugins.module_utils._ray import (
    RayNode,
    RayOptions,
    compare_nodes,
    parse_node_table,
    ray_argv,
)
from ansible_collections.sparkrig.serving.plugins.module_utils._ray_probe import probe_ray

EXPECTED = {"spark1": "10.98.1.11", "spark2": "10.98.1.12"}
HEAD_ONLY = ("--head", "--include-dashboard=false", "--no-monitor", "--port=26479")


def node(ip: str, alive: bool = True, cpus: float = 1.0, gpus: float = 1.0) -> RayNode:
    return RayNode(ip, alive, cpus, gpus, "")


def test_the_head_has_its_own_flags_and_the_others_have_its_address() -> None:
    options = RayOptions(head_ip="10.98.1.11")
    head, worker = ray_argv(options, "10.98.1.11"), ray_argv(options, "10.98.1.12")
    assert set(HEAD_ONLY) <= set(head)
    # Ray aborts on a head's flag elsewhere.
    assert not set(HEAD_ONLY) & set(worker)
    assert "--address=10.98.1.11:26479" in worker
    # The head is started without the server of the Ray client; the others wait for the head first.
    assert head[:2] == worker[:2] == ["/opt/sparkrig/current/bin/python", "-c"]
    assert "get_ray_client_dependency_error" in head[2]
    assert "create_connection(('10.98.1.11', 26479), 2)" in worker[2]
    assert not [word for word in head if word.startswith("--address")]


def test_every_node_is_slim_and_every_port_is_pinned() -> None:
    words = ray_argv(RayOptions(head_ip="10.98.1.11", port=30000), "10.98.1.12")
    assert words[3:] == [
        "start",
        "--address=10.98.1.11:30000",
        "--node-ip-address=10.98.1.12",
        "--node-manager-port=30001",
        "--object-manager-port=30002",
        "--dashboard-agent-listen-port=30003",
        "--dashboard-agent-grpc-port=30004",
        "--runtime-env-agent-port=30005",
        "--metrics-export-port=30006",
        "--min-worker-port=30021",
        "--max-worker-port=30070",
        "--object-store-memory=134217728",
        "--object-spilling-directory=/var/lib/sparkrig/ray/spill",
        "--num-cpus=1",
        "--num-gpus=1",
        "--include-log-monitor=false",
        "--disable-usage-stats",
        "--temp-dir=/var/lib/sparkrig/ray",
        "--block",
    ]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"object_store_bytes": 1000}, "the object store is 1000 bytes; Ray needs at least 78643200"),
        ({"port": 80}, "the Ray port is 80; it and the 70 ports after it must lie in 1024 to 65535"),
        ({"port": 65500}, "the Ray port is 65500; it and the 70 ports after it must lie in 1024 to 65535"),
    ],
)
def test_what_ray_would_refuse_is_refused_before(options: dict[str, t.Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        RayOptions(head_ip="10.98.1.11", **options)


@pytest.mark.parametrize(
    ("nodes", "missing", "problems"),
    [
        ([node("10.98.1.11"), node("10.98.1.12")], [], []),
        (
            [node("10.98.1.11")],
            ["spark2"],
            ["Ray sees 1 of 2 nodes alive; missing: spark2 (10.98.1.12)"],
        ),
        (
            [node("10.98.1.11"), node("10.98.1.12", alive=False)],
            ["spark2"],
            ["Ray sees 1 of 2 nodes alive; missing: spark2 (10.98.1.12)"],
        ),
        (
            [node("10.98.1.11"), node("10.98.0.12")],
            ["spark2"],
            [
                "Ray sees 2 of 2 nodes alive; missing: spark2 (10.98.1.12)",
                "Ray has a node 10.98.0.12 that belongs to none of spark1, spark2",
            ],
        ),
        (
            [node("10.98.1.11"), node("10.98.1.12"), node("10.98.1.12")],
            [],
            ["Ray has 2 living nodes on spark2 (10.98.1.12); it must be one"],
        ),
        (
            [node("10.98.1.11"), node("10.98.1.12", gpus=0.0)],
            [],
            ["Ray node spark2 (10.98.1.12) offers 1 CPU and 0 GPU; it must be 1 and 1"],
        ),
        # A node that died and came back is listed twice, once dead.
        ([node("10.98.1.11"), node("10.98.1.12", alive=False), node("10.98.1.12")], [], []),
    ],
)
def test_the_cluster_is_compared_node_by_node(nodes: list[RayNode], missing: list[str], problems: list[str]) -> None:
    state = compare_nodes(nodes, EXPECTED)
    assert (state.missing, state.problems, state.ready) == (missing, problems, not problems)


def test_the_table_is_found_between_the_warnings_of_ray() -> None:
    entry = {
        "NodeManagerAddress": "10.98.1.11",
        "NodeManagerHostname": "spark1",
        "alive": True,
        "Resources": {"CPU": 1.0, "GPU": 1.0, "memory": 5.0},
        "DeathReasonMessage": "",
    }
    text = "2026-11-21 WARNING something\n" + json.dumps([entry]) + "\n"
    assert parse_node_table(text) == [node("10.98.1.11")]
    assert parse_node_table("[]\n") == []
    with pytest.raises(ValueError, match="it must be one line of JSON"):
        parse_node_table("nothing")


class Commands:
    """Stands for AnsibleModule.run_command."""

    def __init__(self, *answers: tuple[int, str, str]) -> None:
        self.answers = list(answers)
        self.calls: list[list[str]] = []

    def __call__(self, words: list[str], **_options: t.Any) -> tuple[int, str, str]:
        self.calls.append(words)
        return self.answers.pop(0)


def test_no_interpreter_is_started_where_nothing_listens() -> None:
    run = Commands()
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    assert probe_ray(run, "/python", f"127.0.0.1:{port}", EXPECTED) == (
        None,
        f"Ray's GCS at 127.0.0.1:{port} does not answer: Connection refused",
    )
    assert run.calls == []


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ((1, "", "warning\nGCS at X does not answer\n"), "cannot be read: GCS at X does not answer"),
        ((0, "rubbish", ""), "Ray's table of nodes is 'rubbish'; it must be one line of JSON"),
    ],
)
def test_a_probe_that_fails_says_why(answer: tuple[int, str, str], problem: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        run = Commands(answer)
        state, text = probe_ray(run, "/python", address, EXPECTED)
        assert state is None
        assert text.endswith(problem)
        assert [words[0] for words in run.calls] == ["/python"]
        assert run.calls[0][-1] == address


@pytest.mark.parametrize("ip", ["10.98.1.11", "10.98.1.12"])
def test_the_launchers_are_programs(ip: str) -> None:
    compile(ray_argv(RayOptions(head_ip="10.98.1.11"), ip)[2], "launcher", "exec")
