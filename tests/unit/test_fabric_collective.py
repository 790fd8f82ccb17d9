# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Collectives and NCCL's own log: what is measured, what fails, and what it says."""

from __future__ import annotations

import json
import os
import re
import sys
import typing as t
from pathlib import Path

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testing import patch_module_args

from ansible_collections.sparkrig.serving.plugins.module_utils._fabric_collective import (
    BUFFER_LIMIT_BYTES,
    PROBE,
    Collective,
    Transport,
    collective_problems,
    parse_environment,
    parse_probe,
    parse_transport,
    transport_problems,
    wanted_devices,
)
from ansible_collections.sparkrig.serving.plugins.modules import fabric_collective

IB = """\
spark1:4242:4242 [0] NCCL INFO NCCL_SOCKET_IFNAME set by environment to enp1s0f0np0
spark1:4242:4242 [0] NCCL INFO Bootstrap: Using enp1s0f0np0:192.168.100.1<0>
spark1:4242:4260 [0] NCCL INFO NET/IB : Using [0]rocep1s0f0:1/RoCE [1]roceP2p1s0f0:1/RoCE [RO]; OOB enp1s0f0np0
spark1:4242:4260 [0] NCCL INFO Using network IB
spark1:4242:4300 [0] NCCL INFO Channel 00/0 : 3[0] -> 0[0] [receive] via NET/IB/0
spark1:4242:4300 [0] NCCL INFO Channel 01/0 : 3[0] -> 0[0] [receive] via NET/IB/1
spark1:4242:4300 [0] NCCL INFO Channel 00/0 : 0[0] -> 1[0] [send] via NET/IB/0
"""
SOCKET = """\
spark1:4242:4260 [0] NCCL INFO NET/IB : No device found.
spark1:4242:4260 [0] NCCL INFO NET/Socket : Using [0]enp1s0f0np0:192.168.100.1<0>
spark1:4242:4260 [0] NCCL INFO Using network Socket
spark1:4242:4300 [0] NCCL INFO Channel 00/0 : 0[0] -> 1[0] [send] via NET/Socket/0
"""
BOTH = ["rocep1s0f0", "roceP2p1s0f0"]


def test_the_transport_of_a_log() -> None:
    seen = parse_transport(IB)
    assert seen == Transport("IB", ("rocep1s0f0:1", "roceP2p1s0f0:1"), {"NET/IB": 3})
    assert transport_problems(seen, BOTH) == []
    assert transport_problems(seen, ["rocep1s0f0:1"]) == []


def test_sockets_and_half_of_the_devices_are_named() -> None:
    (problem,) = transport_problems(parse_transport(SOCKET), BOTH)
    assert problem.startswith(
        "NCCL uses sockets (NET/Socket, 1 channels of it) and not RDMA, which costs more than half"
    )
    half = IB.replace(" [1]roceP2p1s0f0:1/RoCE", "")
    assert transport_problems(parse_transport(half), BOTH) == [
        "NCCL uses rocep1s0f0:1 and not roceP2p1s0f0: part of the bandwidth is lost."
    ]
    # Where there is no RDMA, sockets are all that there is.
    assert transport_problems(parse_transport(SOCKET), []) == []
    (silent,) = transport_problems(parse_transport("nothing"), BOTH)
    assert silent.startswith("NCCL's log names no transport")


def test_a_recorded_fall_back_to_sockets() -> None:
    log = Path(__file__).parents[1] / "fixtures" / "nccl" / "socket-2.28.9.txt"
    seen = parse_transport(log.read_text(encoding="utf-8"))
    # It says "NET/IB : Using" too, with no device behind it.
    assert seen == Transport("Socket", (), {"NET/Socket": 4})
    (problem,) = transport_problems(seen, BOTH)
    assert problem.startswith("NCCL uses sockets (NET/Socket, 4 channels of it) and not RDMA")


def test_what_the_environment_asks_for() -> None:
    assert wanted_devices("NCCL_IB_DISABLE=0\nNCCL_IB_HCA==rocep1s0f0,roceP2p1s0f0\n") == BOTH
    assert wanted_devices("NCCL_IB_HCA=mlx5_0:1\n") == ["mlx5_0:1"]
    assert wanted_devices("NCCL_IB_DISABLE=0\n") == []
    text = '# x\nA=1\nB="say \\"hi\\" \\\\ now"\nC=\nD==e\n'
    assert parse_environment(text) == {"A": "1", "B": 'say "hi" \\ now', "C": "", "D": "=e"}


def collective(backend: str = "nccl", best: float = 23.74, small: float = 67.1, right: bool = True) -> Collective:
    return Collective(backend, 0, right, small, {1 << 20: 1.0, 1 << 30: best})


@pytest.mark.parametrize(
    ("seen", "nodes", "said"),
    [
        (collective(), 2, []),
        (
            collective(best=3.04),
            2,
            [
                "NCCL's all-gather over 2 nodes reaches 3.04 GB/s, 86 % below the 21.875 needed. Run the pairs"
                " (fabric_bandwidth) to find the rail."
            ],
        ),
        (collective(best=3.04), 4, []),  # no threshold was given for four
        (
            collective(small=300.0),
            2,
            ["NCCL's all-reduce of 10 KiB over 2 nodes takes 300.0 us, 200 % above the 100 allowed."],
        ),
        (collective(right=False), 4, ["The collectives gave wrong numbers: the fabric or the runtime damages data."]),
        (collective(backend="gloo", best=0.1), 2, []),
    ],
)
def test_thresholds_by_topology(seen: Collective, nodes: int, said: list[str]) -> None:
    assert collective_problems(seen, nodes, {"2": 21.875}, {2: 100}) == said


class Ran:
    """What the module started, and what that printed."""

    def __init__(self) -> None:
        self.argv: list[str] = []
        self.environment: dict[str, str] = {}
        self.answer: tuple[int, str, str] = (0, "", "")
        self.log = ""


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> Ran:
    fake = Ran()

    def run_command(_module: t.Any, argv: list[str], environ_update: dict[str, str]) -> tuple[int, str, str]:
        fake.argv, fake.environment = argv, environ_update
        if fake.log:
            Path(environ_update["NCCL_DEBUG_FILE"].replace("%h", "h").replace("%p", "1")).write_text(fake.log)
        return fake.answer

    monkeypatch.setattr(AnsibleModule, "run_command", run_command)
    return fake


def module(capsys: pytest.CaptureFixture[str], **arguments: t.Any) -> dict[str, t.Any]:
    with patch_module_args(arguments), pytest.raises(SystemExit):
        fabric_collective.main()
    result: dict[str, t.Any] = json.loads(capsys.readouterr().out)
    return result


ANSWER = {
    "backend": "nccl",
    "rank": 1,
    "right": True,
    "all_reduce_small_us": 67.1,
    "all_gather_gbytes_per_s": {"1048576": 1.0, "1073741824": 23.74},
}


def test_a_rank_runs_with_the_environment_of_the_services(
    tmp_path: Path, ran: Ran, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "fabric.env").write_text("NCCL_IB_DISABLE=0\nNCCL_IB_HCA==rocep1s0f0,roceP2p1s0f0\n")
    ran.answer, ran.log = (0, f"noise\nSPARKRIG {json.dumps(ANSWER)}\n", ""), IB
    python = Path(sys.executable)
    options = {
        "rank": 1,
        "world": 2,
        "address": "10.0.0.1",
        "python": str(python),
        "environment_files": [str(tmp_path / "fabric.env"), str(tmp_path / "absent.env")],
    }
    result = module(capsys, **options, min_gbytes_per_s={"2": 21.875})
    assert result["actions"] == [
        "nccl over 2 nodes: all-gather 23.74 GB/s, all-reduce of 10 KiB 67.1 us.",
        "NCCL uses IB on rocep1s0f0:1, roceP2p1s0f0:1: 3 channels via NET/IB.",
    ]
    assert ran.argv[:4] == ["timeout", "--kill-after=5", "120", str(python)]
    assert ran.argv[-6:] == ["1", "2", "10.0.0.1", "29555", "1073741824", "120"]
    assert ran.environment["NCCL_IB_HCA"] == "=rocep1s0f0,roceP2p1s0f0"
    ran.log = SOCKET
    assert module(capsys, **options)["msg"].startswith("NCCL uses sockets")
    ran.answer = (1, "", "Traceback\nRuntimeError: no route\n")
    assert module(capsys, **options)["msg"] == (
        "Rank 1 of 2 ended with rc 1: RuntimeError: no route. The other ranks wait for it."
    )
    ran.answer = (124, "", "")
    assert module(capsys, **options)["msg"].startswith("Rank 1 of 2 took longer than 120 s.")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "address is empty"),
        ({"address": "10.0.0.1", "max_bytes": BUFFER_LIMIT_BYTES + 1}, "max_bytes is 2000000001; it must be from 1 to"),
        (
            {"address": "10.0.0.1", "python": "/nowhere/python"},
            "/nowhere/python is not there; the collectives run from",
        ),
    ],
)
def test_what_cannot_run(arguments: dict[str, t.Any], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert module(capsys, **arguments)["msg"].startswith(said)


def test_the_newest_log_of_the_served_model_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "fabric.env").write_text("NCCL_IB_HCA==rocep1s0f0,roceP2p1s0f0\n")
    logs = tmp_path / "nccl"
    logs.mkdir()
    options = {"mode": "transport", "environment_files": [str(tmp_path / "fabric.env")], "log_folder": str(logs)}
    assert module(capsys, **options)["msg"].startswith("NCCL's log names no transport")
    for age, (name, text) in enumerate((("empty", "hello"), ("new", IB), ("old", SOCKET))):
        (logs / name).write_text(text)
        os.utime(logs / name, (1000 - age, 1000 - age))
    assert module(capsys, **options)["network"] == "IB"
    os.utime(logs / "old", (2000, 2000))
    assert module(capsys, **options)["msg"].startswith("NCCL uses sockets (NET/Socket, 1 channels of it)")


def test_the_probe_is_a_program_and_its_answer_is_read() -> None:
    compile(PROBE, "probe", "exec")
    assert parse_probe(f"x\nSPARKRIG {json.dumps(ANSWER)}\n").best_gbytes_per_s == 23.74
    with pytest.raises(ValueError, match=re.escape("it printed nothing")):
        parse_probe(" \n")
