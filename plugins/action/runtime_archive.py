# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The controller's side of the module runtime_archive: a runtime that is in its own cache needs no module."""

from __future__ import annotations

import json
import platform
import typing as t
from dataclasses import asdict

from ansible.plugins.action import ActionBase

from ansible_collections.sparkrig.serving.plugins.module_utils._runtime_cache import at_hand

_MODULE = "sparkrig.serving.runtime_archive"


class ActionModule(ActionBase):
    """The action."""

    TRANSFERS_FILES = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        """Look into the cache where it is this machine's; ask the module for everything else."""
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        options = dict(self._task.args)
        archive = self._in_cache(options)
        if archive is not None:
            return {**result, "changed": False, "actions": [], "archive": archive}
        result.update(self._execute_module(module_name=_MODULE, module_args=options, task_vars=task_vars))
        return result

    def _in_cache(self, options: dict[str, t.Any]) -> dict[str, t.Any] | None:
        """The archive as the module would tell it, where a module would run as this user on this machine."""
        own: t.Any = self
        if own._connection.transport != "local" or own._connection.become is not None or any(own._task.environment):
            return None
        archive = at_hand(json.loads(json.dumps(options)), platform.machine())
        return json.loads(json.dumps(asdict(archive))) if archive is not None else None
