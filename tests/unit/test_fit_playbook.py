# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbook `fit`: from an inventory whose nodes nobody can reach and a config.json, in check mode."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Addresses that are for documentation: nothing answers there.
INVENTORY = """
[sparks]
spark[1:4] ansible_host=192.0.2.1 ansible_connection=ssh ansible_ssh_common_args='-o ConnectTimeout=1'

[sparks:vars]
serving_profile=glm52_128k_dcp4_mtp1
"""


@pytest.mark.slow
def test_table_json_and_page_without_a_node(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text(INVENTORY)
    variables = {
        "fit_config": str(ROOT / "tests/fixtures/glm-5.2/config.json"),
        "fit_report": str(tmp_path / "report"),
        "fit_search": {"aim": "concurrency", "sequences": [1, 2, 4], "minimum_context": 16_384},
    }
    command = [str(Path(sys.executable).parent / "ansible-playbook"), "-i", str(tmp_path / "hosts"), "--check"]
    done = subprocess.run(
        [*command, "--extra-vars", json.dumps(variables), "sparkrig.serving.fit"],
        env={**os.environ, "ANSIBLE_COLLECTIONS_PATH": ".collections", "ANSIBLE_NOCOLOR": "1"},
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0 and "unreachable=1" not in done.stdout, done.stdout
    # The profile's own answer, then the table.
    assert "GPU KV cache size: 132,096 tokens" in done.stdout
    assert re.search(r"Maximum concurrency for 131,072 tokens per request: 1\.01x", done.stdout)
    report = json.loads((tmp_path / "report/fit.json").read_text(encoding="utf-8"))
    assert report["fit"]["num_blocks"] == 516
    rows = report["search"]["rows"]
    order = [(-row["max_num_seqs"], -row["max_model_len"]) for row in rows]
    assert rows and order == sorted(order)
    assert all(row["max_model_len"] >= 16_384 for row in rows)
    best = [(row["max_num_seqs"], row["max_model_len"]) for row in rows if row["pareto"]]
    assert [sequences for sequences, _context in best] == [4, 2, 1]
    assert [context for _sequences, context in best] == sorted(context for _sequences, context in best)
    page = (tmp_path / "report/fit.html").read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>") and "<svg" in page
    assert not re.search(r"(?:src|href)=|url\(|@import|<script", page)
