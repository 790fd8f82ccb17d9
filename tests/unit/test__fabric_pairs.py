# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pairs of nodes: the tournament, perftest's outputs, and two real ends over the loopback."""

from __future__ import annotations

import itertools
import os
import re
import socket
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.sparkrig.serving.plugins.module_utils._fabric import Rail
from ansible_collections.sparkrig.serving.plugins.module_utils._fabric_pairs import (
    End,
    Measurement,
    choose,
    listening,
    measure_pair,
    parse_bandwidth,
    parse_latency,
    rounds,
    serve_pair,
    threshold_problems,
)

BW = """\
---------------------------------------------------------------------------------------
                    RDMA_Write BW Test
 Dual-port       : OFF          Device         : rocep1s0f0
 Number of qps   : 1            Transport type : IB
 Connection type : RC           Using SRQ      : OFF
 PCIe relax order: ON
 TX depth        : 128
 CQ Moderation   : 100
 Mtu             : 4096[B]
 Link type       : Ethernet
 GID index       : 3
 Max inline data : 0[B]
 rdma_cm QPs     : OFF
 Data ex. method : Ethernet
---------------------------------------------------------------------------------------
 local address: LID 0000 QPN 0x01a4 PSN 0x6f5d9e RKey 0x180d00 VAddr 0x00ffff8c2a0000
 GID: 00:00:00:00:00:00:00:00:00:00:255:255:192:168:100:02
 remote address: LID 0000 QPN 0x01a6 PSN 0x1b3bd RKey 0x180e00 VAddr 0x00ffffb05c0000
 GID: 00:00:00:00:00:00:00:00:00:00:255:255:192:168:100:01
---------------------------------------------------------------------------------------
 #bytes     #iterations    BW peak[Gb/sec]    BW average[Gb/sec]   MsgRate[Mpps]
 65536      426100           0.00               111.70             0.213051
---------------------------------------------------------------------------------------
"""
LAT = """\
---------------------------------------------------------------------------------------
                    RDMA_Write Latency Test
 GID index       : 3
---------------------------------------------------------------------------------------
 #bytes #iterations    t_min[usec]    t_max[usec]  t_typical[usec]    t_avg[usec]   t_stdev[usec]  99% percentile[usec]
 2       5000          1.40           6.29         1.47               1.48           0.09            1.63
---------------------------------------------------------------------------------------
"""


@given(st.integers(min_value=0, max_value=17))
def test_every_pair_plays_once_and_no_node_twice_in_a_round(count: int) -> None:
    nodes = [f"n{number:02}" for number in range(count)]
    plan = rounds(nodes)
    assert sorted(pair for pairs in plan for pair in pairs) == sorted(itertools.combinations(nodes, 2))
    for pairs in plan:
        playing = [node for pair in pairs for node in pair]
        assert len(playing) == len(set(playing))
    # As many rounds as nodes, not as pairs.
    assert len(plan) <= max(count, 1)


def test_four_nodes_take_three_rounds() -> None:
    assert [len(pairs) for pairs in rounds(["a", "b", "c", "d"])] == [2, 2, 2]


def test_recorded_outputs_of_perftest() -> None:
    assert parse_bandwidth(BW) == 111.70
    assert parse_latency(LAT) == 1.47


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("Couldn't connect to 10.0.0.1:18515\n", "ib_write_bw printed no Gb/sec: Couldn't connect to 10.0.0.1:18515"),
        (BW.replace("111.70", "n/a"), "perftest printed no line of numbers"),
        ("", "ib_write_bw printed no Gb/sec: nothing"),
    ],
)
def test_an_output_without_a_result(output: str, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        parse_bandwidth(output)


SEEN = Measurement("b", "a", "rdma", {"r1": 111.7, "r2": 92.0}, 95.0, {"r1": 1.47, "r2": 7.5})
WANTED = {"rdma": {"rail_gbps": 100, "total_gbps": 175, "latency_us": 5}, "tcp": {}}


def test_thresholds_fail_and_say_by_how_much() -> None:
    assert threshold_problems(SEEN, WANTED) == [
        "b to a over r2: 92.0 Gb/s, 8 % below the 100 needed. Check this cable, the speed of its switch port, and the"
        " PCIe lanes of both functions.",
        "b to a over all rails at once: 95.0 Gb/s, 46 % below the 175 needed. About half means that both rails share"
        " one function or a switch port of half the speed.",
        "b to a over r2: 7.5 us one way, 50 % above the 5 allowed.",
    ]
    assert threshold_problems(SEEN, {}) == []
    with pytest.raises(ValueError, match="fabric_bandwidth_thresholds.rdma has gbps; known are rail_gbps"):
        threshold_problems(SEEN, {"rdma": {"gbps": 1}})


@pytest.mark.parametrize(
    ("wanted", "own", "other", "expected"),
    [
        ("auto", True, True, "rdma"),
        ("auto", True, False, "tcp"),
        ("tcp", True, True, "tcp"),
        ("rdma", True, True, "rdma"),
    ],
)
def test_what_carries_the_measurement(wanted: str, own: bool, other: bool, expected: str) -> None:
    assert choose(wanted, own, other, "a", "b") == expected


def test_rdma_that_is_demanded_and_not_there() -> None:
    with pytest.raises(ValueError, match="b cannot measure RDMA: it has no device on every rail, or no perftest"):
        choose("rdma", True, False, "a", "b")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def two_ends(transport: str, rdma: bool, seconds: float, claimed: str = "b") -> Measurement:
    """A pair with two rails on two addresses of the loopback."""
    rails = [Rail("lo1", "127.0.1.1", 24), Rail("lo2", "127.0.2.1", 24)]
    peers = [Rail("lo1", "127.0.1.2", 24), Rail("lo2", "127.0.2.2", 24)]
    port = free_port()
    errors: list[Exception] = []

    def serve() -> None:
        ends = [End(own, peer, "rocep1s0f0", 3) for own, peer in zip(rails, peers)]
        try:
            serve_pair("a", claimed, ends, port, seconds, transport, rdma)
        except (OSError, ValueError) as error:
            errors.append(error)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        ends = [End(own, peer, "rocep1s0f0", 3) for own, peer in zip(peers, rails)]
        return measure_pair("b", "a", ends, port, seconds, transport, rdma)
    finally:
        thread.join(20)
        if errors:
            raise errors[0]


def test_a_pair_over_tcp() -> None:
    seen = two_ends("auto", False, 0.1)
    assert (seen.client, seen.server, seen.transport) == ("b", "a", "tcp")
    assert set(seen.rail_gbps) == set(seen.latency_us) == {"lo1", "lo2"}
    assert min(seen.rail_gbps.values()) > 0.01
    assert seen.total_gbps > 0.01
    assert 0 < min(seen.latency_us.values()) < 10_000


def test_a_pair_over_perftest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in that prints what was recorded: a server listens until its client came, as perftest does."""
    for name, output in (("ib_write_bw", BW), ("ib_write_lat", LAT)):
        (tmp_path / f"{name}.txt").write_text(output)
        (tmp_path / name).write_text(
            "#!/usr/bin/python3\nimport socket, sys\n"
            f"open({str(tmp_path / 'calls')!r}, 'a').write(' '.join(sys.argv[1:]) + '\\n')\n"
            "port = int(sys.argv[sys.argv.index('-p') + 1])\n"
            "if sys.argv[-1].count('.') == 3:\n"
            "    socket.create_connection(('127.0.0.1', port)).recv(1)\n"
            f"    print(open({str(tmp_path / name) + '.txt'!r}).read())\n"
            "else:\n"
            "    listener = socket.socket()\n"
            "    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)\n"
            "    listener.bind(('0.0.0.0', port))\n"
            "    listener.listen()\n"
            "    listener.accept()[0].send(b'x')\n"
        )
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    seen = two_ends("auto", True, 1)
    assert seen.transport == "rdma"
    assert seen.rail_gbps == {"lo1": 111.7, "lo2": 111.7}
    assert seen.total_gbps == 223.4
    assert seen.latency_us == {"lo1": 1.47, "lo2": 1.47}
    calls = (tmp_path / "calls").read_text().splitlines()
    assert all("-d rocep1s0f0 -i 1 -x 3 -p " in call for call in calls)
    # Each rail alone and both at once, at both ends; and the latency of each.
    assert len([call for call in calls if "--report_gbits -D 1" in call]) == 8
    assert len([call for call in calls if "-n 5000" in call]) == 4


def test_a_client_that_fails_leaves_nobody_listening(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "ib_write_bw"
    program.write_text(
        "#!/usr/bin/python3\nimport os, socket, sys\n"
        "if sys.argv[-1].count('.') == 3:\n"
        "    sys.exit('Failed to modify QP to RTR')\n"
        f"open({str(tmp_path / 'server')!r}, 'w').write(str(os.getpid()))\n"
        "listener = socket.create_server(('0.0.0.0', int(sys.argv[sys.argv.index('-p') + 1])))\n"
        "listener.accept()\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(OSError, match="the other end hung up"):
        two_ends("rdma", True, 1)
    assert not Path("/proc", (tmp_path / "server").read_text()).exists()


def test_swapped_rails_are_noticed() -> None:
    with pytest.raises(ValueError, match="b answered where c was expected; two rails are swapped"):
        two_ends("tcp", False, 0.1, claimed="c")


def test_who_listens(tmp_path: Path) -> None:
    table = tmp_path / "tcp"
    table.write_text(
        "  sl  local_address rem_address   st\n"
        "   0: 00000000:4853 00000000:0000 0A 0 0\n"
        "   1: 0100007F:4854 00000000:0000 01 0 0\n"
    )
    assert listening(0x4853, str(table))
    assert not listening(0x4854, str(table))
