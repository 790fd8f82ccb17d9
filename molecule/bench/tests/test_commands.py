# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the page on measuring tells a reader to type, typed."""

from __future__ import annotations

from pathlib import Path

from docs.commands import execute, make_workplace, marked


def test_the_commands_of_the_page(tmp_path: Path) -> None:
    workplace = tmp_path / "serving"
    make_workplace(workplace)
    for command in marked("run: bench"):
        done = execute(command, workplace)
        assert done.returncode == 0, f"{command.text}\n{done.stdout}"
    assert (workplace / "bench" / "bench.html").exists()
