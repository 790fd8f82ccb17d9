# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Our answer beside that of real CPU engines with tiny models: from config.json alone, refusals word for word."""

from __future__ import annotations

import typing as t

import pytest

from ansible_collections.sparkrig.serving.plugins.module_utils._kv_node import fit
from tests.oracle import models
from tests.oracle.oracle import Oracle

SCHEDULER = {"max_num_batched_tokens": 512, "max_num_seqs": 4}
MTP = {"method": "mtp", "num_speculative_tokens": 1}

SMALL = {"max_model_len": 512, "kv_cache_memory_bytes": 2_000_000}
LONG = {"max_model_len": 2048, "kv_cache_memory_bytes": 4_000_000}
TOO_LONG = {"max_model_len": 20_000, "kv_cache_memory_bytes": 80_000_000}
LARGE = {"max_model_len": 512, "kv_cache_memory_bytes": 8_000_000}

Case = tuple[str, dict[str, t.Any], dict[str, t.Any]]

CASES: list[Case] = [
    (
        "mla-mtp",
        models.DEEPSEEK_V3,
        {"max_model_len": 256, "kv_cache_memory_bytes": 2_000_000, "speculative_config": MTP},
    ),
    ("gqa", models.LLAMA, {"max_model_len": 512, "kv_cache_memory_bytes": 1_000_000}),
    (
        "mla-mtp-float32",
        models.DEEPSEEK_V3,
        {"max_model_len": 256, "kv_cache_memory_bytes": 2_000_000, "speculative_config": MTP, "dtype": "float32"},
    ),
    ("windows", models.GEMMA3, {"max_model_len": 4096, "kv_cache_memory_bytes": 4_000_000}),
    ("gdn", models.QWEN3_NEXT, {"max_model_len": 2048, "kv_cache_memory_bytes": 4_000_000}),
    ("mamba2", models.NEMOTRON_H, {"max_model_len": 2048, "kv_cache_memory_bytes": 4_000_000}),
    ("refused", models.LLAMA, {"max_model_len": 4096, "kv_cache_memory_bytes": 1_000_000}),
    ("auto", models.LLAMA, {"max_model_len": -1, "kv_cache_memory_bytes": 1_000_000}),
    ("nothing-fits", models.LLAMA, {"max_model_len": -1, "kv_cache_memory_bytes": 140_000}),
    ("empty", models.LLAMA, {"max_model_len": 500, "kv_cache_memory_bytes": 10_000}),
    ("block-16", models.LLAMA, {"max_model_len": 512, "kv_cache_memory_bytes": 1_000_000, "block_size": 16}),
    ("windows-refused", models.GEMMA3, {"max_model_len": 8192, "kv_cache_memory_bytes": 2_000_000}),
    (
        "mla-two-layers",
        {**models.DEEPSEEK_V3, "num_nextn_predict_layers": 2},
        {"max_model_len": 256, "kv_cache_memory_bytes": 2_000_000, "speculative_config": MTP},
    ),
]
MORE: list[Case] = [
    ("gqa-float32", models.LLAMA, {"max_model_len": 512, "kv_cache_memory_bytes": 1_000_000, "dtype": "float32"}),
    ("gdn-float32", models.QWEN3_NEXT, {"max_model_len": 2048, "kv_cache_memory_bytes": 8_000_000, "dtype": "float32"}),
    (
        "mamba2-float32",
        models.NEMOTRON_H,
        {"max_model_len": 2048, "kv_cache_memory_bytes": 8_000_000, "dtype": "float"},
    ),
    ("block-64", models.LLAMA, {"max_model_len": 500, "kv_cache_memory_bytes": 1_000_000, "block_size": 64}),
    ("too-long", models.LLAMA, {"max_model_len": 9000, "kv_cache_memory_bytes": 10_000_000}),
    ("mla", models.DEEPSEEK_V3, {"max_model_len": 256, "kv_cache_memory_bytes": 2_000_000}),
    (
        "mla-three-drafts",
        models.DEEPSEEK_V3,
        {
            "max_model_len": 256,
            "kv_cache_memory_bytes": 2_000_000,
            "speculative_config": {"method": "mtp", "num_speculative_tokens": 3},
        },
    ),
    (
        "uneven-drafts",
        {**models.DEEPSEEK_V3, "num_nextn_predict_layers": 2},
        {
            "max_model_len": 256,
            "kv_cache_memory_bytes": 2_000_000,
            "speculative_config": {"method": "mtp", "num_speculative_tokens": 3},
        },
    ),
    (
        "mla-fp8",
        models.DEEPSEEK_V3,
        {"max_model_len": 256, "kv_cache_memory_bytes": 2_000_000, "kv_cache_dtype": "fp8"},
    ),
    ("deepseek-v2", models.DEEPSEEK_V2, {"max_model_len": 512, "kv_cache_memory_bytes": 1_000_000}),
    ("kimi-k2", models.KIMI_K2, {"max_model_len": 256, "kv_cache_memory_bytes": 2_000_000}),
    ("mistral", models.MISTRAL, {"max_model_len": 2048, "kv_cache_memory_bytes": 3_000_000}),
    ("mixtral", models.MIXTRAL, {"max_model_len": 512, "kv_cache_memory_bytes": 1_000_000}),
    ("qwen2-window", models.QWEN2_WINDOW, {"max_model_len": 2048, "kv_cache_memory_bytes": 3_000_000}),
    (
        "qwen2-mixed",
        {**models.QWEN2_WINDOW, "max_window_layers": 2},
        {"max_model_len": 2048, "kv_cache_memory_bytes": 3_000_000},
    ),
    ("qwen3", models.QWEN3, {"max_model_len": 512, "kv_cache_memory_bytes": 1_000_000}),
    ("qwen3-moe", models.QWEN3_MOE, {"max_model_len": 512, "kv_cache_memory_bytes": 1_000_000}),
    ("gemma2", models.GEMMA2, {"max_model_len": 2048, "kv_cache_memory_bytes": 4_000_000}),
    ("gemma2-block-16", models.GEMMA2, {"max_model_len": 2048, "kv_cache_memory_bytes": 4_000_000, "block_size": 16}),
    ("gemma2-block-48", models.GEMMA2, {"max_model_len": 2048, "kv_cache_memory_bytes": 4_000_000, "block_size": 48}),
    ("gpt-oss", models.GPT_OSS, {"max_model_len": 2048, "kv_cache_memory_bytes": 4_000_000}),
    ("glm4-moe", models.GLM4_MOE, {"max_model_len": 512, "kv_cache_memory_bytes": 1_000_000}),
    (
        "glm4-moe-mtp",
        models.GLM4_MOE,
        {"max_model_len": 512, "kv_cache_memory_bytes": 1_000_000, "speculative_config": MTP},
    ),
    ("minimax-m2", models.MINIMAX_M2, {"max_model_len": 512, "kv_cache_memory_bytes": 1_000_000}),
    (
        "gdn-uncached",
        models.QWEN3_NEXT,
        {"max_model_len": 2048, "kv_cache_memory_bytes": 4_000_000, "enable_prefix_caching": False},
    ),
    (
        "gdn-mtp",
        models.QWEN3_NEXT,
        {"max_model_len": 2048, "kv_cache_memory_bytes": 4_000_000, "speculative_config": MTP},
    ),
    (
        "mamba2-uncached",
        models.NEMOTRON_H,
        {"max_model_len": 2048, "kv_cache_memory_bytes": 4_000_000, "enable_prefix_caching": False},
    ),
    ("chunked", models.LLAMA4, {"max_model_len": 2048, "kv_cache_memory_bytes": 4_000_000}),
    (
        "eagle",
        models.LLAMA,
        {**SMALL, "speculative_config": {"method": "eagle", "num_speculative_tokens": 2}, "draft_config": models.EAGLE},
    ),
    (
        "eagle3",
        models.LLAMA,
        {
            **SMALL,
            "speculative_config": {"method": "eagle3", "num_speculative_tokens": 2},
            "draft_config": models.EAGLE3,
        },
    ),
    ("cannot-draft", models.LLAMA, {**SMALL, "speculative_config": MTP}),
    ("qwen2-moe", models.QWEN2_MOE, SMALL),
    (
        "qwen2-moe-window",
        {**models.QWEN2_MOE, "use_sliding_window": True, "sliding_window": 256, "max_window_layers": 0},
        LONG,
    ),
    ("qwen3-moe-window", {**models.QWEN3_MOE, "use_sliding_window": True, "sliding_window": 256}, LONG),
    ("glm4", models.GLM4, SMALL),
    ("layer-types", {**models.MISTRAL, "layer_types": ["sliding_attention", "full_attention"] * 2}, LONG),
    ("gpt-oss-types", {**models.GPT_OSS, "layer_types": ["full_attention"] * 5}, LONG),
    ("unhybrid", models.GEMMA3, {**LONG, "disable_hybrid_kv_cache_manager": True}),
    ("override", models.LLAMA, {**SMALL, "num_gpu_blocks_override": 9}),
    ("hf-overrides", models.LLAMA, {**SMALL, "hf_overrides": {"num_hidden_layers": 2}}),
    (
        "linear-rope",
        {**models.LLAMA, "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
        {"max_model_len": -1, "kv_cache_memory_bytes": 400_000_000},
    ),
    ("no-context", {key: value for key, value in models.LLAMA.items() if key != "max_position_embeddings"}, SMALL),
    ("float16", {**models.LLAMA, "torch_dtype": "float16"}, SMALL),
    ("float32", {**models.LLAMA, "torch_dtype": "float32"}, SMALL),
    ("one-token", models.DEEPSEEK_V3, {"max_model_len": 1, "kv_cache_memory_bytes": 200_000}),
    ("qwen2-head-dim", {**models.QWEN2, "head_dim": 64}, SMALL),
    ("qwen2-moe-head-dim", {**models.QWEN2_MOE, "head_dim": 64}, SMALL),
    ("no-kv-heads", {key: value for key, value in models.QWEN3_MOE.items() if key != "num_key_value_heads"}, SMALL),
    ("default-rope", {**models.LLAMA, "rope_scaling": {"rope_type": "default", "factor": 2.0}}, TOO_LONG),
    ("nemotron-too-long", models.NEMOTRON_H, TOO_LONG),
    ("batch-too-small", models.LLAMA, {**SMALL, "max_num_batched_tokens": 2}),
    ("qwen3-next-drafts", models.QWEN3_NEXT_PLAIN, {**LARGE, "speculative_config": MTP}),
    (
        "nemotron-mtp",
        {**models.NEMOTRON_H, "num_nextn_predict_layers": 1, "mtp_hybrid_override_pattern": "*"},
        {**LARGE, "speculative_config": MTP},
    ),
]

MANY = {"distributed_executor_backend": "mp"}
# How the text of a rank comes out of its process.
CARRIED = "Worker failed with error '{}', please check the stack trace above for the root cause"
# Engines of two processes, one for each rank.
RANKS: list[Case] = [
    ("tp2", models.LLAMA, {**SMALL, **MANY, "tensor_parallel_size": 2}),
    ("pp2", models.GEMMA3, {**LONG, **MANY, "pipeline_parallel_size": 2}),
    (
        "tp2-mla-mtp",
        models.DEEPSEEK_V3,
        {
            **MANY,
            "max_model_len": 256,
            "kv_cache_memory_bytes": 2_000_000,
            "tensor_parallel_size": 2,
            "speculative_config": MTP,
        },
    ),
    (
        "tp2-dcp2",
        {**models.LLAMA, "num_key_value_heads": 1},
        {**SMALL, **MANY, "tensor_parallel_size": 2, "decode_context_parallel_size": 2},
    ),
    ("pp2-hybrid", models.NEMOTRON_H, {**LARGE, **MANY, "pipeline_parallel_size": 2}),
]


def host_options(oracle: Oracle, config: dict[str, t.Any]) -> dict[str, t.Any]:
    """What the CPU engine makes of this host: AMX has its own MLA kernel, AVX512-BF16 wants float32 states."""
    host = oracle.ask("hello")
    options: dict[str, t.Any] = {}
    if host["avx512_bf16"]:
        options["mamba_ssm_cache_dtype"] = "float32"
    if host["amx"] and "kv_lora_rank" in config:
        options["attention_backend"] = "AMX_MLA"
    return options


def _compare(oracle: Oracle, config: dict[str, t.Any], arguments: dict[str, t.Any]) -> None:
    engine_arguments = {key: value for key, value in arguments.items() if key != "draft_config"}
    theirs = oracle.ask(
        "engine",
        config=config,
        draft_config=arguments.get("draft_config"),
        arguments={**SCHEDULER, **engine_arguments},
    )
    asked = {key: value for key, value in arguments.items() if key != "distributed_executor_backend"}
    question = {**SCHEDULER, **asked, "config": config, "device": "cpu", "engine": "0.32.0"}
    ours = fit({**question, **host_options(oracle, config)})
    if not theirs["ok"]:
        # A validator wraps the text, and so does what carries it from one rank's process to another; elsewhere it is
        # the whole of it.
        assert ours["engine_error"] is not None, theirs
        if theirs["error"].startswith(CARRIED.split("{")[0]):
            assert theirs["error"] == CARRIED.format(ours["engine_error"])
            return
        wrapped = theirs["kind"] == "ValidationError"
        assert ours["engine_error"] in theirs["error"] if wrapped else ours["engine_error"] == theirs["error"]
        return
    assert ours["engine_error"] is None, theirs
    assert (ours["num_blocks"], ours["kv_cache_tokens"], ours["max_concurrency"], ours["planned_model_len"]) == (
        theirs["blocks"],
        theirs["tokens"],
        theirs["concurrency"],
        theirs["max_model_len"],
    )


@pytest.mark.parametrize(("config", "arguments"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_engine(oracle: Oracle, config: dict[str, t.Any], arguments: dict[str, t.Any]) -> None:
    """A dozen engines, started and asked for their capacity."""
    _compare(oracle, config, arguments)


@pytest.mark.slow
@pytest.mark.parametrize(("config", "arguments"), [case[1:] for case in MORE], ids=[case[0] for case in MORE])
def test_more_engines(oracle: Oracle, config: dict[str, t.Any], arguments: dict[str, t.Any]) -> None:
    """Every family and option that a CPU engine can run."""
    _compare(oracle, config, arguments)


@pytest.mark.slow
@pytest.mark.parametrize(("config", "arguments"), [case[1:] for case in RANKS], ids=[case[0] for case in RANKS])
def test_engines_of_two_ranks(oracle: Oracle, config: dict[str, t.Any], arguments: dict[str, t.Any]) -> None:
    """Real ranks, each in its own process, over tensor and pipeline parallelism."""
    _compare(oracle, config, arguments)
