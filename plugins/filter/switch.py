# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters: what the switch has to be told, and what is wrong with what it was told."""

from __future__ import annotations

import typing as t

from ansible.errors import AnsibleFilterError

from ansible_collections.sparkrig.serving.plugins.module_utils import _switch


def switch_guide(ports: list[str], mtu: int = 9000, speed: str = "", lossless: bool = False) -> str:
    """The commands for these ports."""
    return _switch.guide(ports, mtu, speed, lossless)


def switch_problems(
    export: str, ports: list[str], mtu: int = 9000, speed: str = "", lossless: bool = False
) -> list[str]:
    """What in an export is not as the rails need it."""
    try:
        return _switch.switch_problems(export, ports, mtu, speed, lossless)
    except ValueError as error:
        raise AnsibleFilterError(f"This is no export of RouterOS: {error}.") from error


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"switch_guide": switch_guide, "switch_problems": switch_problems}
