# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a full look at a node reads out of its files."""

from __future__ import annotations

import pytest

from ansible_collections.sparkrig.serving.plugins.module_utils._preflight_facts import (
    container_of,
    dgx_release,
    earlyoom_thresholds,
    newest_kernel,
    package_versions,
    parse_units,
    peer_reason,
    prunable,
)

RELEASE = """DGX_NAME="DGX Spark"
DGX_PRETTY_NAME="NVIDIA DGX Spark"
DGX_SWBUILD_DATE="2025-09-10-13-50-03"
DGX_SWBUILD_VERSION="7.2.3"
DGX_OTA_VERSION="7.3.1"
DGX_OTA_DATE="Mon 10 Nov 2025"
DGX_OTA_VERSION="7.4.0"
"""


def test_the_last_update_is_the_release() -> None:
    assert dgx_release(RELEASE) == "7.4.0"
    assert dgx_release('DGX_SWBUILD_VERSION="7.2.3"\n') == "7.2.3"
    assert dgx_release("") == ""


@pytest.mark.parametrize(
    ("argv", "term", "kill"),
    [
        (["earlyoom"], 10.0, 5.0),
        (["earlyoom", "-r", "3600"], 10.0, 5.0),
        (["earlyoom", "-m", "2,1", "-s", "100"], 2.0, 1.0),
        (["earlyoom", "-m", "4"], 4.0, 2.0),
        (["earlyoom", "-m3"], 3.0, 1.5),
        (["earlyoom", "-M", "1048576,524288"], 1.0, 0.5),
    ],
)
def test_earlyoom(argv: list[str], term: float, kill: float) -> None:
    assert earlyoom_thresholds(argv, 100 * 2**30) == {"term_percent": term, "kill_percent": kill}


OWN = "4:memory:/machine.slice/libpod-abcdef0123456789.scope/init.scope\n0::/init.scope\n"


@pytest.mark.parametrize(
    ("cgroup", "own", "found"),
    [
        ("0::/system.slice/docker-0123456789abcdef.scope\n", "0::/init.scope\n", ("docker", "0123456789abcdef")),
        ("3:memory:/docker/0123456789abcdef\n", "3:memory:/\n", ("docker", "0123456789abcdef")),
        ("0::/machine.slice/libpod-0123456789abcdef.scope/container\n", "", ("podman", "0123456789abcdef")),
        ("0::/kubepods/cri-containerd-0123456789abcdef.scope\n", "", ("containerd", "0123456789abcdef")),
        ("0::/system.slice/docker.service\n", "", None),
        ("0::/user.slice/user-1000.slice\n", "", None),
        # The node is a container itself; only one inside of it counts.
        ("4:memory:/machine.slice/libpod-abcdef0123456789.scope/system.slice/ssh.service\n", OWN, None),
        (
            "4:memory:/machine.slice/libpod-abcdef0123456789.scope/system.slice/docker-fedcba9876543210.scope\n",
            OWN,
            ("docker", "fedcba9876543210"),
        ),
        ("", "", None),
    ],
)
def test_containers_are_known_by_their_control_group(cgroup: str, own: str, found: tuple[str, str] | None) -> None:
    assert container_of(cgroup, own) == found


def test_only_what_is_installed_has_a_version() -> None:
    text = (
        "Package: a\nStatus: install ok installed\nVersion: 1.2-3\n\n"
        "Package: b\nStatus: deinstall ok config-files\nVersion: 4\n\n"
        "Package: c\nStatus: install ok installed\nVersion: 5\n"
    )
    assert package_versions(text, ("a", "b")) == {"a": "1.2-3"}


def test_the_newest_kernel_by_numbers() -> None:
    assert newest_kernel(["6.17.0-999-nvidia", "6.17.0-1032-nvidia", "6.8.0-1040-nvidia"]) == "6.17.0-1032-nvidia"
    assert newest_kernel([]) == ""


SHOWN = """LoadState=loaded
UnitFileState=enabled
ActiveState=active
MainPID=12

LoadState=masked
UnitFileState=masked
ActiveState=inactive
MainPID=0

LoadState=not-found
UnitFileState=
ActiveState=inactive
"""


def test_units_that_pruning_would_change() -> None:
    units = parse_units(["cups.service", "fwupd.service", "gone.service"], SHOWN)
    assert units["cups.service"] == {"load": "loaded", "file": "enabled", "active": "active", "pid": "12"}
    assert prunable(units) == ["cups.service"]
    with pytest.raises(ValueError, match=r"^systemctl show answered for 3 of 1 units$"):
        parse_units(["cups.service"], SHOWN)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (TimeoutError("timed out"), "no answer"),
        (ConnectionRefusedError(111, "Connection refused"), "connection refused"),
        (OSError(113, "No route to host"), "no route to host"),
    ],
)
def test_why_a_peer_is_silent(error: OSError, reason: str) -> None:
    assert peer_reason(error) == reason
