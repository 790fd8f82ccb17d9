# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's nodes as testinfra hosts, over the same SSH that Ansible uses.

The inventory's connection variables are templates, which testinfra does not render; so the hosts are made from
what the lab itself knows of them.
"""

from __future__ import annotations

import json
import typing as t

import pytest
import testinfra
from testinfra.host import Host

from lab.common import state_dir
from lab.nodes import Node, read_nodes

NODES = read_nodes()


def connect(node: Node) -> Host:
    """The node over SSH, as root through sudo, on one connection that stays open."""
    state = state_dir()
    extra = (
        f"-o UserKnownHostsFile={state}/known_hosts -o StrictHostKeyChecking=yes -o ConnectTimeout=5"
        f" -o ControlMaster=auto -o ControlPersist=60 -o ControlPath={state}/cp/test-%C"
    )
    return testinfra.get_host(
        f"ssh://spark@{node.management_ip}",
        ssh_identity_file=str(state / "id_ed25519"),
        ssh_extra_args=extra,
        sudo=True,
    )


HOSTS = {node.name: connect(node) for node in NODES}


@pytest.fixture(params=list(HOSTS))
def node(request: pytest.FixtureRequest) -> Host:
    """Each node of the lab in turn."""
    return HOSTS[request.param]


@pytest.fixture(scope="session")
def nodes() -> dict[str, Host]:
    """All nodes of the lab by name."""
    return HOSTS


@pytest.fixture(scope="session")
def head() -> Host:
    """The node that answers the API."""
    return HOSTS[NODES[0].name]


@pytest.fixture(scope="session")
def plan(head: Host) -> dict[str, t.Any]:
    """What kv_budget decided, as the head keeps it."""
    return t.cast("dict[str, t.Any]", json.loads(head.file("/var/lib/sparkrig/plan.json").content_string))


def environment(host: Host, path: str) -> dict[str, str]:
    """An environment file as a mapping."""
    lines = host.file(path).content_string.splitlines()
    pairs = (line.split("=", 1) for line in lines if line and not line.startswith("#"))
    return {name: value.strip("\"'") for name, value in pairs}
