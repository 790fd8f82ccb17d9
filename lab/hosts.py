# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's nodes as testinfra hosts, over the same SSH that Ansible uses.

The inventory's connection variables are templates, which testinfra does not render; so the hosts are made from
what the lab itself knows of them.
"""

from __future__ import annotations

import typing as t

import testinfra

from lab.common import state_dir
from lab.nodes import Node, read_nodes

# testinfra makes its modules at run time, where no type checker can follow.
Host = t.Any


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


NODES = read_nodes()
HOSTS = {node.name: connect(node) for node in NODES}


def environment(host: Host, path: str) -> dict[str, str]:
    """An environment file of *host* as a mapping."""
    lines = host.file(path).content_string.splitlines()
    pairs = (line.split("=", 1) for line in lines if line and not line.startswith("#"))
    return {name: value.strip("\"'") for name, value in pairs}
