# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What README and docs tell a reader to type on a lab that serves, typed."""

from __future__ import annotations

from pathlib import Path

import pytest

from docs.commands import PROJECT, Command, execute, make_workplace, marked
from lab.hosts import Host, environment

COMMANDS = marked("run: default")
# A second run of the whole path takes most of a minute, and another test has it already.
AGAIN = "ansible-playbook site.yml -i inventory/lab"


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout."""
    folder = tmp_path_factory.mktemp("commands") / "serving"
    make_workplace(folder)
    return folder


@pytest.mark.parametrize("command", [each for each in COMMANDS if each.text != AGAIN], ids=lambda each: each.text[:60])
def test_a_command_of_a_page(command: Command, workplace: Path, head: Host) -> None:
    key = environment(head, "/etc/sparkrig/secrets.env")["VLLM_API_KEY"]
    # curl says nothing of an answer that is an error.
    done = execute(command, workplace, KEY=key)
    assert done.returncode == 0, done.stdout
    if command.words[0] == "curl":
        assert '"chat.completion"' in done.stdout, done.stdout
    else:
        assert "changed=0" in done.stdout and "failed=1" not in done.stdout, done.stdout


def test_the_second_run_is_tested_beside_this() -> None:
    assert AGAIN in {command.text for command in COMMANDS}
    assert 'play("site.yml")' in (PROJECT / "molecule/default/tests/test_again.py").read_text(encoding="utf-8")
