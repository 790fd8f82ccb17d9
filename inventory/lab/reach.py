#!/usr/bin/env python3
# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How the lab's nodes are reached: by the SSH key, known hosts and open connections that `make up` has made.

A part of the inventory, because it is asked once. A template would be evaluated for each node in every task.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main() -> None:
    """Print what Ansible asks for with --list."""
    # Ansible runs it as a file, from wherever it was started itself.
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    from lab.common import cache_dir, state_dir

    state = state_dir()
    options = {
        "IdentityFile": state / "id_ed25519",
        "UserKnownHostsFile": state / "known_hosts",
        "ControlPath": state / "cp" / "%h",
        "StrictHostKeyChecking": "yes",
        # A node that dies must be noticed within half a minute, also over a connection that is already open.
        "ConnectTimeout": 5,
        "ServerAliveInterval": 10,
        "ServerAliveCountMax": 3,
    }
    words = " ".join(f"-o {name}={value}" for name, value in options.items())
    print(
        json.dumps(
            {
                "_meta": {"hostvars": {}},
                "all": {"vars": {"lab_cache_dir": str(cache_dir())}},
                "sparks": {"vars": {"ansible_ssh_common_args": words}},
            }
        )
    )


if __name__ == "__main__":
    main()
