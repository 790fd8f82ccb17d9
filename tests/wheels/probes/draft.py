# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a draft's parallel configuration has of a target with DCP: with the target's ranks, and with one rank."""

import importlib
import json
import typing as t

ParallelConfig: t.Any = importlib.import_module("vllm.config").ParallelConfig
SpeculativeConfig: t.Any = importlib.import_module("vllm.config.speculative").SpeculativeConfig
FIELDS = ("decode_context_parallel_size", "cp_kv_cache_interleave_size", "dcp_comm_backend", "dcp_q_replicate")
target = ParallelConfig(
    tensor_parallel_size=4,
    decode_context_parallel_size=4,
    cp_kv_cache_interleave_size=8,
    dcp_comm_backend="a2a",
    dcp_q_replicate=True,
    distributed_executor_backend="mp",
)
drafts = {ranks: SpeculativeConfig.create_draft_parallel_config(target, ranks) for ranks in (4, 1)}
seen = {ranks: {field: getattr(draft, field) for field in FIELDS} for ranks, draft in drafts.items()}
print("PROBE " + json.dumps(seen))
