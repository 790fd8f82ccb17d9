# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""RDMA devices from sysfs trees that are shaped like a Spark's."""

from __future__ import annotations

from pathlib import Path

from ansible_collections.sparkrig.serving.plugins.module_utils._rdma import nccl_environment, read_ports

RAILS = ["enp1s0f0np0", "enP2p1s0f0np0"]


def device(root: Path, name: str, netdev: str, pci: str, state: str = "4: ACTIVE", port: int = 1) -> None:
    base = root / "class" / "infiniband" / name
    (base / "device" / "net" / netdev).mkdir(parents=True, exist_ok=True)
    (base / "device" / "uevent").write_text(f"DRIVER=mlx5_core\nPCI_SLOT_NAME={pci}\n")
    folder = base / "ports" / str(port)
    folder.mkdir(parents=True)
    (folder / "state").write_text(f"{state}\n")
    (folder / "rate").write_text("100 Gb/sec (2X NDR)\n")
    (folder / "link_layer").write_text("Ethernet\n")


def spark(root: Path, twin_state: str = "4: ACTIVE") -> None:
    device(root, "rocep1s0f0", "enp1s0f0np0", "0000:01:00.0")
    device(root, "roceP2p1s0f0", "enP2p1s0f0np0", "0002:01:00.0", twin_state)
    device(root, "rocep1s0f1", "enp1s0f1np1", "0000:01:00.1", "1: DOWN")
    device(root, "roceP2p1s0f1", "enP2p1s0f1np1", "0002:01:00.1", "1: DOWN")


def test_a_spark_names_both_twins(tmp_path: Path) -> None:
    spark(tmp_path)
    ports = read_ports(str(tmp_path))
    assert [(port.device, port.active, port.rate_gbps, port.link_layer, port.pci) for port in ports][:2] == [
        ("roceP2p1s0f0", True, 100, "Ethernet", "0002:01:00.0"),
        ("roceP2p1s0f1", False, 100, "Ethernet", "0002:01:00.1"),
    ]
    assert nccl_environment(ports, RAILS) == (
        {
            "NCCL_IB_HCA": "=rocep1s0f0,roceP2p1s0f0",
            "NCCL_IB_ADDR_FAMILY": "AF_INET",
            "NCCL_IB_ROCE_VERSION_NUM": "2",
        },
        ("NCCL uses rocep1s0f0, roceP2p1s0f0.",),
    )


def test_no_rdma_is_said(tmp_path: Path) -> None:
    assert nccl_environment(read_ports(str(tmp_path)), RAILS) == (
        {},
        ("This node has no RDMA device: NCCL_IB_HCA is left out, and NCCL will use sockets.",),
    )


def test_a_port_that_is_down_is_left_out_and_said(tmp_path: Path) -> None:
    spark(tmp_path, "1: DOWN")
    environment, sentences = nccl_environment(read_ports(str(tmp_path)), RAILS)
    assert environment["NCCL_IB_HCA"] == "=rocep1s0f0"
    assert sentences[0] == (
        "enP2p1s0f0np0 has RDMA, but roceP2p1s0f0 port 1 is DOWN: RoCE cannot use this rail until it is ACTIVE."
    )


def test_a_twin_without_a_rail_is_said(tmp_path: Path) -> None:
    spark(tmp_path)
    environment, sentences = nccl_environment(read_ports(str(tmp_path)), ["enP2p1s0f0np0"])
    assert environment["NCCL_IB_HCA"] == "=roceP2p1s0f0"
    assert sentences[0] == (
        "rocep1s0f0 (enp1s0f0np0) is the twin of roceP2p1s0f0 and has no rail: give it an address in a subnet of its "
        "own, or half of the bandwidth is lost."
    )


def test_no_rail_with_a_live_port(tmp_path: Path) -> None:
    device(tmp_path, "mlx5_0", "other", "0000:01:00.0")
    environment, sentences = nccl_environment(read_ports(str(tmp_path)), ["enp1s0f0np0"])
    assert environment == {}
    assert sentences == (
        "enp1s0f0np0 has no RDMA device: RoCE cannot use this rail.",
        "NCCL_IB_HCA is left out: no rail has an active RDMA port; NCCL will use sockets.",
    )


def test_a_device_with_two_ports_is_named_with_the_port(tmp_path: Path) -> None:
    device(tmp_path, "mlx5_0", "eth1", "0000:01:00.0", "1: DOWN", 1)
    device(tmp_path, "mlx5_0", "eth1", "0000:01:00.0", "4: ACTIVE", 2)
    environment, _sentences = nccl_environment(read_ports(str(tmp_path)), ["eth1"])
    assert environment["NCCL_IB_HCA"] == "=mlx5_0:2"


def test_a_tree_with_holes_is_read(tmp_path: Path) -> None:
    (tmp_path / "class" / "infiniband" / "bare" / "ports" / "1").mkdir(parents=True)
    (tmp_path / "class" / "infiniband" / "bare" / "ports" / "notes").mkdir()
    (port,) = read_ports(str(tmp_path))
    assert (port.active, port.state, port.rate_gbps, port.netdevs, port.pci) == (False, "unknown", 0, (), "")
