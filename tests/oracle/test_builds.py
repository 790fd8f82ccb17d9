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
from tests.oracle.builds import generate
from tests.oracle.oracle import Oracle
from tests.oracle.test_engine import host_options

QUICK, SLOW = 60, 400
# What only this emulation or a CPU cannot do; there is nothing to compare then.
BEYOND_A_CPU = ("No Unquantized MoE backend", "scaled_fp8_quant")
# 0.32 takes the interleave under its new name only; the old one is still parsed, and does nothing.
NAMES = {"dcp_kv_cache_interleave_size": "cp_kv_cache_interleave_size"}
# What the engine's layers say after the cache was planned, which a plan alone does not reach.
AFTER_THE_PLAN = ("No common block size", "softmax LSE", "cp_kv_cache_interleave_size > 1")


def disagreement(oracle: Oracle, seed: int) -> str | None:
    """What the two do not agree on."""
    config, arguments, draft = generate(seed)
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
