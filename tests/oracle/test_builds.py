# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Our answer, from config.json and options alone, beside what vLLM's own model classes hold on every rank.

Real configuration, real model classes on every pipeline stage and the real planner; only the other ranks are missing,
so that any TP, PP and DCP can be asked for on one machine.
"""

from __future__ import annotations

import typing as t

import pytest

from ansible_collections.sparkrig.serving.plugins.module_utils._kv_node import fit
from tests.oracle import models
from tests.oracle.builds import generate
from tests.oracle.models import QWEN3_5, QWEN3_5_MOE
from tests.oracle.oracle import Oracle
from tests.oracle.published import PUBLISHED, light
from tests.oracle.test_engine import host_options

QUICK, SLOW = 60, 400
# What only this emulation or a CPU cannot do; there is nothing to compare then.
BEYOND_A_CPU = ("No Unquantized MoE backend", "scaled_fp8_quant")
# 0.32 takes the interleave under its new name only; the old one is still parsed, and does nothing.
NAMES = {"dcp_kv_cache_interleave_size": "cp_kv_cache_interleave_size"}
# What the engine's layers say after the cache was planned, which a plan alone does not reach.
AFTER_THE_PLAN = ("No common block size", "softmax LSE", "cp_kv_cache_interleave_size > 1")


def disagreement(oracle: Oracle, seed: int) -> str | None:
    """What the two do not agree on in a generated model."""
    return difference(oracle, *generate(seed))


def difference(
    oracle: Oracle, config: dict[str, t.Any], arguments: dict[str, t.Any], draft: dict[str, t.Any] | None = None
) -> str | None:
    """What the two do not agree on."""
    budget = arguments["kv_cache_memory_bytes"]
    named = {NAMES.get(key, key): value for key, value in arguments.items()}
    theirs = oracle.ask("build", config=config, arguments=named, draft_config=draft, available=budget)
    question: dict[str, t.Any] = {**arguments, "config": config, "device": "cpu", "engine": "0.32.0"}
    if draft is not None:
        question["draft_config"] = draft
    error = str(theirs.get("error", ""))
    if any(text in error for text in BEYOND_A_CPU):
        return None
    try:
        ours = fit({**question, **host_options(oracle, config)})
    except ValueError as malformed:
        # A config that the config class refuses, or a model class that misses a key.
        unreadable = "validation error for" in error.lower() or "has no attribute" in error
        unreadable = unreadable or theirs.get("kind") == "KeyError"
        return None if not theirs["ok"] and unreadable else f"{malformed} / {theirs}"
    refusal = ours["engine_error"]
    if not theirs["ok"]:
        return None if refusal is not None and refusal in error else f"{refusal} / {theirs}"
    if refusal is not None and not any(text in refusal for text in AFTER_THE_PLAN):
        return f"{refusal} / {theirs}"
    pairs = {
        "blocks": (ours["num_blocks"], theirs["blocks"]),
        "tokens": (ours["kv_cache_tokens"], theirs["tokens"]),
        "concurrency": (ours["max_concurrency"], theirs["concurrency"]),
        "context": (ours["planned_model_len"], theirs["max_model_len"]),
        "block bytes": (ours["bytes_per_block"], max(theirs["block_bytes"])),
    }
    different = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
    return str(different) if different else None


def disagreements(oracle: Oracle, seeds: range) -> dict[int, str]:
    """All of them, by seed."""
    found = {seed: disagreement(oracle, seed) for seed in seeds}
    return {seed: text for seed, text in found.items() if text is not None}


@pytest.mark.parametrize("first", range(0, QUICK, 20))
def test_builds(oracle: Oracle, first: int) -> None:
    """Models of every family, built and planned without any deviation."""
    assert disagreements(oracle, range(first, first + 20)) == {}


@pytest.mark.slow
@pytest.mark.parametrize("first", range(QUICK, QUICK + SLOW, 20))
def test_more_builds(oracle: Oracle, first: int) -> None:
    """The same, for as long as there is time."""
    assert disagreements(oracle, range(first, first + 20)) == {}


QWEN35 = {"max_num_batched_tokens": 512, "max_num_seqs": 4, "max_model_len": 2048, "kv_cache_memory_bytes": 40_000_000}
# What is asked of a Qwen3.5, and what its config has besides.
QWEN35_CASES: dict[str, tuple[dict[str, t.Any], dict[str, t.Any]]] = {
    "plain": ({}, {}),
    "mtp": ({}, {"speculative_config": {"method": "mtp", "num_speculative_tokens": 3}}),
    "float32-states": ({"mamba_ssm_dtype": "float32"}, {}),
    "uncached": ({"mamba_ssm_dtype": "float32"}, {"enable_prefix_caching": False}),
    "tp2": ({"mamba_ssm_dtype": "float32"}, {"tensor_parallel_size": 2}),
    "pp2": ({}, {"pipeline_parallel_size": 2}),
    "interval": ({"full_attention_interval": 2}, {"max_model_len": -1}),
    "layer-types": ({"layer_types": ["full_attention", *["linear_attention"] * 2, "full_attention"]}, {}),
    "fp8": ({}, {"kv_cache_dtype": "fp8"}),
    "too-long": ({}, {"max_model_len": 8192, "kv_cache_memory_bytes": 4_000_000}),
}


@pytest.mark.parametrize("name", sorted(QWEN35_CASES))
@pytest.mark.parametrize("config", [QWEN3_5, QWEN3_5_MOE], ids=["dense", "experts"])
def test_qwen35(oracle: Oracle, config: dict[str, t.Any], name: str) -> None:
    """The text part of Qwen3.5, with and without experts."""
    keys, arguments = QWEN35_CASES[name]
    assert difference(oracle, {**config, **keys}, {**QWEN35, **arguments}) is None


ODD = {"max_num_batched_tokens": 512, "max_num_seqs": 4, "max_model_len": 1024, "kv_cache_memory_bytes": 40_000_000}
MIXED = {"sliding_window": 64, "layer_types": ["full_attention", "sliding_attention"]}
# What a config may say and few do, and what is asked of it.
ODD_CASES: dict[str, tuple[dict[str, t.Any], dict[str, t.Any], dict[str, t.Any]]] = {
    "window-of-glm4": (models.GLM4, {"sliding_window": 64}, {}),
    "window-of-glm4-moe": (models.GLM4_MOE, {"sliding_window": 1}, {}),
    "window-of-some-layers": (models.MINIMAX_M2, MIXED, {}),
    "window-0": (models.GEMMA2, {"sliding_window": 0}, {}),
    "window-null": (models.GEMMA3, {"sliding_window": None}, {}),
    "window-off": (models.GEMMA3, {}, {"disable_sliding_window": True, "max_model_len": -1}),
    "window-off-too-long": (models.GEMMA3, {}, {"disable_sliding_window": True}),
    "window-off-too-long-scaled": (models.MISTRAL, {}, {"disable_sliding_window": True}),
    "chunks-in-gemma": (models.GEMMA3, {"layer_types": ["chunked_attention"] * 6}, {}),
    "chunks-in-qwen": (models.QWEN3_NEXT, {"layer_types": ["chunked_attention"] * 4}, {}),
    "head-dim-null": (models.GLM4_MOE, {"head_dim": None}, {}),
    "kv-heads-null": (models.QWEN2_MOE, {"num_key_value_heads": None}, {}),
    "context-null": (models.LLAMA, {"max_position_embeddings": None}, {}),
    "rope-without-factor": (models.LLAMA, {"rope_scaling": {"rope_type": "linear"}}, {}),
    "gpt-oss-tp4": (models.GPT_OSS, {}, {"tensor_parallel_size": 4}),
}


@pytest.mark.parametrize("name", sorted(ODD_CASES))
def test_odd(oracle: Oracle, name: str) -> None:
    """Odd, but read by the engine in one way only, or refused."""
    config, keys, arguments = ODD_CASES[name]
    assert difference(oracle, {**config, **keys}, {**ODD, **arguments}) is None


FITTED = {"max_model_len": -1, "kv_cache_memory_bytes": 4 * 10**9}
MTP = {"method": "mtp", "num_speculative_tokens": 1}
# What else is asked of a published model.
ASKED: dict[str, list[dict[str, t.Any]]] = {
    name: [
        {**FITTED, "tensor_parallel_size": 2},
        {"max_model_len": 4096, "kv_cache_memory_bytes": 2 * 10**9, "kv_cache_dtype": "fp8"},
        {"max_model_len": 20_000, "kv_cache_memory_bytes": 10**9, "pipeline_parallel_size": 2},
    ]
    for name in ("deepseek-v2-lite", "gpt-oss-20b", "nemotron-3-nano-30b", "nemotron-nano-9b-v2", "qwen3-next-80b-a3b")
}
ASKED["gpt-oss-20b"].append({**FITTED, "hf_overrides": {"num_hidden_layers": 7}})
ASKED["qwen3-8b"] = [{**FITTED, "hf_overrides": {"num_attention_heads": 16}}]
ASKED["llama-3.2-1b"] = [{**FITTED, "hf_overrides": {"rope_parameters": {"rope_type": "linear", "factor": 2.0}}}]
ASKED["gemma-3-12b"] = [{**FITTED, "hf_overrides": {"num_hidden_layers": 11, "sliding_window_pattern": 2}}]
for drafted in ("deepseek-v3", "glm-4.5", "glm-4.7-flash", "qwen3-next-80b-a3b"):
    ASKED.setdefault(drafted, []).append({**FITTED, "speculative_config": MTP})
QUICK_MODELS = ("deepseek-v2-lite", "gemma-3-4b", "glm-4.6", "gpt-oss-20b", "nemotron-nano-9b-v2", "qwen3-next-80b-a3b")


def check_published(oracle: Oracle, name: str) -> None:
    """A published model, the cache of which its size does not touch, with small weights."""
    config = light(PUBLISHED[name])
    if "text_config" in config:
        # The class that sees pictures wants packages that a server of text has not; the text part is the same.
        config = {**config["text_config"], "architectures": ["Gemma3ForCausalLM"]}
    # Heads that are as wide as the model: a share of one rank is what this machine has memory for.
    wide = "head_dim" not in config and config["num_hidden_layers"] * config.get("hidden_size", 0) > 32 * 4096
    for asked in [FITTED, *ASKED.get(name, [])]:
        arguments = {"max_num_batched_tokens": 2048, "max_num_seqs": 4, **asked}
        if wide:
            arguments["tensor_parallel_size"] = 8
        assert difference(oracle, config, arguments) is None, asked


@pytest.mark.parametrize("name", QUICK_MODELS)
def test_published(oracle: Oracle, name: str) -> None:
    """Models as they are published, built and planned without any deviation."""
    check_published(oracle, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(PUBLISHED) - set(QUICK_MODELS)))
def test_more_published(oracle: Oracle, name: str) -> None:
    """The others."""
    check_published(oracle, name)
