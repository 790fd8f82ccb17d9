# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The values of variables that would take RoCE away, each with the reason. The one place where they stand.

Profiles, overrides, the inventory, ``fabric.env``, ``runtime.env`` and, at every start, the environment of the service
itself are held against these rules. The file is also put on the nodes as it is, so it imports nothing of Ansible.

Private to this collection: import it from nowhere else.
"""

from __future__ import annotations

import re
import typing as t

if t.TYPE_CHECKING:
    from collections.abc import Collection, Mapping

# They come from the node itself: a value for all nodes would be wrong on some of them.
PER_NODE_VARIABLES = frozenset(
    {
        "GLOO_SOCKET_IFNAME",
        "HOST_IP",
        "NCCL_IB_HCA",
        "NCCL_SOCKET_IFNAME",
        "VLLM_HOST_IP",
    }
)
SOCKET_VARIABLES = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME")
SLOW = "the ranks fall back to sockets, which costs more than half of the speed and is not reported"


def _entries(value: str) -> tuple[str, bool, list[str]]:
    """A list as NCCL reads it: the sign before it ("^" leaves out, "=" is exact), and the names without ports."""
    sign = value[:1] if value[:1] in ("^", "=") else ""
    rest = value[len(sign) :]
    exact = sign == "=" or rest.startswith("=")
    names = [entry.partition(":")[0].strip() for entry in rest.lstrip("=").split(",")]
    return sign, exact, [name for name in names if name]


def _missing(value: str, there: Collection[str]) -> list[str]:
    """The names in a list of NCCL's that fit nothing of what is there. Without "=" the beginning is enough."""
    sign, exact, names = _entries(value)
    if sign == "^":
        return []
    return [
        name for name in names if not any(name == other or (not exact and other.startswith(name)) for other in there)
    ]


def roce_problems(
    environment: Mapping[str, t.Any],
    where: str = "",
    shared: bool = False,
    interfaces: Collection[str] | None = None,
    devices: Collection[str] | None = None,
) -> list[str]:
    """What is wrong with these variables: one sentence each, without the full stop.

    *where* is put before every name, such as "environment.". *shared* says that all nodes get the same values.
    *interfaces* and *devices* (RDMA) are what the node has, None where nobody knows.
    """
    problems = []
    values = {name: str(value) for name, value in environment.items()}
    for name, value in values.items():
        what = f"{where}{name} is {value!r}"
        if name == "NCCL_IB_DISABLE" and value.strip() != "0":
            problems.append(f"{what}; it must stay '0': without RDMA {SLOW}")
        elif name == "NCCL_IB_GID_INDEX":
            problems.append(
                f"{what}; the right index differs by node and moves after a reboot (and NCCL reads an empty one as 0):"
                " take it out, it is resolved on each node at every start where it is needed"
            )
        elif name == "NCCL_NET" and value.strip().lower() == "socket":
            problems.append(f"{what}; it must not be: it forbids RDMA, so that {SLOW}")
        elif name in PER_NODE_VARIABLES and shared:
            problems.append(f"{what}, but {name} differs by node: role fabric sets it; take it out")
        elif name in (*SOCKET_VARIABLES, "NCCL_IB_HCA") and not _entries(value)[2]:
            problems.append(f"{what}, which names nothing; role fabric sets it: take it out")
        elif name in SOCKET_VARIABLES and interfaces is not None and _missing(value, interfaces):
            there = ", ".join(sorted(interfaces)) or "none"
            problems.append(
                f"{what}, but this node has no interface {', '.join(_missing(value, interfaces))} (it has {there}):"
                " the ranks would not find each other; run role fabric here, or take the value out"
            )
        elif name == "NCCL_IB_HCA" and devices is not None and _missing(value, devices):
            there = ", ".join(sorted(devices)) or "none"
            problems.append(
                f"{what}, but this node has no RDMA device {', '.join(_missing(value, devices))} (it has {there}):"
                f" {SLOW}; run role fabric here, or take the value out"
            )
    return problems


def text_problems(environment: Mapping[str, t.Any], where: str = "") -> list[str]:
    """What cannot be a variable in an environment file at all."""
    problems = []
    for name, value in environment.items():
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", str(name)):
            problems.append(f"{where}{name!s} is no name of a variable")
        elif re.search(r"[\x00-\x1f\x7f]", str(value)):
            problems.append(f"{where}{name} is {value!r}; a value is one line of printable text")
    return problems
