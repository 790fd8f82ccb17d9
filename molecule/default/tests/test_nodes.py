# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What os_prune and fabric left on every node."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from lab.hosts import NODES, Host, environment

PROJECT = Path(__file__).parents[3]
TABLE = yaml.safe_load((PROJECT / "roles/os_prune/vars/main.yml").read_text(encoding="utf-8"))["__os_prune_table"]
# The system units of the default tier, headless.
PRUNED = [row["unit"] for row in TABLE if row["tier"] in ("minimal", "headless") and "user" not in row]
INVENTORY = yaml.safe_load((PROJECT / "inventory/lab/hosts.yml").read_text(encoding="utf-8"))["sparks"]["hosts"]
RAILS = list(next(iter(INVENTORY.values()))["fabric_addresses"])
# They belong to the desktop that the image has installed; none of them may be missing from it.
INSTALLED = {"cups.service", "cups.socket", "avahi-daemon.service", "bluetooth.service", "snapd.service"}
KEPT = ("ssh.service", "NetworkManager.service", "polkit.service", "systemd-networkd.service")


def test_every_listed_unit_that_exists_is_masked_and_stopped(node: Host) -> None:
    output = node.run("systemctl show -p LoadState -p ActiveState -p UnitFileState " + " ".join(PRUNED)).stdout
    shown = [dict(line.split("=", 1) for line in block.splitlines()) for block in output.strip().split("\n\n")]
    states = dict(zip(PRUNED, shown, strict=True))
    existing = {unit for unit, state in states.items() if state["LoadState"] != "not-found"}
    assert existing >= INSTALLED
    awake = {
        unit: states[unit]
        for unit in existing
        if states[unit]["LoadState"] != "masked" or states[unit]["ActiveState"] not in ("inactive", "failed")
    }
    assert awake == {}


@pytest.mark.parametrize("unit", KEPT)
def test_what_a_node_needs_is_left_running(node: Host, unit: str) -> None:
    service = node.service(unit)
    assert service.is_running
    assert not service.is_masked


@pytest.mark.parametrize("rail", RAILS)
def test_rails_have_their_mtu(node: Host, rail: str) -> None:
    assert node.interface(rail).exists
    assert node.file(f"/sys/class/net/{rail}/mtu").content_string.strip() == "9000"


@pytest.mark.parametrize("rail", RAILS)
@pytest.mark.parametrize("name", [node.name for node in NODES])
def test_a_full_frame_passes_to_every_peer(nodes: dict[str, Host], name: str, rail: str) -> None:
    own = INVENTORY[name]["fabric_addresses"][rail].split("/")[0]
    peers = [INVENTORY[peer]["fabric_addresses"][rail].split("/")[0] for peer in INVENTORY if peer != name]
    assert len(peers) == 3
    for peer in peers:
        # 8972 bytes of payload and 28 of headers are 9000; DF forbids to cut them.
        result = nodes[name].run("ping -M do -s 8972 -c 1 -W 2 -I %s %s", own, peer)
        assert result.rc == 0, result.stdout


def test_a_larger_frame_does_not_pass(nodes: dict[str, Host]) -> None:
    first, second = (INVENTORY[name]["fabric_addresses"][RAILS[0]].split("/")[0] for name in list(INVENTORY)[:2])
    assert nodes[NODES[0].name].run("ping -M do -s 8973 -c 1 -W 2 -I %s %s", first, second).rc != 0


@pytest.mark.parametrize("name", [node.name for node in NODES])
def test_fabric_environment_is_the_nodes_own(nodes: dict[str, Host], name: str) -> None:
    values = environment(nodes[name], "/etc/sparkrig/fabric.env")
    own = INVENTORY[name]["fabric_addresses"][RAILS[0]].split("/")[0]
    assert values["NCCL_IB_DISABLE"] == "0"
    assert values["VLLM_HOST_IP"] == own
    assert values["GLOO_SOCKET_IFNAME"] == values["NCCL_SOCKET_IFNAME"] == RAILS[0]
    assert "NCCL_IB_GID_INDEX" not in values
