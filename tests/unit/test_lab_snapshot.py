# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What counts as a difference between a node before and after."""

from __future__ import annotations

import pytest

from lab.snapshot import ITS_OWN, Snapshot, differences

BEFORE: Snapshot = {
    "files": {"/etc/hosts": "8 644 0:0 sha256 aa", "/var/log/dpkg.log": "8 644 0:0 sha256 bb"},
    "units": {"cups.service": "enabled", "cups.service runs": "active", "packagekit.service runs": "active"},
    "sysctls": {"vm/swappiness": "60", "fs/file-nr": "1 0 9"},
    "mounts": {"/": "overlay / rw"},
    "links": {"enp1s0f0np0": "up mtu 1500 []"},
    "packages": {"cups": "2.4 install ok installed"},
}


def test_the_same_is_no_difference() -> None:
    assert differences(BEFORE, BEFORE) == []
    assert set(ITS_OWN) == set(BEFORE)


CASES = [
    ("files", "/etc/hosts", "8 600 0:0 sha256 aa"),
    ("files", "/etc/sparkrig", "4 755 0:0"),
    ("units", "cups.service", "masked"),
    ("units", "cups.service runs", "inactive"),
    ("sysctls", "vm/swappiness", "1"),
    ("mounts", "/mnt", "tmpfs / rw"),
    ("links", "enp1s0f0np0", "up mtu 9000 []"),
    ("packages", "cups", "2.5 install ok installed"),
]


@pytest.mark.parametrize(("area", "name", "now"), CASES)
def test_what_changed_is_told(area: str, name: str, now: str) -> None:
    after = {**BEFORE, area: {**BEFORE[area], name: now}}
    was = BEFORE[area].get(name, "absent")
    assert differences(BEFORE, after) == [f"{area}: {name}: was {was}, is {now}"]


def test_what_went_is_told() -> None:
    after = {**BEFORE, "packages": {}}
    assert differences(BEFORE, after) == ["packages: cups: was 2.4 install ok installed, is absent"]


@pytest.mark.parametrize(
    ("area", "name"),
    [("files", "/var/log/dpkg.log"), ("sysctls", "fs/file-nr"), ("units", "packagekit.service runs")],
)
def test_what_a_running_system_changes_by_itself_is_not(area: str, name: str) -> None:
    assert differences(BEFORE, {**BEFORE, area: {**BEFORE[area], name: "other"}}) == []


def test_every_exception_has_its_reason() -> None:
    assert all(why for patterns in ITS_OWN.values() for why in patterns.values())
