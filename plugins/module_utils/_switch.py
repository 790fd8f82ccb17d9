# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The switch's half of the fabric, as text: what a MikroTik CRS812 has to be told, and what its export says of it.

Nothing here speaks to a switch. RouterOS 7.17 or newer.

Private to this collection: import it from nowhere else.
"""

from __future__ import annotations

import re
import shlex
import typing as t
from dataclasses import dataclass

from ansible_collections.sparkrig.serving.plugins.module_utils._fabric_lossless import CNP_DSCP, DATA_DSCP, PRIORITY

# What the switch's own headers need beyond the packets.
L2_HEADROOM_BYTES = 216
CNP_CLASS = 6
ETHERNET = "/interface ethernet"
SWITCH = "/interface ethernet switch"
PROFILE = f"{SWITCH} qos profile"
QUEUE = f"{SWITCH} qos tx-manager queue"
PFC = f"{SWITCH} qos priority-flow-control"
QOS_PORT = f"{SWITCH} qos port"


@dataclass(frozen=True)
class Line:
    """One line of an export: its menu, what it sets, and to what."""

    menu: str
    target: str
    values: t.Mapping[str, str]


def guide(ports: t.Sequence[str], mtu: int, speed: str, lossless: bool) -> str:
    """The commands for these ports, with the reason for each part."""
    lines = ["# Packets of full size: the default L2 MTU of 1584 drops them without a word.", ETHERNET]
    for port in ports:
        how = f"auto-negotiation=no speed={speed} " if speed else ""
        lines.append(f"set [ find default-name={port} ] {how}mtu={mtu} l2mtu={mtu + L2_HEADROOM_BYTES}")
    if lossless:
        lines += [
            f"# RDMA's data is DSCP {DATA_DSCP} and must not be dropped; its congestion notices are DSCP {CNP_DSCP}.",
            PROFILE,
            f"add name=roce dscp={DATA_DSCP} traffic-class={PRIORITY}",
            f"add name=cnp dscp={CNP_DSCP} traffic-class={CNP_CLASS}",
            "# Mark before the queue is full; notices before everything else.",
            QUEUE,
            f"set [ find traffic-class={PRIORITY} ] ecn=yes",
            f"set [ find traffic-class={CNP_CLASS} ] schedule=strict-priority",
            "# Pause the sender of this one class instead of dropping.",
            PFC,
            f"add name=roce traffic-class={PRIORITY} rx=yes tx=yes",
            QOS_PORT,
        ]
        rate = f" egress-rate-queue{PRIORITY}={speed.partition('-')[0]}" if speed else ""
        lines += [f"set {port} trust-l3=keep pfc=roce{rate}" for port in ports]
        lines += ["# Without this all of the above is inert.", SWITCH, "set switch1 qos-hw-offloading=yes"]
    return "\n".join(lines) + "\n"


def parse_export(text: str) -> list[Line]:
    """The settings in the output of ``/export``; ValueError when it is none."""
    lines = []
    menu = ""
    for raw in re.sub(r"\\\r?\n\s*", "", text).splitlines():
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        if line.startswith("/"):
            # A menu alone on its line, or with the command behind it.
            parts = re.split(r"\s+(?=(?:set|add)\s)", line, maxsplit=1)
            menu = parts[0].strip()
            if len(parts) == 1:
                continue
            line = parts[1]
        try:
            words = shlex.split(line.replace("[ ", "[").replace(" ]", "]"))
        except ValueError:
            raise ValueError(f"the export has the line {line!r}, which cannot be read") from None
        found = re.search(r"\[\s*find\s+(.*?)\s*\]", line)
        selected = dict(word.split("=", 1) for word in shlex.split(found.group(1)) if "=" in word) if found else {}
        outside = shlex.split(re.sub(r"\[.*?\]", "", line))
        values = {**selected, **dict(word.split("=", 1) for word in outside if "=" in word)}
        plain = [word for word in outside[1:] if "=" not in word]
        target = plain[0] if plain else selected.get("default-name", selected.get("name", values.get("name", "")))
        if words[0] in ("set", "add"):
            lines.append(Line(menu, target, values))
    if not any(line.menu.startswith("/interface") for line in lines):
        raise ValueError("it has no line of /interface; take the output of `/export` (RouterOS 7.17 or newer)")
    return lines


def _of(lines: t.Sequence[Line], menu: str, **wanted: str) -> list[Line]:
    return [
        line
        for line in lines
        if line.menu == menu and all(line.values.get(key) == value for key, value in wanted.items())
    ]


def switch_problems(text: str, ports: t.Sequence[str], mtu: int, speed: str, lossless: bool) -> list[str]:
    """What in an export is not as the rails need it: the setting, what it is, what is needed."""
    lines = parse_export(text)
    problems = []
    for port in ports:
        # An export leaves out what is at its default, so a missing value is the default.
        values: dict[str, str] = {}
        for line in _of(lines, ETHERNET):
            if port in (line.target, line.values.get("default-name"), line.values.get("name")):
                values.update(line.values)
        for key, needed, default in (("mtu", mtu, 1500), ("l2mtu", mtu + L2_HEADROOM_BYTES, 1584)):
            seen = values.get(key, str(default))
            if not seen.isdigit() or int(seen) < needed:
                problems.append(f"{port} has {key} {seen}, needed is {needed} or more.")
        if speed and values.get("speed") != speed:
            problems.append(f"{port} has speed {values.get('speed', 'by negotiation')}, needed is {speed}.")
        if speed and values.get("auto-negotiation", "yes") != "no":
            problems.append(f"{port} has auto-negotiation on, needed is off with a fixed speed.")
        if lossless:
            qos = {
                key: value for line in _of(lines, QOS_PORT) if line.target == port for key, value in line.values.items()
            }
            if qos.get("trust-l3", "ignore") == "ignore":
                problems.append(f"{port} has trust-l3 {qos.get('trust-l3', 'ignore')}, needed is keep.")
            names = [
                line.values.get("name")
                for line in _of(lines, PFC, **{"traffic-class": str(PRIORITY), "rx": "yes", "tx": "yes"})
            ]
            if qos.get("pfc") is None or qos["pfc"] not in names:
                problems.append(
                    f"{port} has pfc {qos.get('pfc', 'none')}, needed is a profile with traffic-class={PRIORITY} rx=yes"
                    " tx=yes."
                )
    if lossless:
        for dscp, traffic_class in ((DATA_DSCP, PRIORITY), (CNP_DSCP, CNP_CLASS)):
            classes = [line.values.get("traffic-class", "0") for line in _of(lines, PROFILE, dscp=str(dscp))]
            if str(traffic_class) not in classes:
                problems.append(
                    f"DSCP {dscp} goes to traffic class {', '.join(classes) or '0'}, needed is {traffic_class} (a qos"
                    " profile)."
                )
        if not _of(lines, QUEUE, **{"traffic-class": str(PRIORITY), "ecn": "yes"}):
            problems.append(f"The queue of traffic class {PRIORITY} has ecn off, needed is ecn=yes.")
        if not _of(lines, SWITCH, **{"qos-hw-offloading": "yes"}):
            problems.append(
                "The switch has qos-hw-offloading off, needed is yes: without it no QoS setting does anything."
            )
    return problems
