# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter of the role runtime."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ansible.errors import AnsibleFilterError

from ansible_collections.sparkrig.serving.plugins.module_utils._runtime import odd_ones_out


def runtime_odd(values: Any) -> dict[str, str]:
    """The hosts whose value is not the usual one."""
    if not isinstance(values, dict):
        raise AnsibleFilterError(f"runtime_odd needs a dictionary of hosts, got {type(values).__name__}")
    return odd_ones_out({str(host): str(value) for host, value in values.items()})


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        return {"runtime_odd": runtime_odd}
