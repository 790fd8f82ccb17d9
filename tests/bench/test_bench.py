# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How long an answer takes: a cold process, one plan of 79 layers, a search of ten thousand combinations.

The best of the rounds is compared with the limit, because the machine may be busy with other things.
"""

from __future__ import annotations

import json
import subprocess
import sys
import typing as t
from pathlib import Path

from ansible_collections.sparkrig.serving.plugins.module_utils._kv_node import fit
from ansible_collections.sparkrig.serving.plugins.module_utils._kv_search import search

ROOT = Path(__file__).parents[2]
FIXTURE = ROOT / "tests/fixtures/glm-5.2/config.json"
GLM = json.loads(FIXTURE.read_text(encoding="utf-8"))
GIB = 2**30
QUESTION: dict[str, t.Any] = {
    "config": GLM,
    "engine": "0.32.0",
    "tensor_parallel_size": 4,
    "decode_context_parallel_size": 4,
    "kv_cache_dtype": "fp8_ds_mla",
    "kv_cache_memory_bytes": 1_810_000_000,
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


class Timer(t.Protocol):
    """What pytest-benchmark's fixture gives."""

    stats: t.Any

    def pedantic(
        self, target: t.Callable[[], t.Any], rounds: int, iterations: int = 1, warmup_rounds: int = 0
    ) -> t.Any:
        """Runs the target."""


def best_seconds(benchmark: Timer) -> float:
    """The quickest round."""
    return float(benchmark.stats.stats.min)


def test_cold_process(benchmark: Timer) -> None:
    """A new interpreter that imports the core and answers: under 150 ms."""
    script, question = COLD.format(root=str(ROOT / ".collections")), json.dumps(QUESTION)

    def answer() -> None:
        # Isolated from site-packages, as on a node that has nothing but Python.
        subprocess.run([sys.executable, "-I", "-S", "-c", script], input=question, text=True, check=True)

    benchmark.pedantic(answer, rounds=10)
    assert best_seconds(benchmark) < 0.150


def test_one_plan(benchmark: Timer) -> None:
    """One plan of GLM-5.2 with 79 layers and 22 indexers: under 2 ms."""
    benchmark.pedantic(lambda: fit(QUESTION), rounds=50, iterations=4, warmup_rounds=2)
    assert best_seconds(benchmark) < 0.002


def test_search(benchmark: Timer) -> None:
    """A search of more than 10,000 combinations: under 5 s."""
    options = {key: value for key, value in QUESTION.items() if key not in ("kv_cache_memory_bytes", "max_model_len")}
    options["memory_available_bytes"] = 8 * GIB
    wanted = {
        "options": options,
        "cache_dtypes": ["fp8_ds_mla", "bfloat16"],
        "contexts": [4096 * step for step in range(1, 34)],
        "sequences": list(range(1, 11)),
    }
    found = benchmark.pedantic(lambda: search(wanted), rounds=3)
    assert found["considered"] >= 10_000
    assert best_seconds(benchmark) < 5
