# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The question that the fitter is measured with: GLM-5.2 on four ranks, as the engine was really started."""

from __future__ import annotations

import json
import sys
import typing as t
from pathlib import Path

ROOT = Path(__file__).parents[2]
FIXTURE = ROOT / "tests/fixtures/glm-5.2/config.json"
BUDGET = 1_810_000_000
# What engines logged with that budget on each of four ranks, without and with decode context parallelism.
TRUTH = {"bytes_per_token": 54_728, "tokens_dcp1": 33_024, "tokens_dcp4": 132_096}
QUESTION: dict[str, t.Any] = {
    "config": json.loads(FIXTURE.read_text(encoding="utf-8")),
    "engine": "0.32.0",
    "tensor_parallel_size": 4,
    "decode_context_parallel_size": 4,
    "kv_cache_dtype": "fp8_ds_mla",
    "kv_cache_memory_bytes": BUDGET,
    "max_model_len": 131_072,
    "speculative_config": {"method": "mtp", "num_speculative_tokens": 1},
}
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
