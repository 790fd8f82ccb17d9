# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The user that the rig's processes run as, and what they may do.

Private to the collection.
"""

from __future__ import annotations

import re

HOME = "/var/lib/sparkrig/home"
# Registering memory for RDMA is all that a rank needs beyond an ordinary user.
CAPABILITIES = "CAP_IPC_LOCK"
WRITABLE = ("/var/lib/sparkrig/ray", HOME, "/run/sparkrig", "/tmp", "/var/tmp")
_NAME = re.compile(r"[a-z_][a-z0-9_-]{0,30}")


def hardening(user: str) -> str:
    """Lines for a unit's [Service] section; with an empty *user* the processes stay root's, in the same cage."""
    if user and not _NAME.fullmatch(user):
        raise ValueError(f"{user!r} is no name of a user")
    lines = [f"User={user}", f"Group={user}"] if user else []
    lines += [
        f"Environment=HOME={HOME}",
        "StateDirectory=sparkrig/ray sparkrig/home",
        f"CapabilityBoundingSet={CAPABILITIES}",
        f"AmbientCapabilities={CAPABILITIES}",
        "NoNewPrivileges=yes",
        "ProtectSystem=strict",
        f"ReadWritePaths={' '.join('-' + path for path in WRITABLE)}",
        "ProtectHome=read-only",
        "ProtectKernelModules=yes",
        "ProtectKernelTunables=yes",
        "ProtectControlGroups=yes",
        "RestrictSUIDSGID=yes",
        "RestrictRealtime=yes",
        "LockPersonality=yes",
        "UMask=0027",
    ]
    return "\n".join(lines)
