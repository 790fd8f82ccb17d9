# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import typing as t

import pytest

from lab.hosts import HOSTS, NODES, Host


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


@pytest.fixture(scope="session")
def executor(head: Host) -> str:
    """What runs the ranks: "ray", or "mp", which is vLLM itself."""
    return "ray" if head.file("/etc/systemd/system/sparkrig-ray.service").exists else "mp"
