# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A third exit status for playbook `preflight`: warnings end ansible-playbook with 3 where it would end with 0."""

from __future__ import annotations

import os
import sys
import typing as t

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = r"""
name: exit_status
type: aggregate
short_description: Ends ansible-playbook with 3 when preflight found warnings
version_added: 0.1.0
author: The sparkrig engineers (@sparkrig)
description:
  - Ansible loads it from beside the collection's playbooks, without configuration.
  - It reads the custom statistic C(preflight_status), which only playbook C(sparkrig.serving.preflight) sets. Where
    that is V(warnings), C(ansible-playbook) ends with 3 instead of 0. For every other playbook, and for every other
    end, it does nothing.
"""

STATISTIC, WARNINGS = "preflight_status", 3


class CallbackModule(CallbackBase):
    """Watches the end of a playbook."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "exit_status"

    def __init__(self) -> None:
        super().__init__()
        self._leave: t.Callable[..., t.NoReturn] = sys.exit
        self._process = os.getpid()

    def v2_playbook_on_start(self, playbook: t.Any) -> None:
        """Another playbook of the same command line: how it ends is its own matter."""
        sys.exit = self._leave

    def v2_playbook_on_stats(self, stats: t.Any) -> None:
        """Ansible has no exit status for a play to set, and ending right here would cost other callbacks their end.

        So everything goes on as always, up to the call that ends the process: that gets 3 in place of 0.
        """
        if stats.custom.get("_run", {}).get(STATISTIC) == "warnings":
            sys.exit = self._end

    def _end(self, status: t.Any = None) -> t.NoReturn:
        sys.exit = self._leave
        ours = os.getpid() == self._process
        self._leave(WARNINGS if ours and status in (None, 0) else status)
