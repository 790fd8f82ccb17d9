# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters around serving profiles."""

from __future__ import annotations

import typing as t

from ansible.errors import AnsibleFilterError

from ansible_collections.sparkrig.serving.plugins.module_utils._profile import load_profile


def profile(content: dict[str, t.Any], name: str, overrides: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
    """The filter; see :func:`load_profile`."""
    try:
        return load_profile(name, content, overrides or {})
    except ValueError as error:
        raise AnsibleFilterError(f"Profile {name}: {error}.") from None


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Name to function."""
        return {"profile": profile}
