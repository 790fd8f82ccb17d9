# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who listens on a port that the rig needs."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest

from ansible_collections.sparkrig.serving.plugins.module_utils._ports import (
    Listener,
    connected_peers,
    in_the_way,
    listeners,
    peers,
    taken_ports,
)

HEADER = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"


def line(address: str, state: str = "0A") -> str:
    return f"   0: {address} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000     0        0 4711 1\n"


@pytest.mark.parametrize(
    ("entry", "address", "port"),
    [
        ("0B01620A:676F", "10.98.1.11", 26479),
        ("00000000:0016", "0.0.0.0", 22),
        ("00000000000000000000000000000000:0016", "::", 22),
        ("0000000000000000FFFF00000B01620A:676F", "10.98.1.11", 26479),
        ("00000000000000000000000001000000:0277", "::1", 631),
    ],
)
def test_the_kernels_table_is_read(entry: str, address: str, port: int) -> None:
    assert listeners(HEADER + line(entry) + line(entry, state="01")) == [Listener(address, port, "4711")]
    assert listeners("") == []


@pytest.mark.parametrize(
    ("listening", "wanted", "blocked"),
    [
        ("10.98.1.11", "10.98.1.11", True),
        ("0.0.0.0", "10.98.1.11", True),
        ("::", "10.98.1.11", True),
        ("10.98.0.11", "10.98.1.11", False),
        ("10.98.0.11", "0.0.0.0", True),
    ],
)
def test_another_address_is_not_in_the_way(listening: str, wanted: str, blocked: bool) -> None:
    assert in_the_way(Listener(listening, 5, ""), wanted, 5) is blocked
    assert not in_the_way(Listener(listening, 5, ""), wanted, 6)


def test_the_process_that_has_the_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        name = Path("/proc/self/comm").read_text().strip()
        sentence = f"port {port} on 127.0.0.1 is taken by process {os.getpid()} ({name})"
        assert taken_ports([f"127.0.0.1:{port}"], []) == [sentence]
        # What an earlier start of the rig left behind is ended, not refused.
        folder = str(Path(os.path.realpath(sys.executable)).parent)
        assert taken_ports([f"127.0.0.1:{port}"], [], folder) == []
    assert taken_ports([f"127.0.0.1:{port}"], []) == []


def test_a_unit_of_the_rig_may_have_its_port_and_an_unseen_owner_is_told(tmp_path: Path) -> None:
    net, process = tmp_path / "net", tmp_path / "812"
    (process / "fd").mkdir(parents=True)
    net.mkdir()
    (net / "tcp").write_text(HEADER + line("0B01620A:676F"))
    (process / "fd" / "3").symlink_to("socket:[4711]")
    (process / "comm").write_text("gcs_server\n")
    (process / "cgroup").write_text("1:name=systemd:/system.slice/sparkrig-ray.service\n")
    wanted = ["10.98.1.11:26479", "10.98.1.11:26480"]
    assert taken_ports(wanted, ["sparkrig-ray.service"], proc=str(tmp_path)) == []
    by_process = "port 26479 on 10.98.1.11 is taken by process 812 (gcs_server)"
    assert taken_ports(wanted, ["sparkrig-vllm.service"], proc=str(tmp_path)) == [by_process]
    (process / "fd" / "3").unlink()
    unseen = "port 26479 on 10.98.1.11 is taken by a process that cannot be seen from here"
    assert taken_ports(wanted, [], proc=str(tmp_path)) == [unseen]


def test_who_is_connected_to_a_port_is_known_by_address(tmp_path: Path) -> None:
    row = "   0: {} {} {} 00000000:00000000 00:00000000 00000000     0        0 4711 1\n"
    text = HEADER + "".join(
        row.format(*words)
        for words in (
            ("0B01620A:733D", "00000000:0000", "0A"),
            ("0B01620A:733D", "0C01620A:C350", "01"),
            ("0B01620A:733D", "0B01620A:C351", "01"),
            # Its own end of that connection, one that is closing, and another port.
            ("0B01620A:C351", "0B01620A:733D", "01"),
            ("0B01620A:733D", "0D01620A:C352", "06"),
            ("0B01620A:0016", "0E01620A:C353", "01"),
        )
    )
    assert peers(text, 29501) == {"10.98.1.11", "10.98.1.12"}
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "tcp").write_text(text)
    assert connected_peers(29501, str(tmp_path)) == {"10.98.1.11", "10.98.1.12"}
