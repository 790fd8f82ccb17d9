# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The question that the fitter is measured with: GLM-5.2 on four ranks, as the engine was really started."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.fixtures.glm52 import question

ROOT = Path(__file__).parents[2]
QUESTION = question(engine="0.32.0")
# What engines logged with that budget on each of four ranks, without and with decode context parallelism.
BUDGET: int = QUESTION["kv_cache_memory_bytes"]
TRUTH = {"bytes_per_token": 54_728, "tokens_dcp1": 33_024, "tokens_dcp4": 132_096}
COLD = """
import json, sys
sys.path.insert(0, {root!r})
from ansible_collections.sparkrig.serving.plugins.module_utils._kv_node import fit
question = json.load(sys.stdin)
assert fit(question)["num_blocks"] == 516
"""


def cold_command() -> list[str]:
    """A new interpreter that imports the core and answers the question on its standard input.

    Isolated from site-packages, as on a node that has nothing but Python.
    """
    return [sys.executable, "-I", "-S", "-c", COLD.format(root=str(ROOT / ".collections"))]
