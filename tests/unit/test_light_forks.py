# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a process that a real ansible-playbook has forked knows of its garbage collector."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

CALLBACK = Path(__file__).parents[2] / "playbooks/callback_plugins/light_forks.py"
PLAYBOOK = """
- hosts: localhost
  connection: local
  gather_facts: false
  tasks:
    - ansible.builtin.debug:
        msg: "{{ lookup('collector') }}"
"""
LOOKUP = """
from __future__ import annotations
import gc
from pathlib import Path
from ansible.plugins.lookup import LookupBase
class LookupModule(LookupBase):
    def run(self, terms, variables=None, **options):
        Path(__file__).with_name("seen").write_text(f"[{gc.get_freeze_count()}, {gc.get_threshold()[0]}]")
        return [""]
"""


@pytest.mark.parametrize("beside", [True, False])
def test_a_forked_process_leaves_alone_what_was_loaded_before(tmp_path: Path, beside: bool) -> None:
    lookup = tmp_path / "lookup_plugins/collector.py"
    lookup.parent.mkdir()
    lookup.write_text(LOOKUP, encoding="utf-8")
    if beside:
        (tmp_path / "callback_plugins").mkdir()
        shutil.copy(CALLBACK, tmp_path / "callback_plugins")
    (tmp_path / "play.yml").write_text(PLAYBOOK, encoding="utf-8")
    (tmp_path / "ansible.cfg").touch()
    environment = {**os.environ, "ANSIBLE_CONFIG": str(tmp_path / "ansible.cfg")}
    ansible = Path(sys.executable).with_name("ansible-playbook")
    done = subprocess.run(
        [str(ansible), "-i", "localhost,", str(tmp_path / "play.yml")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    frozen, threshold = json.loads((lookup.parent / "seen").read_text())
    assert (frozen > 10_000, threshold > 700) == (beside, beside)
