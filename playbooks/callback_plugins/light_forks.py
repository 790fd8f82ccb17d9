# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Less garbage collection in the processes that ansible-playbook forks, one for each task and node."""

from __future__ import annotations

import gc
import typing as t

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = r"""
name: light_forks
type: aggregate
short_description: Keeps the garbage collector off what ansible-playbook has loaded
version_added: 0.1.0
author: The sparkrig engineers (@sparkrig)
description:
  - Ansible loads it from beside the collection's playbooks, without configuration.
  - For each task C(ansible-playbook) forks a process per node. In each of them Python's cyclic collector would look
    through all that was loaded until then, which also copies that memory. What is there when a play begins stays till
    the end anyway, so it is set aside (C(gc.freeze), which Python has for this), and the rest is looked through less
    often.
"""

# Python's own is 700 objects, and ten collections of each generation before the next one is looked through as well.
THRESHOLD = (50_000, 20, 20)


class CallbackModule(CallbackBase):
    """Watches the beginning of each play."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "light_forks"

    def v2_playbook_on_play_start(self, play: t.Any) -> None:
        """Set aside what is loaded now; what is garbage already goes first."""
        gc.collect()
        gc.freeze()
        gc.set_threshold(*THRESHOLD)
