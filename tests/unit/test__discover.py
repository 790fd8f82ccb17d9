# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From the frames that arrive to cables, rails and addresses."""

from __future__ import annotations

import typing as t

import pytest
import yaml
from ansible.errors import AnsibleFilterError
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.sparkrig.serving.plugins.filter.fabric import FilterModule
from ansible_collections.sparkrig.serving.plugins.module_utils._discover import (
    BROADCAST,
    ETHERTYPE,
    NEAREST_BRIDGE,
    Heard,
    frame,
    parse_frame,
    parse_lldp,
    plan,
    segments,
    sentences,
    topology,
)

A0, B0, A1, B1 = "enp1s0f0np0", "enP2p1s0f0np0", "enp1s0f1np1", "enP2p1s0f1np1"
PCI = {A0: "0000:01:00.0", B0: "0002:01:00.0", A1: "0000:01:00.1", B1: "0002:01:00.1"}
MAC = "02:00:00:00:00:01"
End = tuple[str, str]


@given(node=st.text(max_size=40), interface=st.text(max_size=15), direct=st.booleans())
def test_a_frame_comes_back_as_it_was_sent(node: str, interface: str, direct: bool) -> None:
    data = frame(NEAREST_BRIDGE if direct else BROADCAST, MAC, "r1", node, interface)
    assert len(data) >= 60
    assert data[6:14] == bytes([2, 0, 0, 0, 0, 1]) + ETHERTYPE.to_bytes(2, "big")
    assert parse_frame(data, "r1", "x") == Heard("x", node, interface, direct)
    assert parse_frame(data, "r2", "x") is None


@given(st.binary(max_size=100))
def test_any_other_frame_is_none(data: bytes) -> None:
    assert parse_frame(data, "r1", "x") is None
    good = frame(BROADCAST, MAC, "r1", "n", "i")
    assert parse_frame(good[:24] + data, "r1", "x") in (None, Heard("x", "n", "i", False))


def reports(
    nodes: t.Sequence[str], interfaces: t.Sequence[str], *groups: t.Sequence[End], cables: bool
) -> dict[str, dict[str, t.Any]]:
    """What nodes report whose ends in each group hear each other."""
    found: dict[str, dict[str, t.Any]] = {
        node: {
            "ends": [{"interface": name, "pci": PCI.get(name, ""), "carrier": True, "lldp": ""} for name in interfaces],
            "heard": [],
        }
        for node in nodes
    }
    for group in groups:
        for node, name in group:
            for other, theirs in group:
                if (node, name) != (other, theirs):
                    for direct in (False, True) if cables and node != other else (False,):
                        found[node]["heard"].append({"on": name, "node": other, "interface": theirs, "direct": direct})
    return found


NODES = ["n1", "n2", "n3", "n4"]


def test_one_switch_with_both_functions_of_every_plug() -> None:
    """Twins share the plug, so a broadcast reaches both functions of every node, the own other one included."""
    seen = reports(NODES, [B0, A0], [(node, name) for node in NODES for name in (A0, B0)], cables=False)
    found = segments(seen)
    assert topology(found, NODES) == "one switch"
    addresses = plan(found, NODES, {})
    assert list(addresses["n1"]) == [A0, B0]
    assert addresses["n3"] == {A0: "192.168.100.3/24", B0: "192.168.101.3/24"}


def test_a_direct_cable_of_two() -> None:
    seen = reports(["n1", "n2"], [A0, B0], [(n, i) for n in ("n1", "n2") for i in (A0, B0)], cables=True)
    found = segments(seen)
    assert topology(found, ["n1", "n2"]) == "a direct cable"
    assert plan(found, ["n1", "n2"], {})["n2"] == {A0: "192.168.100.2/24", B0: "192.168.101.2/24"}
    # Two hosts alone at a switch hear each other's broadcasts, but not what a switch keeps.
    alone = segments(reports(["n1", "n2"], [A0], [("n1", A0), ("n2", A0)], cables=False))
    assert topology(alone, ["n1", "n2"]) == "one switch"


@pytest.mark.parametrize("count", [3, 4])
def test_a_ring(count: int) -> None:
    nodes = NODES[:count]
    cables = [
        [(node, A0), (node, B0), (nodes[(i + 1) % count], A1), (nodes[(i + 1) % count], B1)]
        for i, node in enumerate(nodes)
    ]
    seen = reports(nodes, [A0, B0, A1, B1], *cables, cables=True)
    found = segments(seen)
    assert topology(found, nodes) == f"a ring of {count}"
    addresses = plan(found, nodes, {})
    assert len({cidr.rpartition(".")[0] for rails in addresses.values() for cidr in rails.values()}) == 2 * count
    filters = FilterModule().filters()
    assert filters["fabric_problems"](addresses) == []


def test_two_pairs_are_no_ring() -> None:
    cables = [[("n1", A0), ("n2", A0)], [("n3", A0), ("n4", A0)], [("n1", A1), ("n2", A1)], [("n3", A1), ("n4", A1)]]
    found = segments(reports(NODES, [A0, A1], *cables, cables=True))
    assert topology(found, NODES) == "a mixture"


def test_what_hears_nobody_is_named() -> None:
    seen = reports(["n1", "n2"], [A0, B0], [("n1", A0), ("n2", A0), ("n2", B0)], cables=False)
    seen["n1"]["ends"][1]["carrier"] = False
    seen["n2"]["ends"][0]["lldp"] = "sw1 port 7"
    found = segments(seen)
    assert sentences(seen, found) == [
        "The rails are one switch.",
        f"Switch: n1 {A0} - n2 {A0}+{B0}",
        "n1 has 1 of 2 interfaces there; look for the missing one (a cold boot can bring it back).",
        f"n1 {B0} has no carrier; it is left out.",
        f"n2 {A0} is at sw1 port 7 (LLDP).",
    ]
    assert plan(found, ["n1", "n2"], {}) == {"n1": {A0: "192.168.100.1/24"}, "n2": {A0: "192.168.100.2/24"}}
    nothing = reports(["n1", "n2"], [A0], cables=False)
    assert topology(segments(nothing), ["n1", "n2"]) == "nothing is cabled"
    assert sentences(nothing, [])[1] == f"n1 {A0} hears nobody; it is left out."


def test_addresses_of_the_inventory_stay_where_they_fit() -> None:
    seen = reports(["n1", "n2"], [A0, B0], [("n1", A0), ("n2", A0)], [("n1", B0), ("n2", B0)], cables=True)
    found = segments(seen)
    known = {"n1": {A0: "192.168.100.9/24", B0: "10.0.0.1/24"}, "n2": {A0: "192.168.100.4/24", B0: "10.0.7.2/24"}}
    addresses = plan(found, ["n1", "n2"], known)
    # Rail A keeps its addresses; rail B's ends are in two subnets, and get one that nobody has.
    assert addresses == {
        "n1": {A0: "192.168.100.9/24", B0: "192.168.101.1/24"},
        "n2": {A0: "192.168.100.4/24", B0: "192.168.101.2/24"},
    }
    wiring = FilterModule().filters()["fabric_wiring"]
    result = wiring(seen, known)
    assert result["topology"] == "a direct cable"
    assert yaml.safe_load(result["inventory"])["all"]["hosts"]["n2"] == {"fabric_addresses": addresses["n2"]}
    assert result["sentences"][-1] == (
        f"The inventory has {A0} 192.168.100.4/24, {B0} 10.0.7.2/24 for n2; the cables say {A0} 192.168.100.4/24, {B0} "
        "192.168.101.2/24."
    )
    with pytest.raises(AnsibleFilterError, match="fabric_wiring cannot give addresses from '192.168.0.0/32'"):
        wiring(seen, {}, "192.168.0.0/32")


def test_lldp() -> None:
    text = (
        '{"lldp":[{"interface":[{"name":"enp1s0f0np0","chassis":[{"name":[{"value":"crs812"}]}],'
        '"port":[{"id":[{"type":"ifname","value":"qsfp56-dd-1-1"}]}]}]}]}'
    )
    assert parse_lldp(text) == {A0: "crs812 port qsfp56-dd-1-1"}
    assert parse_lldp("") == parse_lldp("{}") == parse_lldp('{"lldp":[{"interface":[{"name":"x"}]}]}') == {}
