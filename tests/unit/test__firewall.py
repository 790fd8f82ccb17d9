# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rig's own nftables table."""

from __future__ import annotations

import typing as t

import pytest

from ansible_collections.sparkrig.serving.plugins.module_utils._firewall import drain_rules, rules

OPTIONS: dict[str, t.Any] = {
    "rails": ["enp1s0f0np0", "enP2p1s0f0np0"],
    "peers": ["10.98.1.11", "10.98.1.12"],
    "ray_port": 26479,
    "api_port": 18089,
    "api_from": ["10.98.0.0/24", "fd00::/8"],
    "api_here": True,
}


def test_only_the_fabric_and_who_may_use_the_api() -> None:
    text = rules(**OPTIONS)
    assert 'iifname { "enp1s0f0np0", "enP2p1s0f0np0" } ip saddr { 10.98.1.11/32, 10.98.1.12/32 } accept' in text
    assert "tcp dport 18089 ip saddr { 10.98.0.0/24 } accept" in text
    assert "tcp dport 18089 ip6 saddr { fd00::/8 } accept" in text
    assert "tcp dport { 18089, 29500-29599, 26479-26549, 32768-60999 } counter drop" in text
    # SSH is nobody's business here.
    assert "22" not in text.replace("10.98", "")


def test_a_node_without_the_api_lets_nobody_to_its_port() -> None:
    text = rules(**{**OPTIONS, "api_here": False})
    assert "tcp dport 18089 ip saddr" not in text
    assert "18089" in text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rails": []}, "would cut the rig in pieces"),
        ({"peers": []}, "would cut the rig in pieces"),
        ({"rails": ['a" accept']}, "is no name of an interface"),
        ({"peers": ["10.98.1"]}, "the list of nodes has '10.98.1', which is no address or network"),
        ({"api_from": ["home"]}, "the list of who may use the API has 'home'"),
    ],
)
def test_what_is_no_rule_is_refused(change: dict[str, t.Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        rules(**{**OPTIONS, **change})


def test_drained_is_closed_but_for_the_watchdog() -> None:
    assert 'iifname != "lo" ct state new tcp dport 18089 reject with tcp reset' in drain_rules(18089)
