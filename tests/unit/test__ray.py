# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command of a Ray node, and what the cluster says."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time
import typing as t
from pathlib import Path

import pytest

from ansible_collections.sparkrig.serving.plugins.module_utils._ray import (
    RayNode,
    RayOptions,
    Table,
    compare_nodes,
    compare_table,
    parse_node_table,
    ports_of,
    ray_argv,
    token_in,
)
from ansible_collections.sparkrig.serving.plugins.module_utils._ray_probe import probe_ray, ray_identity

EXPECTED = {"spark1": "10.98.1.11", "spark2": "10.98.1.12"}
HEAD_ONLY = ("--head", "--include-dashboard=false", "--no-monitor", "--port=26479")


def node(ip: str, alive: bool = True, cpus: float = 1.0, gpus: float = 1.0, death: str = "", name: str = "") -> RayNode:
    return RayNode(ip, alive, cpus, gpus, death, name)


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
                "Ray sees 1 of 2 nodes alive; missing: spark2 (10.98.1.12)",
                "Ray has a node 10.98.0.12 that belongs to none of spark1, spark2",
            ],
        ),
        (
            [node("10.98.1.11"), node("10.98.0.12", name="spark2"), node("10.98.1.9", name="other")],
            ["spark2"],
            [
                "Ray sees 1 of 2 nodes alive; missing: spark2 (10.98.1.12)",
                "spark2 is in Ray with the stale address 10.98.0.12; the inventory says 10.98.1.12 (restart its"
                " sparkrig-ray.service)",
                "Ray has a node 10.98.1.9 (other) that belongs to none of spark1, spark2",
            ],
        ),
        (
            [node("10.98.1.11"), node("10.98.1.12", alive=False, death="it was killed.")],
            ["spark2"],
            ["Ray sees 1 of 2 nodes alive; missing: spark2 (10.98.1.12), lost because: it was killed"],
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
        "NodeID": "ab12",
        "NodeManagerAddress": "10.98.1.11",
        "NodeManagerHostname": "spark1",
        "alive": True,
        "Resources": {"CPU": 1.0, "GPU": 1.0, "memory": 5.0},
        "DeathReasonMessage": "",
    }
    versions = {"cluster": {"ray": "2.60.0"}, "here": {"ray": "2.60.0"}}
    text = "2026-11-21 WARNING something\n" + json.dumps({"nodes": [entry], **versions}) + "\n"
    known = RayNode("10.98.1.11", True, 1.0, 1.0, "", "spark1", "ab12")
    assert parse_node_table(text) == Table([known], **versions)
    assert parse_node_table('{"nodes": []}\n').nodes == []
    with pytest.raises(ValueError, match="it must be one line of JSON"):
        parse_node_table("nothing")


@pytest.mark.parametrize(
    ("cluster", "here", "problems"),
    [
        ({"ray": "2.60.0", "python": "3.11.2"}, {"ray": "2.60.0", "python": "3.11.2"}, []),
        (
            {"ray": "2.60.0"},
            {"ray": "2.59.0"},
            ["the cluster runs ray 2.60.0, this node has 2.59.0; it must be the same"],
        ),
        # A Ray that does not tell is not blamed for it.
        ({"ray": ""}, {"ray": "2.59.0"}, []),
    ],
)
def test_versions_are_compared_where_they_are_known(
    cluster: dict[str, str], here: dict[str, str], problems: list[str]
) -> None:
    table = Table([node("10.98.1.11"), node("10.98.1.12")], cluster, here)
    state = compare_table(table, EXPECTED)
    assert (state.problems, state.table) == (problems, table)


def test_the_ports_of_a_node_are_those_that_listen() -> None:
    assert ports_of(26479, head=True) == [26479, 26480, 26481, 26484]
    assert ports_of(26479, head=False) == [26480, 26481, 26484]


@pytest.mark.parametrize(
    ("text", "token"), [("RAY_AUTH_TOKEN=abc\n", "abc"), ("# RAY_AUTH_TOKEN=abc\n", None), ("RAY_AUTH_TOKEN=\n", None)]
)
def test_a_node_that_has_the_secret_shows_it(tmp_path: Path, text: str, token: str | None) -> None:
    assert token_in(text) == token
    path = tmp_path / "ray-token.env"
    assert ray_identity(str(path)) == {"RAY_AUTH_MODE": "disabled"}
    path.write_text(text)
    wanted = {"RAY_AUTH_MODE": "disabled"} if token is None else {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "abc"}
    assert ray_identity(str(path)) == wanted


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


# --- The launcher, with a Ray that only writes down what it is asked --------------------------------------------------

FAKE_SCRIPTS = """
import sys, ray._private.services as services
def cli(standalone_mode):
    raylet = [sys.executable, "-c", "import time; time.sleep(60)", "--session_dir=/s", "--node_id=ab"]
    services.start_ray_process([*raylet, "--dashboard_agent_command=python agent.py"], "raylet")
    print(services.start_api_server(1, host=2), sys.argv[1:], get_ray_client_dependency_error(), flush=True)
def main():
    print("as it is", sys.argv[1:], flush=True)
"""
FAKE_SERVICES = """
import subprocess, types
def start_ray_process(command, kind):
    print(kind, command[3:], flush=True)
    return types.SimpleNamespace(process=subprocess.Popen(command[:3]))
def start_api_server(*words, **options):
    raise AssertionError("a dashboard is started")
"""
FAKE_RAYLET = """
DASHBOARD_AGENT_LISTEN_PORT_NAME, METRICS_AGENT_PORT_NAME, METRICS_EXPORT_PORT_NAME = "listen", "agent", "export"
def persist_port(*said):
    print(said, flush=True)
"""


def fake_ray(folder: Path, raylet: str = FAKE_RAYLET) -> Path:
    """A package `ray` that the launcher can be run with."""
    files = {"scripts/scripts.py": FAKE_SCRIPTS, "_private/services.py": FAKE_SERVICES, "_raylet.py": raylet}
    for name, text in files.items():
        path = folder / "ray" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
        (path.parent / "__init__.py").touch()
    return folder


def launch(folder: Path, port: int, ip: str) -> subprocess.Popen[str]:
    """The launcher of the node *ip* of a cluster at 127.0.0.1."""
    words = ray_argv(RayOptions(head_ip="127.0.0.1", port=port), ip)
    return subprocess.Popen(
        [sys.executable, *words[1:]],
        env={**os.environ, "PYTHONPATH": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def raylet_of(pid: int) -> int:
    """The child of the launcher, once the launcher has become the watcher."""
    deadline = time.monotonic() + 20
    while Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[1:3] != [b"-I", b"-S"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(child)


def test_a_head_has_no_dashboard_no_agent_and_no_launcher_in_memory(tmp_path: Path) -> None:
    head = launch(fake_ray(tmp_path), 26479, "127.0.0.1")
    try:
        os.kill(raylet_of(head.pid), signal.SIGKILL)
        text, _ = head.communicate(timeout=20)
    finally:
        head.kill()
    lines = text.splitlines()
    assert lines[:3] == [str(("/s", "ab", name, -1)) for name in ("listen", "agent", "export")]
    asleep = '--dashboard_agent_command=/bin/sh -c "exec sleep infinity" agent'
    assert lines[3] == f"raylet {['--session_dir=/s', '--node_id=ab', asleep]}"
    assert lines[4].startswith("(None, None) ['start', '--head'")
    assert lines[4].endswith("not wanted")
    assert "--block" not in lines[4]
    # Without one of its processes the node is none: systemd starts it anew.
    assert (head.returncode, lines[5]) == (1, "raylet ended with -9")


def test_a_node_waits_for_its_head(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    worker = launch(fake_ray(tmp_path), port, "127.0.0.2")
    try:
        assert worker.stdout is not None
        assert worker.stdout.readline().startswith(f"waiting for the head at 127.0.0.1:{port}: ")
        with socket.create_server(("127.0.0.1", port)) as head:
            head.accept()
        os.kill(raylet_of(worker.pid), signal.SIGTERM)
        text, _ = worker.communicate(timeout=20)
    finally:
        worker.kill()
    assert (worker.returncode, text.splitlines()[-1]) == (1, "raylet ended with -15")


def test_a_ray_that_is_built_otherwise_is_started_as_it_is(tmp_path: Path) -> None:
    head = launch(fake_ray(tmp_path, raylet=""), 26479, "127.0.0.1")
    text, _ = head.communicate(timeout=20)
    first, second = text.splitlines()
    assert first.startswith("this Ray cannot be made slimmer: cannot import name")
    assert second.startswith("as it is ['start', '--head'")
    assert "--block" in second
