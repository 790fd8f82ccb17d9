# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""RDMA devices from trees of one, two and four ports: healthy, and each fault."""

from __future__ import annotations

import json
import typing as t
from pathlib import Path

import pytest
from ansible.module_utils.testing import patch_module_args

from ansible_collections.sparkrig.serving.plugins.module_utils._rdma import (
    gid_of,
    ib_mtu,
    nccl_environment,
    port_problems,
    read_ports,
    resolve_gid_index,
    twin_of,
    usable_rails,
)
from ansible_collections.sparkrig.serving.plugins.modules import rdma_info
from tests.fixtures.sysfs_tree import plant

A, B = "enp1s0f0np0", "enP2p1s0f0np0"
RAILS = {A: "192.168.100.1", B: "192.168.101.1"}
PORT = "class/infiniband/{}/ports/1"


def info(capsys: pytest.CaptureFixture[str], root: str, **more: t.Any) -> dict[str, t.Any]:
    with patch_module_args({"sys_root": root, **more}), pytest.raises(SystemExit):
        rdma_info.main()
    result: dict[str, t.Any] = json.loads(capsys.readouterr().out)
    assert result["changed"] is False
    return result


def test_a_spark_with_one_cable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = info(capsys, plant(tmp_path, "four_ports"))
    assert result["actions"] == [
        f"roceP2p1s0f0 port 1 ({B}) is ACTIVE with 200 Gb/s, RoCE MTU 4096 of 4096, twin of rocep1s0f0.",
        "roceP2p1s0f1 port 1 (enP2p1s0f1np1) is DOWN, twin of rocep1s0f1.",
        f"rocep1s0f0 port 1 ({A}) is ACTIVE with 200 Gb/s, RoCE MTU 4096 of 4096, twin of roceP2p1s0f0.",
        "rocep1s0f1 port 1 (enp1s0f1np1) is DOWN, twin of roceP2p1s0f1.",
    ]
    port = next(port for port in result["ports"] if port["device"] == "rocep1s0f0")
    gids = port.pop("gids")
    assert port == {
        "active": True,
        "device": "rocep1s0f0",
        "firmware": "28.45.4028",
        "image_guid": "4cbb:4700:0300:0001",
        "link_layer": "Ethernet",
        "mtu_active": 4096,
        "mtu_max": 4096,
        "netdevs": [A],
        "pci": "0000:01:00.0",
        "pcie_gts": 32.0,
        "pcie_width": 4,
        "pcie_width_max": 4,
        "physical": "LinkUp",
        "port": 1,
        "rate_gbps": 200,
        "state": "ACTIVE",
        "twin": "roceP2p1s0f0",
        "uppers": [],
    }
    assert [(gid["index"], gid["type"], gid["ipv4"], gid["netdev"]) for gid in gids] == [
        (0, "IB/RoCE v1", "", A),
        (1, "RoCE v2", "", A),
        (2, "IB/RoCE v1", "192.168.100.1", A),
        (3, "RoCE v2", "192.168.100.1", A),
    ]
    assert result["gids"] == [
        {"address": "192.168.101.1", "device": "roceP2p1s0f0", "port": 1, "index": 4, "netdev": B},
        {"address": "192.168.100.1", "device": "rocep1s0f0", "port": 1, "index": 3, "netdev": A},
    ]
    assert result["rails"] == [
        {"interface": A, "nccl": "rocep1s0f0", "rate_gbps": 200},
        {"interface": B, "nccl": "roceP2p1s0f0", "rate_gbps": 200},
    ]


def test_no_rdma_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = info(capsys, str(tmp_path), addresses=["10.0.0.1"])
    assert (result["ports"], result["gids"], result["rails"]) == ([], [], [])
    assert result["actions"] == ["No RDMA port has a RoCE v2 GID for 10.0.0.1."]
    assert info(capsys, str(tmp_path))["actions"] == ["This node has no RDMA device."]


def test_devices_called_mlx5(tmp_path: Path) -> None:
    ports = read_ports(plant(tmp_path, "two_ports"))
    twin = twin_of(ports[0], ports)
    assert twin is not None and twin.device == "mlx5_1"
    assert nccl_environment(ports, [A, B])[0]["NCCL_IB_HCA"] == "=mlx5_0,mlx5_1"


def test_a_card_of_its_own_has_no_twin(tmp_path: Path) -> None:
    (port,) = ports = read_ports(plant(tmp_path, "one_port"))
    assert twin_of(port, ports) is None
    assert [rail.device for rail in usable_rails(ports)] == ["mlx5_0"]


def test_two_cards_in_the_same_slot_of_two_domains_are_no_twins(tmp_path: Path) -> None:
    changes: dict[str, str | None] = {"class/infiniband/mlx5_1/sys_image_guid": "another"}
    ports = read_ports(plant(tmp_path, "two_ports", changes))
    assert [twin_of(port, ports) for port in ports] == [None, None]


def test_all_ports_down(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes: dict[str, str | None] = {
        f"{PORT.format(name)}/state": "1: DOWN" for name in ("rocep1s0f0", "roceP2p1s0f0")
    }
    result = info(capsys, plant(tmp_path, "four_ports", changes))
    assert result["rails"] == []
    environment, sentences = nccl_environment(read_ports(str(tmp_path)), [A, B])
    assert environment == {}
    assert sentences[-1] == "NCCL_IB_HCA is left out: no rail has an active RDMA port; NCCL will use sockets."


@pytest.mark.parametrize(("above", "entry"), [("bond0", "upper_bond0"), ("br0", "upper_br0")])
def test_a_bonded_or_bridged_netdev(tmp_path: Path, above: str, entry: str) -> None:
    changes: dict[str, str | None] = {
        f"class/net/{A}/{entry}/x": "",
        f"{PORT.format('mlx5_0')}/gid_attrs/ndevs/3": above,
    }
    ports = read_ports(plant(tmp_path, "two_ports", changes))
    assert ports[0].uppers == (above,)
    assert nccl_environment(ports, [above])[0]["NCCL_IB_HCA"] == "=mlx5_0"
    gid = gid_of(ports[0], "192.168.100.1", above)
    assert gid is not None and (gid.index, gid.netdev) == (3, above)
    assert resolve_gid_index(ports, {above: "192.168.100.1"}, "always")[0] == 3


def test_the_master_of_a_port_and_what_is_above_it(tmp_path: Path) -> None:
    root = plant(tmp_path, "one_port", {"class/net/bond0/upper_bond0.7/x": ""})
    (tmp_path / "class/net/ens1/master").symlink_to("../bond0")
    assert read_ports(root)[0].uppers == ("bond0", "bond0.7")


SECOND = {
    f"{PORT.format('mlx5_0')}/gids/5": "0000:0000:0000:0000:0000:ffff:0a09:0909",
    f"{PORT.format('mlx5_0')}/gid_attrs/types/5": "RoCE v2",
    f"{PORT.format('mlx5_0')}/gid_attrs/ndevs/5": A,
}


def test_several_addresses_on_one_link(tmp_path: Path) -> None:
    ports = read_ports(plant(tmp_path, "two_ports", SECOND))
    gid = gid_of(ports[0], "10.9.9.9")
    assert gid is not None and gid.index == 5
    # The family alone would not choose, and one index is right for one rail ...
    assert resolve_gid_index(ports, {A: "192.168.100.1"}, "auto") == (
        3,
        ("mlx5_0 port 1: index 3 is RoCE v2 over 192.168.100.1; it also has 10.9.9.9",),
    )
    # ... but not for both.
    with pytest.raises(ValueError, match="NCCL takes one GID index .* mlx5_0 needs 3, mlx5_1 needs 5: take the other"):
        resolve_gid_index(ports, RAILS, "auto")
    assert resolve_gid_index(ports, {B: "192.168.101.1"}, "auto")[0] is None


def test_the_index_is_left_unset_unless_it_must_be_set(tmp_path: Path) -> None:
    ports = read_ports(plant(tmp_path, "two_ports"))
    assert resolve_gid_index(ports, RAILS, "auto") == (
        None,
        (
            "mlx5_0 port 1: index 3 is RoCE v2 over 192.168.100.1",
            "mlx5_1 port 1: index 5 is RoCE v2 over 192.168.101.1",
        ),
    )
    with pytest.raises(ValueError, match="mlx5_0 needs 3, mlx5_1 needs 5: use a NCCL from 2.21 on"):
        resolve_gid_index(ports, RAILS, "always")
    assert resolve_gid_index((), RAILS, "always") == (None, ())


def only_link_local(name: str) -> dict[str, str | None]:
    """A GID table with the two entries that an interface without an IPv4 address has."""
    return {
        f"{PORT.format(name)}/{part}/{index}": None for part in ("gids", "gid_attrs/types") for index in range(2, 8)
    }


def test_a_second_rail_with_only_two_gids(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = info(capsys, plant(tmp_path, "two_ports", only_link_local("mlx5_1")))
    assert result["actions"][1] == (
        f"mlx5_1 port 1 ({B}) is ACTIVE with 200 Gb/s, RoCE MTU 4096 of 4096, twin of mlx5_0; none of its 2 GIDs is"
        " RoCE v2 over IPv4, so it needs an IPv4 address first."
    )
    ports = read_ports(str(tmp_path))
    with pytest.raises(ValueError, match=f"mlx5_1 port 1 has no RoCE v2 GID for 192.168.101.1 of {B} among its 2 GIDs"):
        resolve_gid_index(ports, RAILS, "auto")


def test_ipv6_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes = {
        **only_link_local("mlx5_0"),
        f"{PORT.format('mlx5_0')}/gids/2": "fd00:0000:0000:0000:0000:0000:0000:0001",
        f"{PORT.format('mlx5_0')}/gid_attrs/types/2": "RoCE v2",
    }
    result = info(capsys, plant(tmp_path, "one_port", changes))
    assert result["gids"] == []
    assert "none of its 3 GIDs is RoCE v2 over IPv4" in result["actions"][0]


def test_a_slow_link_and_a_lost_lane_are_named_with_how_much(tmp_path: Path) -> None:
    changes: dict[str, str | None] = {
        f"{PORT.format('rocep1s0f0')}/rate": "50 Gb/sec (2X HDR)",
        "class/infiniband/roceP2p1s0f0/device/current_link_width": "1",
    }
    ports = read_ports(plant(tmp_path, "four_ports", changes))
    assert port_problems([port for port in ports if port.active], 200, 4) == [
        f"roceP2p1s0f0 port 1 ({B}) has 1 PCIe lanes of the 4 needed: power the machine off and on again (a warm reboot"
        " is not enough).",
        f"rocep1s0f0 port 1 ({A}) has a link of 50 Gb/s, 25 % of the 200 Gb/s needed: check the speed of the switch"
        " port and the cable.",
    ]
    assert port_problems(ports, 0, 0) == [
        "roceP2p1s0f1 port 1 (enP2p1s0f1np1) is DOWN, needed is ACTIVE: check the cable and the switch port.",
        "rocep1s0f1 port 1 (enp1s0f1np1) is DOWN, needed is ACTIVE: check the cable and the switch port.",
    ]
    changes = {"class/infiniband/mlx5_0/device/current_link_width": None}
    (port, *_more) = read_ports(plant(tmp_path / "unknown", "two_ports", changes))
    assert port_problems([port], 0, 4) == [
        f"mlx5_0 port 1 ({A}) does not tell its PCIe lanes (current_link_width), needed are 4."
    ]


def test_a_device_of_two_ports_has_an_interface_for_each(tmp_path: Path) -> None:
    base = "class/infiniband/mlx5_0"
    changes: dict[str, str | None] = {
        f"{base}/ports/2/state": "4: ACTIVE",
        f"{base}/ports/2/link_layer": "Ethernet",
        f"{base}/device/net/ens2/dev_port": "1",
    }
    ports = read_ports(plant(tmp_path, "one_port", changes))
    assert [(port.port, port.netdevs) for port in ports] == [(1, ("ens1",)), (2, ("ens2",))]
    assert nccl_environment(ports, ["ens1", "ens2"])[0]["NCCL_IB_HCA"] == "=mlx5_0:1,mlx5_0:2"


@pytest.mark.parametrize(("netdev", "expected"), [(9000, 4096), (4192, 4096), (4191, 2048), (1500, 1024), (200, 0)])
def test_the_mtu_of_roce(netdev: int, expected: int) -> None:
    assert ib_mtu(netdev) == expected
