# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module ray_nodes_info with a cluster whose words are given."""

from __future__ import annotations

import json
import socket
import typing as t
from pathlib import Path

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testing import patch_module_args

from ansible_collections.sparkrig.serving.plugins.modules import ray_nodes_info

NODES = {"spark1": "10.98.1.11", "spark2": "10.98.1.12"}
VERSIONS = {"cluster": {"python": "3.11.2", "ray": "2.60.0"}, "here": {"python": "3.11.2", "ray": "2.60.0"}}


def entry(ip: str, name: str, alive: bool = True) -> dict[str, t.Any]:
    return {
        "NodeID": f"id-{ip}",
        "NodeManagerAddress": ip,
        "NodeManagerHostname": name,
        "alive": alive,
        "Resources": {"CPU": 1.0, "GPU": 1.0} if alive else {},
        "DeathReasonMessage": "" if alive else "it missed its heartbeats",
    }


class Asked(Exception):
    """What the module returned."""


def ask(
    monkeypatch: pytest.MonkeyPatch, answer: tuple[int, str, str], token_file: Path, address: str
) -> tuple[dict[str, t.Any], dict[str, str]]:
    """What the module returns when the interpreter answers so, and the environment that it was asked in."""
    seen: dict[str, str] = {}
    returned: dict[str, t.Any] = {}

    def run_command(_module: AnsibleModule, _words: list[str], **options: t.Any) -> tuple[int, str, str]:
        seen.update(options["environ_update"])
        return answer

    def exit_json(_module: AnsibleModule, **result: t.Any) -> t.NoReturn:
        returned.update(result)
        raise Asked

    monkeypatch.setattr(AnsibleModule, "run_command", run_command)
    monkeypatch.setattr(AnsibleModule, "exit_json", exit_json)
    arguments = {"address": address, "nodes": NODES, "python": "/python", "token_file": str(token_file)}
    with patch_module_args(arguments), pytest.raises(Asked):
        ray_nodes_info.main()
    return returned, seen


@pytest.fixture(name="gcs")
def listening_gcs() -> t.Iterator[str]:
    """An address where something listens, as the head's GCS would."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def test_a_complete_cluster_has_no_problem(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, gcs: str) -> None:
    token_file = tmp_path / "ray-token.env"
    token_file.write_text("RAY_AUTH_TOKEN=abc\n")
    nodes = [entry("10.98.1.12", "spark2"), entry("10.98.1.11", "spark1")]
    text = json.dumps({"nodes": nodes, **VERSIONS}) + "\n"
    result, environment = ask(monkeypatch, (0, text, ""), token_file, gcs)
    assert (result["ok"], result["problems"], result["missing"], result["changed"]) == (True, [], [], False)
    assert result["versions"] == VERSIONS
    assert [(node["host"], node["ip"], node["node_id"], node["gpus"]) for node in result["nodes"]] == [
        ("spark1", "10.98.1.11", "id-10.98.1.11", 1.0),
        ("spark2", "10.98.1.12", "id-10.98.1.12", 1.0),
    ]
    assert (environment["RAY_AUTH_MODE"], environment["RAY_AUTH_TOKEN"]) == ("token", "abc")
    # The secret goes into the environment of the question and nowhere else.
    assert "abc" not in json.dumps(result)


def test_what_is_missing_twice_or_stale_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, gcs: str) -> None:
    nodes = [
        entry("10.98.1.11", "spark1"),
        entry("10.98.1.11", "spark1"),
        entry("10.98.0.12", "spark2"),
        entry("10.98.1.12", "spark2", alive=False),
    ]
    text = json.dumps({"nodes": nodes, **VERSIONS}) + "\n"
    result, environment = ask(monkeypatch, (0, text, ""), tmp_path / "none", gcs)
    assert result["ok"] is False
    assert result["missing"] == ["spark2"]
    assert result["problems"] == [
        "Ray sees 1 of 2 nodes alive; missing: spark2 (10.98.1.12), lost because: it missed its heartbeats",
        "spark2 is in Ray with the stale address 10.98.0.12; the inventory says 10.98.1.12 (restart its"
        " sparkrig-ray.service)",
        "Ray has 2 living nodes on spark1 (10.98.1.11); it must be one",
    ]
    assert [node["host"] for node in result["nodes"]] == ["spark1", "spark1", "spark2", None]
    assert environment["RAY_AUTH_MODE"] == "disabled"


@pytest.mark.parametrize(("has", "words"), [(True, "is not that of the head"), (False, "is missing")])
def test_another_secret_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, gcs: str, has: bool, words: str
) -> None:
    token_file = tmp_path / "ray-token.env"
    if has:
        token_file.write_text("RAY_AUTH_TOKEN=abc\n")
    said = "Unauthenticated: RPC error: InvalidAuthToken: Authentication token is missing or incorrect\n"
    result, _environment = ask(monkeypatch, (1, "", said), token_file, gcs)
    assert result["problems"] == [f"Ray's GCS at {gcs} refuses this node: the secret in {token_file} {words}"]


def test_a_head_that_cannot_be_asked_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, gcs: str) -> None:
    result, _environment = ask(monkeypatch, (1, "", "no\nword"), tmp_path / "none", gcs)
    assert result["problems"] == [f"Ray's table of nodes at {gcs} cannot be read: word"]
    assert (result["ok"], result["nodes"], result["missing"], result["versions"]) == (False, None, None, None)
