# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The README's first command, typed again by somebody whose lab serves."""

from __future__ import annotations

import os
import re
import subprocess

from docs.commands import PROJECT


def test_make_demo_again_shows_the_endpoint_and_changes_nothing() -> None:
    # As in a shell: what the make around these tests tells its children is not for another one.
    shell = {name: value for name, value in os.environ.items() if "MAKE" not in name and not name.startswith("MFLAGS")}
    done = subprocess.run(
        ["make", "demo"], cwd=PROJECT, env=shell, capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^endpoint +http://10\.98\.0\.11:18089/v1$", done.stdout, re.M), done.stdout
    tokens = re.search(r"^KV tokens +(\d+) predicted, (\d+) reported", done.stdout, re.M)
    assert tokens is not None and tokens[1] == tokens[2], done.stdout
    assert re.search(r"^changed +0 tasks", done.stdout, re.M), done.stdout
