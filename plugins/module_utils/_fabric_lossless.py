# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The node's half of a lossless fabric: DSCP 26 to priority 3, PFC on it alone, ECN for it, as a systemd unit.

Neither tool's settings survive a reboot, so the unit says them again at every start. The switch's half is in
``_switch.py``: both, or nothing.

Private to this collection: import it from nowhere else.
"""

from __future__ import annotations

import typing as t

from ._fabric import HEADER, LOSSLESS_TRAFFIC_CLASS

UNIT = "sparkrig-lossless.service"
DATA_DSCP = 26
CNP_DSCP = 48
PRIORITY = 3
PRIORITIES = range(8)


def probe(tool: str, interface: str) -> list[str]:
    """The command that only reads, and fails where the interface knows no DCB."""
    return ["mlnx_qos", "-i", interface] if tool == "mlnx_qos" else ["dcb", "-json", "pfc", "show", "dev", interface]


def settings(tool: str, path: str, interface: str) -> list[str]:
    """The commands for one interface; *path* is where the tool is."""
    if tool == "mlnx_qos":
        pfc = ",".join("1" if priority == PRIORITY else "0" for priority in PRIORITIES)
        return [f"{path} -i {interface} --trust dscp --pfc {pfc} --dscp2prio set,{DATA_DSCP},{PRIORITY}"]
    pfc = " ".join(f"{priority}:{'on' if priority == PRIORITY else 'off'}" for priority in PRIORITIES)
    return [
        f"{path} app replace dev {interface} dscp-prio {DATA_DSCP}:{PRIORITY}",
        f"{path} pfc set dev {interface} prio-pfc {pfc}",
    ]


def render_unit(tool: str, path: str, interfaces: t.Sequence[str], devices: t.Sequence[str]) -> str:
    """The unit that makes the rails lossless at every boot."""
    lines = [HEADER.rstrip(), "[Unit]", "Description=Lossless RoCE on the rails: DSCP, PFC and ECN"]
    lines += [
        "After=network.target systemd-networkd.service NetworkManager.service",
        "Before=sparkrig-ray.service sparkrig-vllm.service",
        "",
        "[Service]",
        "Type=oneshot",
        "RemainAfterExit=yes",
    ]
    for interface in interfaces:
        lines += [f"ExecStart={command}" for command in settings(tool, path, interface)]
        # Not every driver has these files; without them the firmware's defaults hold, which have ECN on.
        for side in ("roce_np", "roce_rp"):
            lines.append(f"ExecStart=-/bin/sh -c 'echo 1 > /sys/class/net/{interface}/ecn/{side}/enable/{PRIORITY}'")
        lines.append(f"ExecStart=-/bin/sh -c 'echo {CNP_DSCP} > /sys/class/net/{interface}/ecn/roce_np/cnp_dscp'")
    lines += [
        f"ExecStart=-/bin/sh -c 'echo {LOSSLESS_TRAFFIC_CLASS} > /sys/class/infiniband/{device}/tc/1/traffic_class'"
        for device in devices
    ]
    return "\n".join([*lines, "", "[Install]", "WantedBy=multi-user.target"]) + "\n"
