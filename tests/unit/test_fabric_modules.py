# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""fabric_bandwidth and fabric_probe as modules: what they refuse, and what they leave alone."""

from __future__ import annotations

import json
import typing as t
from pathlib import Path

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testing import patch_module_args

from ansible_collections.sparkrig.serving.plugins.module_utils._fabric import parse_rail
from ansible_collections.sparkrig.serving.plugins.module_utils._fabric_pairs import Measurement
from ansible_collections.sparkrig.serving.plugins.module_utils._rdma import read_ports
from ansible_collections.sparkrig.serving.plugins.modules import fabric_bandwidth, fabric_probe
from ansible_collections.sparkrig.serving.plugins.modules.fabric_probe import could_be_rail
from tests.fixtures.sysfs_tree import plant

A, B = "enp1s0f0np0", "enP2p1s0f0np0"
NODES = {"n1": {A: "10.1.0.1/24"}, "n2": {A: "10.1.0.2/24"}, "n3": {A: "10.1.0.3/24"}}


def call(module: t.Any, capsys: pytest.CaptureFixture[str], **arguments: t.Any) -> dict[str, t.Any]:
    with patch_module_args(arguments), pytest.raises(SystemExit):
        module.main()
    result: dict[str, t.Any] = json.loads(capsys.readouterr().out)
    return result


def test_a_node_plays_each_round_and_reports_its_pairs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    played: list[str] = []

    def serve(here: str, client: str, *_more: t.Any) -> None:
        played.append(f"{here} serves {client}")

    def measure(here: str, server: str, *_more: t.Any) -> Measurement:
        played.append(f"{here} asks {server}")
        return Measurement(here, server, "tcp", {A: 9.4}, 9.4, {A: 30.0})

    monkeypatch.setattr(fabric_bandwidth, "serve_pair", serve)
    monkeypatch.setattr(fabric_bandwidth, "measure_pair", measure)
    result = call(fabric_bandwidth, capsys, node="n2", nodes=NODES)
    assert sorted(played) == ["n2 asks n1", "n2 serves n3"]
    assert result["actions"] == [f"n2 to n1 by tcp: {A} 9.4 Gb/s and 30.0 us, all rails 9.4 Gb/s."]
    assert (result["rounds"], result["changed"]) == (3, False)
    slow = call(fabric_bandwidth, capsys, node="n2", nodes=NODES, thresholds={"tcp": {"rail_gbps": 10}})
    assert slow["msg"].startswith(f"n2 to n1 over {A}: 9.4 Gb/s, 6 % below the 10 needed.")

    def lost(*_all: t.Any) -> t.NoReturn:
        raise OSError("timed out")

    monkeypatch.setattr(fabric_bandwidth, "measure_pair", lost)
    assert (
        call(fabric_bandwidth, capsys, node="n2", nodes=NODES)["msg"] == "n2 and n1 could not be measured: timed out."
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"node": "n9", "nodes": NODES}, "node is 'n9', which is not among nodes (n1, n2, n3)."),
        (
            {"node": "n1", "nodes": {"n1": {A: "10.1.0.0/24"}}},
            f"fabric_addresses['{A}'] is '10.1.0.0/24', which is the",
        ),
    ],
)
def test_what_cannot_be_measured(arguments: dict[str, t.Any], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(fabric_bandwidth, capsys, **arguments)["msg"].startswith(said)


def test_alone_or_in_check_mode_nothing_is_sent(capsys: pytest.CaptureFixture[str]) -> None:
    alone = call(fabric_bandwidth, capsys, node="n1", nodes={"n1": NODES["n1"]})
    assert alone["actions"] == ["Nothing was sent: there is no other node."]
    checked = call(fabric_bandwidth, capsys, node="n1", nodes=NODES, _ansible_check_mode=True)
    assert checked["actions"] == ["Nothing was sent: 3 rounds would be measured."]


def test_every_end_knows_its_device_and_gid(tmp_path: Path) -> None:
    ports = read_ports(plant(tmp_path, "two_ports"))
    own = [parse_rail(A, "192.168.100.1/24"), parse_rail(B, "192.168.101.1/24"), parse_rail("eth9", "10.9.9.1/24")]
    theirs = [parse_rail("mlx", "192.168.101.2/24"), parse_rail("other", "192.168.100.2/24")]
    ends = fabric_bandwidth.ends_of(own, theirs, ports)
    assert [(end.own.interface, end.peer.interface, end.device, end.gid_index) for end in ends] == [
        (A, "other", "mlx5_0", 3),
        (B, "mlx", "mlx5_1", 5),
    ]


def test_what_could_be_a_rail(tmp_path: Path) -> None:
    for name, extra in {A: "", "br0": "bridge", "slave": "master", "wifi": "phy80211", "tap": "tun_flags"}.items():
        folder = tmp_path / "class" / "net" / name
        folder.mkdir(parents=True)
        (folder / "type").write_text("1\n")
        if extra:
            (folder / extra).mkdir()
    (tmp_path / "class" / "net" / "lo").mkdir()
    (tmp_path / "class" / "net" / "lo" / "type").write_text("772\n")
    names = [A, "br0", "slave", "wifi", "tap", "lo", "absent"]
    assert [name for name in names if could_be_rail(str(tmp_path), name)] == [A]


def test_management_and_absent_interfaces_are_never_probed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    commands: list[list[str]] = []
    links = [
        {"ifname": name, "flags": [], "mtu": 1500, "addr_info": [{"family": "inet", "local": ip, "prefixlen": 24}]}
        for name, ip in (("eth0", "10.0.0.1"), ("eth1", "10.0.1.1"), (A, "10.1.0.1"))
    ]

    def run_command(_module: t.Any, argv: list[str], **_more: t.Any) -> tuple[int, str, str]:
        commands.append(argv)
        return 0, json.dumps(links if "addr" in argv else [{"dev": "eth0"}]), ""

    monkeypatch.setattr(AnsibleModule, "run_command", run_command)
    monkeypatch.setattr(AnsibleModule, "get_bin_path", lambda _module, _name, **_more: None)
    monkeypatch.setattr(fabric_probe, "ssh_server", lambda _pid: "10.0.1.1")
    for name in ("eth0", "eth1", A):
        (tmp_path / "class" / "net" / name).mkdir(parents=True)
        (tmp_path / "class" / "net" / name / "type").write_text("1\n")
    options = {"node": "n1", "run": "x", "sys_root": str(tmp_path)}
    result = call(fabric_probe, capsys, _ansible_check_mode=True, **options)
    assert [end["interface"] for end in result["ends"]] == [A]
    assert all(argv[:2] == ["ip", "-json"] for argv in commands)
    assert (
        "interfaces names eth0, eth1, which carries the management"
        in call(fabric_probe, capsys, interfaces=["eth0", "eth1"], **options)["msg"]
    )
    assert call(fabric_probe, capsys, interfaces=["enp9"], **options)["msg"] == (
        f"interfaces names enp9, which this node does not have; it has {A}, eth0, eth1."
    )
