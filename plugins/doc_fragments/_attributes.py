# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the documentation of every module says about check mode, diff mode and idempotence.

Private to the collection.
"""

from __future__ import annotations


class ModuleDocFragment:
    """The fragments; a module sets C(support) of each attribute itself."""

    DOCUMENTATION = r"""
options: {}
attributes:
  check_mode:
    description: Can run in C(check_mode) and say truthfully what would change, without changing it.
  diff_mode:
    description: Says in diff mode what changes, before and after.
  idempotent:
    description: A second run with the same arguments changes nothing if nothing else changed in between.
"""
