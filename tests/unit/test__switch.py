# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The switch's settings: what the guide says, the checker accepts, and each thing left out is named."""

from __future__ import annotations

import pytest
from ansible.errors import AnsibleFilterError

from ansible_collections.sparkrig.serving.plugins.filter.switch import FilterModule
from ansible_collections.sparkrig.serving.plugins.module_utils._switch import guide, parse_export, switch_problems

PORTS = ["qsfp56-dd-1-1", "qsfp56-dd-1-5"]
SPEED = "200G-baseCR4"
GOOD = guide(PORTS, 9000, SPEED, True)


def test_the_checker_accepts_what_the_guide_says() -> None:
    assert switch_problems(GOOD, PORTS, 9000, SPEED, True) == []
    assert switch_problems(guide(PORTS, 9000, "", False), PORTS, 9000, "", False) == []


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "1-1 ] auto-negotiation=no",
            "1-1 ]",
            "qsfp56-dd-1-1 has auto-negotiation on, needed is off with a fixed speed.",
        ),
        (
            "1-5 ] auto-negotiation=no speed=200G-baseCR4",
            "1-5 ] auto-negotiation=no speed=100G-baseCR4",
            "qsfp56-dd-1-5 has speed 100G-baseCR4, needed is 200G-baseCR4.",
        ),
        ("mtu=9000 l2mtu=9216\nset", "l2mtu=9216\nset", "qsfp56-dd-1-1 has mtu 1500, needed is 9000 or more."),
        ("mtu=9000 l2mtu=9216\nset", "mtu=9000\nset", "qsfp56-dd-1-1 has l2mtu 1584, needed is 9216 or more."),
        (
            "dscp=26 traffic-class=3",
            "dscp=26 traffic-class=1",
            "DSCP 26 goes to traffic class 1, needed is 3 (a qos profile).",
        ),
        ("add name=cnp dscp=48 traffic-class=6\n", "", "DSCP 48 goes to traffic class 0, needed is 6 (a qos profile)."),
        ("ecn=yes", "ecn=no", "The queue of traffic class 3 has ecn off, needed is ecn=yes."),
        (
            "set qsfp56-dd-1-1 trust-l3=keep pfc=roce",
            "set qsfp56-dd-1-1 pfc=roce",
            "qsfp56-dd-1-1 has trust-l3 ignore, needed is keep.",
        ),
        (
            "set qsfp56-dd-1-1 trust-l3=keep pfc=roce",
            "set qsfp56-dd-1-1 trust-l3=keep",
            "qsfp56-dd-1-1 has pfc none, needed is a profile with traffic-class=3 rx=yes tx=yes.",
        ),
        (
            "qos-hw-offloading=yes",
            "qos-hw-offloading=no",
            "The switch has qos-hw-offloading off, needed is yes: without it no QoS setting does anything.",
        ),
    ],
)
def test_each_thing_that_is_missing_is_named(old: str, new: str, said: str) -> None:
    assert old in GOOD
    assert switch_problems(GOOD.replace(old, new, 1), PORTS, 9000, SPEED, True) == [said]


def test_an_export_as_a_switch_prints_it() -> None:
    text = (
        "# 2026-01-02 10:00:00 by RouterOS 7.18\n"
        "# software id = ABCD\n"
        "/interface bridge\n"
        'add name="bridge 1"\n'
        "/interface ethernet\n"
        "set [ find default-name=qsfp56-dd-1-1 ] auto-negotiation=no l2mtu=9500 \\\n"
        "    mtu=9000 name=spark1 speed=\\\n"
        "    200G-baseCR4\n"
        "/interface ethernet switch set 0 name=switch1\n"
    )
    (bridge, port, switch) = parse_export(text)
    assert (bridge.target, port.target, switch.menu) == ("bridge 1", "qsfp56-dd-1-1", "/interface ethernet switch")
    assert port.values["speed"] == SPEED
    assert switch_problems(text, ["spark1"], 9000, SPEED, False) == []
    assert switch_problems(text, ["qsfp56-dd-1-1"], 9000, SPEED, False) == []
    assert switch_problems(text, ["qsfp56-dd-9-9"], 9000, "", False) == [
        "qsfp56-dd-9-9 has mtu 1500, needed is 9000 or more.",
        "qsfp56-dd-9-9 has l2mtu 1584, needed is 9216 or more.",
    ]


def test_what_is_no_export() -> None:
    filters = FilterModule().filters()
    with pytest.raises(AnsibleFilterError, match="This is no export of RouterOS: it has no line of /interface"):
        filters["switch_problems"]("hello", PORTS)
    with pytest.raises(AnsibleFilterError, match="which cannot be read"):
        filters["switch_problems"]('/interface ethernet\nset "x', PORTS)
    assert filters["switch_guide"](PORTS).count("l2mtu=9216") == 2
