# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import subprocess
import typing as t
from pathlib import Path

import pytest

from lab import nodes
from lab.common import LabError
from lab.image import customize_script, recipe_digest
from lab.nodes import Node, bridges, nodes_of
from lab.play import parse_recap

VARIABLES = {"lab_memory_limit_bytes": 4 * 2**30, "lab_shm_bytes": 2**30}


def inventory(**hosts: dict[str, t.Any]) -> dict[str, t.Any]:
    return {
        "_meta": {"hostvars": {name: {**VARIABLES, **values} for name, values in hosts.items()}},
        "sparks": {"hosts": list(hosts)},
    }


def test_nodes_come_in_the_order_of_the_inventory(monkeypatch: pytest.MonkeyPatch) -> None:
    # The tests run beside the first lab as well.
    monkeypatch.delenv("SPARKRIG_LAB", raising=False)
    rails = {"enp1s0f0np0": "10.0.1.1/24", "enP2p1s0f0np0": "10.0.2.1/24"}
    found = nodes_of(
        inventory(
            b={"ansible_host": "10.0.0.2", "fabric_addresses": rails},
            a={"ansible_host": "10.0.0.1", "fabric_addresses": rails},
        )
    )
    assert found[0] == Node("b", 1, "10.0.0.2", ("enp1s0f0np0", "enP2p1s0f0np0"), 4 * 2**30, 2**30)
    assert [(node.container, node.index) for node in found] == [("sparkrig-b", 1), ("sparkrig-a", 2)]


@pytest.mark.parametrize("values", [{"ansible_host": "10.0.0.1"}, {"fabric_addresses": {"e": "10.0.1.1/24"}}])
def test_a_node_without_links_is_refused(values: dict[str, t.Any]) -> None:
    with pytest.raises(LabError, match=r"^a in the lab's inventory has no ansible_host or no fabric_addresses\.$"):
        nodes_of(inventory(a=values))


def test_one_bridge_for_management_and_one_for_each_rail() -> None:
    assert bridges(2) == ["sparkrig0", "sparkrig1", "sparkrig2"]


def test_a_lab_beside_the_first_leaves_no_network_namespace(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ran: list[list[str]] = []

    def run(argv: list[str], **_options: object) -> subprocess.CompletedProcess[bytes]:
        ran.append(argv)
        return subprocess.CompletedProcess(argv, 0, b"[]" if "-json" in argv else b"", b"")

    monkeypatch.setattr(nodes, "run", run)
    monkeypatch.setenv("SPARKRIG_CACHE", str(tmp_path))
    for name, deleted in (("", False), ("mine", True)):
        monkeypatch.setenv("SPARKRIG_LAB", name)
        nodes.down()
        assert (["ip", "netns", "delete", "sparkrig-mine"] in ran) is deleted


def test_the_image_is_keyed_by_its_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    before = recipe_digest()
    assert recipe_digest() == before
    monkeypatch.setattr("lab.image.customize_script", lambda: customize_script() + "true\n")
    assert recipe_digest() != before


def test_the_recap_is_read_by_host() -> None:
    text = "PLAY RECAP ****\nspark1   : ok=4    changed=1    unreachable=0    failed=0\nspark2 : ok=2 changed=0\n"
    assert parse_recap(text) == {
        "spark1": {"ok": 4, "changed": 1, "unreachable": 0, "failed": 0},
        "spark2": {"ok": 2, "changed": 0},
    }
