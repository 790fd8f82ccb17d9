# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Rails: what is refused, and the files that are written."""

from __future__ import annotations

import json
import re
import typing as t

import pytest
from ansible.errors import AnsibleFilterError
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.sparkrig.serving.plugins.filter.fabric import FilterModule
from ansible_collections.sparkrig.serving.plugins.module_utils._fabric import (
    Link,
    Rail,
    answered,
    configured_elsewhere,
    derive_addresses,
    fabric_problems,
    foreign_addresses,
    interface_of,
    live_problems,
    local_limit,
    parse_default_interfaces,
    parse_links,
    parse_rail,
    parse_rails,
    peer_rails,
    plan_problems,
    render_environment,
    render_netplan,
    render_nm_unmanaged,
    unreachable,
)

A, B = "enp1s0f0np0", "enP2p1s0f0np0"


def node(number: int, **changes: str) -> dict[str, str]:
    return {A: f"10.98.1.{number}/24", B: f"10.98.2.{number}/24", **changes}


RAILS = parse_rails(node(11), 9000)


@pytest.mark.parametrize(
    ("cidr", "said"),
    [
        ("10.98.1.11", "which has no prefix length; write it like 10.98.1.11/24."),
        (17, "which has no prefix length; write it like 10.98.1.11/24."),
        ("10.98.1.300/24", "which is no IPv4 address with a prefix; write it like 10.98.1.11/24."),
        ("fd00::1/64", "which is no IPv4 address with a prefix; write it like 10.98.1.11/24."),
        ("10.98.1.0/24", "which is the subnet itself; give the node an address in it, like 10.98.1.1/24."),
        (
            "10.98.1.255/24",
            "which is the subnet's broadcast address; give the node an address in it, like 10.98.1.1/24.",
        ),
        ("10.98.1.1/32", "a prefix of 32 has no room for a peer; use 31 or less."),
        ("8.8.8.8/24", "which is no private unicast address; the fabric must not be routed."),
        ("169.254.1.1/16", "which is no private unicast address; the fabric must not be routed."),
        ("127.0.0.2/8", "which is no private unicast address; the fabric must not be routed."),
    ],
)
def test_an_address_that_is_none_is_refused(cidr: object, said: str) -> None:
    with pytest.raises(ValueError, match=rf"^fabric_addresses\['{A}'\] is {re.escape(repr(cidr))}.*{re.escape(said)}$"):
        parse_rail(A, cidr)


@pytest.mark.parametrize("name", ["", "a/b", "sixteen-letters-", "a b", "-x", 3])
def test_a_name_of_no_interface_is_refused(name: object) -> None:
    with pytest.raises(ValueError, match="which is no name of an interface"):
        parse_rail(name, "10.98.1.11/24")


def test_point_to_point_is_fine() -> None:
    assert parse_rail(A, "10.98.1.0/31") == Rail(A, "10.98.1.0", 31)


def test_two_rails_in_one_subnet_are_refused() -> None:
    with pytest.raises(ValueError, match=rf"^{A} \(10.98.1.11/24\) and {B} \(10.98.1.12/24\) are in one subnet"):
        parse_rails({A: "10.98.1.11/24", B: "10.98.1.12/24"}, 9000)


@pytest.mark.parametrize("mtu", [0, 1279, 65536])
def test_an_mtu_that_is_none_is_refused(mtu: int) -> None:
    with pytest.raises(ValueError, match=f"^fabric_mtu is {mtu}; it must be between 1280 and 9600"):
        parse_rails(node(11), mtu)


def test_no_rails_are_refused() -> None:
    with pytest.raises(ValueError, match="^fabric_addresses is empty; name at least one interface"):
        parse_rails({}, 9000)


def test_four_nodes_that_fit() -> None:
    assert fabric_problems({f"spark{n}": node(10 + n) for n in range(1, 5)}) == []
    assert FilterModule().filters()["fabric_problems"]({"spark1": node(11)}) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            node(11),
            [
                f"spark1 ({A}) and spark2 ({A}) have the same rail address 10.98.1.11; give one of them another.",
                f"spark1 ({B}) and spark2 ({B}) have the same rail address 10.98.2.11; give one of them another.",
            ],
        ),
        (
            node(12, **{B: "10.98.3.12/24"}),
            [
                f"rail 2 is in 10.98.2.0/24 on spark1 ({B} 10.98.2.11/24) and in 10.98.3.0/24 on spark2 ({B} "
                f"10.98.3.12/24); put it in one subnet, and list the rails of every node in the same order."
            ],
        ),
        (
            node(12, **{B: "10.98.2.12/16"}),
            [
                f"spark2: {A} (10.98.1.12/24) and {B} (10.98.2.12/16) are in one subnet, so that one of them would "
                f"carry the traffic of both; give every rail a subnet of its own."
            ],
        ),
        (
            node(12, **{B: "10.98.2.12/25"}),
            [
                f"rail 2 has prefix /24 on spark1 ({B} 10.98.2.11/24) and /25 on spark2 ({B} 10.98.2.12/25); use one "
                f"prefix on all nodes."
            ],
        ),
        (
            {A: "10.98.1.12/24"},
            [f"spark2 has 1 of 2 rails ({A}), spark1 has {A}, {B}; give every node the same number of rails."],
        ),
        (
            {},
            [
                "spark2 has no rails: give it fabric_addresses in the inventory, a dict of interface to address like "
                "enp1s0f0np0: 10.98.1.11/24."
            ],
        ),
        (
            node(12, **{A: "10.98.1.0/24"}),
            [
                f"spark2: fabric_addresses['{A}'] is '10.98.1.0/24', which is the subnet itself; give the node an "
                f"address in it, like 10.98.1.1/24."
            ],
        ),
    ],
)
def test_nodes_that_contradict_each_other(changes: dict[str, str], said: list[str]) -> None:
    assert fabric_problems({"spark1": node(11), "spark2": changes}) == said


def test_rails_in_another_order_are_seen() -> None:
    swapped = {B: "10.98.2.12/24", A: "10.98.1.12/24"}
    assert len(fabric_problems({"spark1": node(11), "spark2": swapped})) == 2


def test_other_names_for_the_same_rails_are_fine() -> None:
    assert fabric_problems({"spark1": node(11), "spark2": {"eth1": "10.98.1.12/24", "eth2": "10.98.2.12/24"}}) == []


@given(
    st.dictionaries(
        st.text(max_size=8), st.dictionaries(st.text(max_size=6), st.text(max_size=18), max_size=3), max_size=4
    )
)
def test_whatever_the_inventory_says_gets_sentences(nodes: dict[str, t.Any]) -> None:
    assert all(isinstance(problem, str) and problem for problem in fabric_problems(nodes))


def test_the_filter_wants_a_dict() -> None:
    with pytest.raises(AnsibleFilterError, match="takes a dict of node to fabric_addresses, not list"):
        FilterModule().filters()["fabric_problems"]([])


def link(name: str, *addresses: str, mtu: int = 9000, up: bool = True, carrier: bool = True) -> Link:
    return Link(name, mtu, up, carrier, addresses, tuple(cidr.split("/")[0] for cidr in addresses))


LIVE = {
    link.name: link
    for link in (link("eth0", "10.98.0.11/24", mtu=1500), link(A, "10.98.1.11/24"), link(B, "10.98.2.11/24"))
}


def test_links_are_read_as_ip_prints_them() -> None:
    text = json.dumps(
        [
            {
                "ifname": A,
                "flags": ["BROADCAST", "UP", "LOWER_UP"],
                "mtu": 9000,
                "addr_info": [
                    {"family": "inet", "local": "10.98.1.11", "prefixlen": 24},
                    {"family": "inet6", "local": "fe80::1", "prefixlen": 64},
                ],
            },
            {},
            {"ifname": B, "flags": ["BROADCAST"], "mtu": 1500},
        ]
    )
    assert parse_links(text) == {
        A: Link(A, 9000, True, True, ("10.98.1.11/24",), ("10.98.1.11", "fe80::1")),
        B: link(B, mtu=1500, up=False, carrier=False),
    }
    assert parse_links("") == {}
    assert parse_default_interfaces('[{"dst":"default","dev":"eth0"},{"dst":"default","dev":"eth0"}]') == ("eth0",)
    assert parse_default_interfaces("") == ()


def test_interface_of_an_address() -> None:
    assert interface_of("10.98.0.11", LIVE) == "eth0"
    assert interface_of("10.98.0.1", LIVE) == ""
    assert interface_of("fe80::1%eth0", LIVE) == "eth0"


def test_a_plan_that_fits_the_node() -> None:
    assert plan_problems(RAILS, LIVE, {"eth0": "carries the SSH connection of this very run"}) == []
    assert live_problems(RAILS, LIVE, 9000) == []


def test_an_interface_that_is_not_there() -> None:
    assert plan_problems(parse_rails({"enp9": "10.98.9.1/24"}, 9000), LIVE, {}) == [
        f"enp9 does not exist on this node, which has {B}, {A}, eth0; correct fabric_addresses, or look for the cable "
        f"and the card (a warm reboot can lose one, a cold one brings it back)."
    ]


def test_the_management_network_is_kept_off() -> None:
    overlap = parse_rails({A: "10.98.0.200/25"}, 9000)
    assert plan_problems(overlap, LIVE, {}) == [
        f"{A} would get 10.98.0.200/25, but eth0 is in that subnet already (10.98.0.11/24); give the rail a subnet of "
        f"its own."
    ]
    assert plan_problems(parse_rails({"eth0": "10.98.7.1/24"}, 9000), LIVE, {"eth0": "carries the default route"}) == [
        "eth0 carries the default route, so it is never touched; name another interface."
    ]


def test_how_links_differ_from_the_plan() -> None:
    links = {A: link(A, mtu=1500), B: link(B, "10.98.2.11/24", up=False)}
    assert live_problems(RAILS, links, 9000) == [
        f"{A} lacks 10.98.1.11/24 (it has none)",
        f"{A} has MTU 1500 instead of 9000",
        f"{B} is down",
    ]
    assert live_problems(RAILS, {A: link(A, "10.98.1.11/24", carrier=False)}, 9000) == [
        f"{A} has no carrier (is the cable in, and the other end up?)",
        f"{B} does not exist",
    ]


def test_the_netplan_file() -> None:
    assert render_netplan(RAILS[:1], 9000, "networkd") == (
        "# Managed by sparkrig.serving. Changes are overwritten.\n"
        "network:\n"
        "  version: 2\n"
        "  ethernets:\n"
        "    enp1s0f0np0:\n"
        "      renderer: networkd\n"
        "      optional: true\n"
        "      dhcp4: false\n"
        "      dhcp6: false\n"
        "      accept-ra: false\n"
        "      link-local: []\n"
        "      mtu: 9000\n"
        '      addresses: ["10.98.1.11/24"]\n'
    )
    assert render_nm_unmanaged(RAILS).endswith(
        "[keyfile]\nunmanaged-devices+=interface-name:enp1s0f0np0;interface-name:enP2p1s0f0np0\n"
    )


def test_files_of_others() -> None:
    files = {
        "/etc/netplan/01.yaml": "network:\n  renderer: NetworkManager\n",
        "/etc/netplan/40-cx7.yaml": f"network:\n  ethernets:\n    {A}:\n      mtu: 9000\n",
    }
    assert configured_elsewhere(RAILS, files, {}) == {A: "/etc/netplan/40-cx7.yaml"}
    assert configured_elsewhere(RAILS, {"x": f"# {A}: nothing\nnetwork: {{}}\n"}, {}) == {}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (f"[Match]\nName={A}\n", True),
        (f"[Match]\nName=eth9 {A} eth8\n", True),
        (f"[connection]\nid=x\ninterface-name={A}\n", True),
        (f"auto {A}\niface {A} inet static\n", True),
        (f"[Match]\nName={A}1\n", False),
        (f"# Name={A}\n", False),
        ("[Match]\nName=eth9\n", False),
    ],
)
def test_rails_that_another_tool_configures_are_seen(text: str, found: bool) -> None:
    assert configured_elsewhere(RAILS, {}, {"/etc/x": text}) == ({A: "/etc/x"} if found else {})


def test_addresses_that_nobody_planned_are_seen() -> None:
    links = {A: Link(A, 9000, True, True, ("10.98.1.11/24", "192.168.7.7/24", "169.254.3.4/16", "10.9.9.9/24"))}
    assert foreign_addresses(RAILS, links, 'addresses: ["10.9.9.9/24"]') == {A: ("192.168.7.7/24",)}
    assert foreign_addresses(RAILS, {}, "") == {}


@pytest.mark.parametrize(
    ("interfaces", "subnets", "index", "expected"),
    [
        ([A, B], ["10.1.0.0/24", "10.2.0.0/24"], 3, {A: "10.1.0.3/24", B: "10.2.0.3/24"}),
        ([A], ["10.1.0.0/24", "10.2.0.0/24"], 254, {A: "10.1.0.254/24"}),
        ([A], ["10.1.0.0/31"], 1, {A: "10.1.0.0/31"}),
        ([A], ["10.1.0.0/30"], 2, {A: "10.1.0.2/30"}),
        (
            [A, B],
            ["10.1.0.0/24"],
            1,
            "has 2 rails (enp1s0f0np0, enP2p1s0f0np0), but fabric_subnets has 1 (10.1.0.0/24)",
        ),
        ([A], ["10.1.0.7/24"], 1, "fabric_subnets has '10.1.0.7/24', which is no subnet like 192.168.100.0/24."),
        ([A], ["10.1.0.0/30"], 3, "fabric_index is 3, but 10.1.0.0/30 has addresses for the nodes 1 to 2."),
        ([A], ["10.1.0.0/24"], 0, "fabric_index is 0, but 10.1.0.0/24 has addresses for the nodes 1 to 254."),
    ],
)
def test_addresses_follow_from_the_index(
    interfaces: list[str], subnets: list[str], index: int, expected: dict[str, str] | str
) -> None:
    if isinstance(expected, dict):
        assert derive_addresses(interfaces, subnets, index) == expected
        return
    with pytest.raises(ValueError, match=re.escape(expected)):
        derive_addresses(interfaces, subnets, index)


def ring(count: int) -> dict[str, dict[str, str]]:
    """Cables from each node to the next one, and from the last to the first."""
    nodes: dict[str, dict[str, str]] = {f"n{number}": {} for number in range(count)}
    for number in range(count):
        nodes[f"n{number}"]["p0"] = f"10.5.{number}.1/30"
        nodes[f"n{(number + 1) % count}"]["p1"] = f"10.5.{number}.2/30"
    return nodes


@pytest.mark.parametrize("count", [3, 4])
def test_a_ring_of_cables_fits(count: int) -> None:
    nodes = ring(count)
    assert fabric_problems(nodes) == []
    own = parse_rails(nodes["n0"], 9000)
    pairs = peer_rails(own, {host: rails for host, rails in nodes.items() if host != "n0"})
    assert [(host, rail.interface, their.interface) for host, rail, their in pairs] == [
        ("n1", "p0", "p1"),
        (f"n{count - 1}", "p1", "p0"),
    ]


def test_a_cable_with_one_end_and_an_island_are_named() -> None:
    nodes = ring(3)
    nodes["n0"]["p0"] = "10.5.9.1/30"
    assert fabric_problems(nodes) == [
        "p0 of n0 is alone in 10.5.9.0/30; the node at the other end of its cable needs an address in it.",
        "p1 of n1 is alone in 10.5.0.0/30; the node at the other end of its cable needs an address in it.",
    ]
    islands = {host: {"p0": f"10.6.{number // 2}.{number % 2 + 1}/30"} for number, host in enumerate("abcd")}
    assert fabric_problems(islands) == [
        "no chain of cables leads from a to c; see which subnets they share.",
        "no chain of cables leads from a to d; see which subnets they share.",
    ]


def test_the_plan_of_the_inventory() -> None:
    hostvars: dict[str, dict[str, t.Any]] = {
        "a": {"fabric_addresses": {A: "10.1.0.1/24"}},
        "b": {"fabric_subnets": ["10.1.0.0/24"], "groups": {"all": ["a", "b"]}},
        "c": {"fabric_subnets": ["10.1.0.0/24"], "fabric_interfaces": [B], "fabric_index": 9},
        "d": {},
    }
    plan = FilterModule().filters()["fabric_plan"]
    assert plan("abcd", hostvars) == {
        "a": {A: "10.1.0.1/24"},
        "b": {"rail1": "10.1.0.2/24"},
        "c": {B: "10.1.0.9/24"},
        "d": {},
    }
    with pytest.raises(AnsibleFilterError, match="c: fabric_index is 900, but"):
        plan("c", {"c": {**hostvars["c"], "fabric_index": 900}})


def test_the_environment() -> None:
    rdma = {"NCCL_IB_HCA": "=rocep1s0f0"}
    assert render_environment(RAILS, rdma, {"NCCL_IB_TC": "106"}) == (
        "# Managed by sparkrig.serving. Changes are overwritten.\n"
        "NCCL_IB_DISABLE=0\n"
        "NCCL_IB_HCA==rocep1s0f0\n"
        "NCCL_SOCKET_IFNAME=enp1s0f0np0\n"
        "GLOO_SOCKET_IFNAME=enp1s0f0np0\n"
        "VLLM_HOST_IP=10.98.1.11\n"
        "HOST_IP=10.98.1.11\n"
        "NCCL_DEBUG=INFO\n"
        "NCCL_DEBUG_SUBSYS=INIT,NET\n"
        "NCCL_DEBUG_FILE=/run/sparkrig/nccl/%h.%p.log\n"
        "NCCL_IB_TC=106\n"
    )
    assert "GID_INDEX" not in render_environment(RAILS, rdma, {})
    assert "NCCL_IB_TC" not in render_environment(RAILS, rdma, {})
    assert "NCCL_IB_TC=106\n" in render_environment(RAILS, rdma, {}, lossless=True)
    elsewhere = render_environment(RAILS, rdma, {}, ("eth0", "10.0.0.7"))
    assert "GLOO_SOCKET_IFNAME=eth0\nVLLM_HOST_IP=10.0.0.7\n" in elsewhere


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({"NCCL_IB_DISABLE": "1"}, "^fabric_environment.NCCL_IB_DISABLE is '1'; it must stay '0'"),
        ({"NCCL_IB_DISABLE": ""}, "^fabric_environment.NCCL_IB_DISABLE is ''; it must stay '0'"),
        ({"NCCL_IB_GID_INDEX": "3"}, "^fabric_environment.NCCL_IB_GID_INDEX is '3'; the right index differs by node"),
        ({"NCCL_IB_GID_INDEX": ""}, "^fabric_environment.NCCL_IB_GID_INDEX is ''; the right index differs"),
        (
            {"VLLM_HOST_IP": "10.0.0.1"},
            "^fabric_environment.VLLM_HOST_IP is '10.0.0.1', but the rails make it '10.98.1.11'",
        ),
        (
            {"GLOO_SOCKET_IFNAME": "eth0"},
            f"^fabric_environment.GLOO_SOCKET_IFNAME is 'eth0', but the rails make it '{A}'",
        ),
        (
            {"NCCL_IB_HCA": "mlx5_0"},
            "^fabric_environment.NCCL_IB_HCA is 'mlx5_0', but this node has no RDMA device mlx5_0",
        ),
        ({"a-b": "1"}, "^fabric_environment.a-b is no name of a variable.$"),
        ({"X": "1\nNCCL_IB_DISABLE=1"}, "^fabric_environment.X is .* a value is one line of printable text"),
    ],
)
def test_values_that_take_roce_away_are_refused(extra: dict[str, str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        render_environment(RAILS, {}, extra, interfaces=["eth0", A, B], devices=["rocep1s0f0"])
    render_environment(RAILS, {}, {"NCCL_IB_DISABLE": "0", "NCCL_IB_TC": "106"})


PINGS = """\
PING 10.98.1.12 (10.98.1.12) from 10.98.1.11 : 8972(9000) bytes of data.
8980 bytes from 10.98.1.12: icmp_seq=1 ttl=64 time=0.058 ms

--- 10.98.1.12 ping statistics ---
1 packets transmitted, 1 received, 0% packet loss, time 0ms
PING 10.98.2.12 (10.98.2.12) from 10.98.2.11 : 8972(9000) bytes of data.

--- 10.98.2.12 ping statistics ---
1 packets transmitted, 0 received, 100% packet loss, time 0ms
"""


def test_pings_are_read() -> None:
    assert answered(PINGS) == {"10.98.1.12"}
    assert local_limit(PINGS) == 0
    assert local_limit("ping: local error: message too long, mtu=1500\n") == 1500


def test_every_peer_on_every_rail() -> None:
    pairs = peer_rails(RAILS, {"spark2": node(12), "spark3": node(13)})
    assert [(host, own.interface, their.address) for host, own, their in pairs] == [
        ("spark2", A, "10.98.1.12"),
        ("spark2", B, "10.98.2.12"),
        ("spark3", A, "10.98.1.13"),
        ("spark3", B, "10.98.2.13"),
    ]


@pytest.mark.parametrize(
    ("small", "local", "said"),
    [
        (
            True,
            0,
            "though small packets pass: something between them carries less than MTU 9000. Check the MTU of "
            "enp1s0f0np0 on spark2, and set MTU 9000 and L2MTU 9216 or more on both switch ports.",
        ),
        (True, 1500, "enp1s0f0np0 on spark1 has MTU 1500, needed is 9000. Run the role fabric on spark1 again."),
        (False, 0, "and no small packet passes either: check the cables, the switch ports and enp1s0f0np0 on spark2"),
    ],
)
def test_a_silent_peer_gets_its_sentence(small: bool, local: int, said: str) -> None:
    sentence = unreachable("spark1", "spark2", RAILS[0], parse_rail(A, "10.98.1.12/24"), 8972, small, local)
    assert sentence.startswith("spark1 cannot reach spark2 (10.98.1.12) over rail enp1s0f0np0 with 8972 bytes")
    assert said in sentence
