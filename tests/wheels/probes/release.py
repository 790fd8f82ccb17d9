# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A worker loads a model that leaves garbage behind, and says how much memory the process still holds."""

import contextlib
import gc
import importlib
import json
import logging
import types
import typing as t
from pathlib import Path

VllmConfig: t.Any = importlib.import_module("vllm.config").VllmConfig
Worker: t.Any = importlib.import_module("vllm.v1.worker.gpu_worker").Worker
GARBAGE_BYTES = 256 * 1024 * 1024
PIECE_BYTES = 4096


def resident_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))


def load_model(load_dummy_weights: bool) -> None:
    # A cycle, as a loader leaves it: only the collector finds it. Pieces this small come from the heap, and one that
    # stays keeps the heap from shrinking by itself.
    cycle: list[object] = [bytearray(PIECE_BYTES) for _ in range(GARBAGE_BYTES // PIECE_BYTES)]
    kept.append(bytearray(PIECE_BYTES))
    cycle.append(cycle)


logging.basicConfig(level=logging.INFO)
kept: list[bytearray] = []
gc.disable()
worker = types.SimpleNamespace(
    vllm_config=VllmConfig(),
    model_runner=types.SimpleNamespace(load_model=load_model),
    _maybe_get_memory_pool_context=lambda tag: contextlib.nullcontext(),
    _scoped_allocator_max_split=lambda max_split_size_mb: contextlib.nullcontext(),
)
before = resident_bytes()
Worker.load_model(worker)
print("PROBE " + json.dumps({"left_bytes": resident_bytes() - before}))
