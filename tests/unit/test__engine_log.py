# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an engine's log says."""

from __future__ import annotations

import pytest

from ansible_collections.sparkrig.serving.plugins.module_utils._engine_log import phase, root_error

START = "(EngineCore pid=9824) INFO 11-21 22:15:07 [core.py:133] Initializing a V1 LLM engine (v0.32.0) with config"
LOAD = "(Worker pid=10059) INFO 11-21 22:15:25 [cpu_model_runner.py:68] Starting to load model /srv/models/x..."
SHARD = "Loading safetensors checkpoint shards:  50% Completed | 2/4 [00:00<00:00, 415.59it/s]"
KV = "(EngineCore pid=9824) INFO 11-21 22:15:27 [kv_cache_utils.py:2327] CPU KV cache size: 4,336 tokens, Maximum"
UP = "INFO:     Application startup complete."


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([], ""),
        (["something else"], ""),
        ([START], "starting the engine"),
        ([START, LOAD], "loading weights"),
        ([START, LOAD, SHARD], "loading weights, 2 of 4 shards"),
        ([START, LOAD, SHARD, KV], "KV cache made, 4,336 tokens"),
        ([START, LOAD, SHARD, KV, UP], "API started"),
    ],
)
def test_the_last_phase_is_told(lines: list[str], words: str) -> None:
    assert phase(lines) == words


SURVIVED = "(Worker pid=1) WARNING 11-21 22:15:25 [utils.py:597] ValueError: could not create a primitive"
ROOT = (
    "(EngineCore pid=2) ERROR 11-21 22:15:25 [core.py:900] ValueError: To serve at least one request, 1.0 GiB needed."
)
DERIVED = "(APIServer pid=1) RuntimeError: Engine core initialization failed. See root cause above."


@pytest.mark.parametrize(
    ("lines", "error"),
    [
        ([], ""),
        ([SURVIVED], ""),
        ([SURVIVED, ROOT, DERIVED], "ValueError: To serve at least one request, 1.0 GiB needed."),
        ([DERIVED], "RuntimeError: Engine core initialization failed. See root cause above."),
        (["torch.cuda.OutOfMemoryError: no room"], "torch.cuda.OutOfMemoryError: no room"),
        (["  raise ValueError: not at the start of the line? no"], ""),
        (
            ["api_server.py: error: argument --dtype: invalid choice"],
            "api_server.py: error: argument --dtype: invalid choice",
        ),
    ],
)
def test_the_root_of_the_errors_is_told(lines: list[str], error: str) -> None:
    assert root_error(lines) == error


def test_a_process_that_was_killed_is_named() -> None:
    prefix = "(EngineCore pid=2976) ERROR 11-22 01:51:33 "
    rank = [
        f"{prefix}[ray_executor_v2.py:522] RayWorkerProc rank=[3] died unexpectedly, shutting down executor.",
        f"{prefix}[core.py:1512] RuntimeError: Executor failed.",
        f"{prefix}[async_llm.py:906] vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue.",
    ]
    assert root_error(rank) == "Rank 3 died without an error of its own"
    warning = "(APIServer pid=3503) WARNING 11-22 01:56:05 [core_client.py:817] [shutdown] MPClient: engine core exited"
    assert root_error([f"{warning} unexpectedly; starting cleanup", rank[2]]) == (
        "The engine core died without an error of its own"
    )
    # What it died of, if it said so before.
    assert root_error([f"{prefix}[x.py:1] torch.OutOfMemoryError: CUDA out of memory.", *rank]) == (
        "torch.OutOfMemoryError: CUDA out of memory."
    )
