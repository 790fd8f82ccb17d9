# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rule about values that take RoCE away: one function, and everybody who has to ask it."""

from __future__ import annotations

import re
import typing as t
from pathlib import Path

import pytest

from ansible_collections.sparkrig.serving.plugins.module_utils._fabric import parse_rails, render_environment
from ansible_collections.sparkrig.serving.plugins.module_utils._fabric_start import refusals
from ansible_collections.sparkrig.serving.plugins.module_utils._profile import _check_environment
from ansible_collections.sparkrig.serving.plugins.module_utils._roce_rules import roce_problems, text_problems
from ansible_collections.sparkrig.serving.plugins.module_utils._runtime_environment import environment_text

SLOW = "the ranks fall back to sockets, which costs more than half of the speed and is not reported"


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"NCCL_IB_DISABLE": "1"}, f"NCCL_IB_DISABLE is '1'; it must stay '0': without RDMA {SLOW}"),
        ({"NCCL_IB_DISABLE": 1}, f"NCCL_IB_DISABLE is '1'; it must stay '0': without RDMA {SLOW}"),
        ({"NCCL_IB_DISABLE": ""}, f"NCCL_IB_DISABLE is ''; it must stay '0': without RDMA {SLOW}"),
        ({"NCCL_NET": "Socket"}, f"NCCL_NET is 'Socket'; it must not be: it forbids RDMA, so that {SLOW}"),
        (
            {"NCCL_IB_GID_INDEX": ""},
            "NCCL_IB_GID_INDEX is ''; the right index differs by node and moves after a reboot (and NCCL reads an empty"
            " one as 0): take it out, it is resolved on each node at every start where it is needed",
        ),
        ({"NCCL_IB_HCA": "="}, "NCCL_IB_HCA is '=', which names nothing; role fabric sets it: take it out"),
        ({"GLOO_SOCKET_IFNAME": ""}, "GLOO_SOCKET_IFNAME is '', which names nothing; role fabric sets it: take it out"),
        (
            {"NCCL_SOCKET_IFNAME": "eth0,enp9"},
            "NCCL_SOCKET_IFNAME is 'eth0,enp9', but this node has no interface enp9 (it has enp1s0f0np0, eth0): the"
            " ranks would not find each other; run role fabric here, or take the value out",
        ),
        (
            {"NCCL_IB_HCA": "=mlx5_1:1,mlx5_10"},
            "NCCL_IB_HCA is '=mlx5_1:1,mlx5_10', but this node has no RDMA device mlx5_1 (it has mlx5_10): "
            f"{SLOW}; run role fabric here, or take the value out",
        ),
    ],
)
def test_each_value_has_its_reason(environment: dict[str, t.Any], said: str) -> None:
    assert roce_problems(environment, interfaces=["eth0", "enp1s0f0np0"], devices=["mlx5_10"]) == [said]


@pytest.mark.parametrize(
    "environment",
    [
        {"NCCL_IB_DISABLE": "0", "NCCL_NET": "IB", "NCCL_IB_TC": "106"},
        {"NCCL_SOCKET_IFNAME": "enp1", "NCCL_IB_HCA": "mlx5_1"},  # without "=" the beginning is enough
        {"NCCL_SOCKET_IFNAME": "^docker,lo", "NCCL_IB_HCA": "^mlx5_7"},
        {"NCCL_SOCKET_IFNAME": "=enp1s0f0np0", "NCCL_IB_HCA": "=mlx5_10:1"},
        {},
    ],
)
def test_what_is_right_passes(environment: dict[str, t.Any]) -> None:
    assert roce_problems(environment, interfaces=["eth0", "enp1s0f0np0"], devices=["mlx5_10"]) == []


def test_what_differs_by_node_is_refused_where_all_get_the_same() -> None:
    assert roce_problems({"NCCL_IB_HCA": "mlx5_0"}, where="environment.", shared=True) == [
        "environment.NCCL_IB_HCA is 'mlx5_0', but NCCL_IB_HCA differs by node: role fabric sets it; take it out"
    ]
    assert roce_problems({"NCCL_IB_HCA": "mlx5_0"}) == []


def test_what_is_no_variable_at_all() -> None:
    assert text_problems({"A B": "1", "C": "1\n2", "D": "1"}, "x.") == [
        "x.A B is no name of a variable",
        "x.C is '1\\n2'; a value is one line of printable text",
    ]


BAD: list[dict[str, str]] = [
    {"NCCL_IB_DISABLE": "1"},
    {"NCCL_IB_DISABLE": ""},
    {"NCCL_IB_GID_INDEX": ""},
    {"NCCL_IB_GID_INDEX": "3"},
    {"NCCL_SOCKET_IFNAME": "nowhere0"},
]
RAILS = parse_rails({"enp1s0f0np0": "10.98.1.11/24"}, 9000)


def in_profile(environment: dict[str, str]) -> None:
    _check_environment(environment)


def in_runtime(environment: dict[str, str]) -> None:
    environment_text(environment)


def in_inventory(environment: dict[str, str]) -> None:
    render_environment(RAILS, {}, environment, interfaces=["enp1s0f0np0"], devices=[])


def in_service(environment: dict[str, str]) -> None:
    problems = refusals(environment, None, ["enp1s0f0np0"], "/nonexistent")
    if problems:
        raise ValueError(problems[0])


@pytest.mark.parametrize("environment", BAD, ids=str)
@pytest.mark.parametrize("place", [in_profile, in_runtime, in_inventory, in_service])
def test_every_place_refuses_every_value(
    place: t.Callable[[dict[str, str]], None], environment: dict[str, str]
) -> None:
    (name,) = environment
    with pytest.raises(ValueError, match=re.escape(f"{name} is {environment[name]!r}")):
        place(environment)


def test_the_rule_stands_in_one_place() -> None:
    """Outside of it, only code that writes the variables may name them."""
    folder = Path(__file__).parents[2] / "plugins"
    named = {
        path.name
        for path in folder.rglob("*.py")
        if re.search(r"NCCL_IB_DISABLE|NCCL_IB_GID_INDEX", path.read_text(encoding="utf-8"))
    }
    assert named <= {"_roce_rules.py", "_fabric.py", "_fabric_start.py", "_rdma.py", "fabric_rails.py"}
