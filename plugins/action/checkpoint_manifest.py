# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The controller's side of the module checkpoint_manifest: call it until all is hashed, and show how far it is."""

from __future__ import annotations

import typing as t

from ansible.plugins.action import ActionBase

from ansible_collections.sparkrig.serving.plugins.module_utils._manifest import size_text

_MODULE = "sparkrig.serving.checkpoint_manifest"


def progress(host: str, hashed_bytes: int, total_bytes: int) -> str:
    """The line that a person sees."""
    share = 100 * hashed_bytes // max(total_bytes, 1)
    return f"{host}: hashing the checkpoint, {size_text(hashed_bytes)} of {size_text(total_bytes)} ({share} %)"


class ActionModule(ActionBase):
    """The action."""

    TRANSFERS_FILES = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        """Call the module until it is done."""
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        options = dict(self._task.args)
        host = (task_vars or {}).get("inventory_hostname", "the node")
        changed = False
        actions: list[str] = []
        while True:
            answer = self._execute_module(module_name=_MODULE, module_args=options, task_vars=task_vars)
            changed = changed or bool(answer.get("changed"))
            if answer.get("failed") or answer.get("unreachable"):
                return {**result, **answer}
            if answer["done"] or self._task.check_mode:
                return {**result, **answer, "changed": changed, "actions": actions + answer["actions"]}
            # All files of this slice; the last sentences only count what is left.
            actions += [action for action in answer["actions"] if not action.endswith("to be hashed")]
            options.setdefault("full_since", answer["now"])
            self._display.display(progress(host, answer["hashed_bytes"], answer["total_bytes"]))
