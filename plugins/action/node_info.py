# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Run module node_info, and bound how far the node's clock is off this machine's."""

from __future__ import annotations

import time
import typing as t

from ansible.plugins.action import ActionBase


def bounds(sent: float, received: float, begin: float, end: float) -> dict[str, float]:
    """Between which values the node's clock is ahead of the controller's, in seconds.

    The module began after it was *sent* and ended before its answer was *received*; *begin* and *end* are by the
    node's clock. So no assumption is made about the way there and back.
    """
    return {"least_s": round(end - received, 3), "most_s": round(begin - sent, 3)}


class ActionModule(ActionBase):
    """The action."""

    TRANSFERS_FILES = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        """Run the module and replace its two times by what they mean."""
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        sent = time.time()
        answer = self._execute_module(task_vars=task_vars)
        received = time.time()
        clock = answer.get("node", {}).get("clock")
        if clock:
            answer["node"]["clock"] = bounds(sent, received, clock["begin"], clock["end"])
        return {**result, **answer}
