# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How long an answer takes: a cold process, one plan of 79 layers, a search of ten thousand combinations.

`promises.py` has what the best of the rounds may be; the machine may be busy with other things.
"""

from __future__ import annotations

import json
import subprocess
import typing as t

from ansible_collections.sparkrig.serving.plugins.module_utils._kv_node import fit
from ansible_collections.sparkrig.serving.plugins.module_utils._kv_search import search
from tests.bench.question import QUESTION, cold_command

GIB = 2**30
Record = t.Callable[[str, object], None]


class Timer(t.Protocol):
    """What pytest-benchmark's fixture gives."""

    stats: t.Any

    def pedantic(
        self, target: t.Callable[[], t.Any], rounds: int, iterations: int = 1, warmup_rounds: int = 0
    ) -> t.Any:
        """Runs the target."""


def tell(benchmark: Timer, record: Record, name: str) -> None:
    """The quickest round and the median for the performance page."""
    record(f"{name}_best_s", benchmark.stats.stats.min)
    record(f"{name}_median_s", benchmark.stats.stats.median)


def test_cold_process(benchmark: Timer, record_property: Record) -> None:
    """A new interpreter that imports the core and answers."""
    question = json.dumps(QUESTION)
    benchmark.pedantic(lambda: subprocess.run(cold_command(), input=question, text=True, check=True), rounds=10)
    tell(benchmark, record_property, "cold")


def test_one_plan(benchmark: Timer, record_property: Record) -> None:
    """One plan of GLM-5.2 with 79 layers and 22 indexers."""
    benchmark.pedantic(lambda: fit(QUESTION), rounds=50, iterations=4, warmup_rounds=2)
    tell(benchmark, record_property, "plan")


def test_search(benchmark: Timer, record_property: Record) -> None:
    """A search of more than 10,000 combinations."""
    options = {key: value for key, value in QUESTION.items() if key not in ("kv_cache_memory_bytes", "max_model_len")}
    options["memory_available_bytes"] = 8 * GIB
    wanted = {
        "options": options,
        "cache_dtypes": ["fp8_ds_mla", "bfloat16"],
        "contexts": [4096 * step for step in range(1, 34)],
        "sequences": list(range(1, 11)),
    }
    found = benchmark.pedantic(lambda: search(wanted), rounds=3)
    record_property("search_combinations", found["considered"])
    assert found["considered"] >= 10_000
    tell(benchmark, record_property, "search")
