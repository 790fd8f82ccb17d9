# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What must hold for every model and every budget."""

from __future__ import annotations

import typing as t

from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.sparkrig.serving.plugins.module_utils._kv_options import parse_request
from ansible_collections.sparkrig.serving.plugins.module_utils._kv_planner import (
    Capacity,
    build_geometry,
    plan_cache,
)
from ansible_collections.sparkrig.serving.plugins.module_utils._kv_specs import EngineRefusal
from tests.oracle.cases import generate

ENGINES = ("0.13.0", "0.20.0", "0.24.0", "0.26.0", "0.28.0", "0.30.0", "0.32.0", "0.33.0", "dark-devotion")
SIZES = st.integers(min_value=1, max_value=2**36)


def capacity(options: dict[str, t.Any], size: int, context: int) -> Capacity | None:
    """The capacity of a generated model at a budget, None where the options themselves are refused."""
    request = parse_request({**options, "kv_cache_memory_bytes": size, "max_model_len": context})
    try:
        return plan_cache(build_geometry(request), request.kv_cache_memory_bytes, context)
    except EngineRefusal:
        return None


def latent(engine: str, dcp: int, layers: int) -> dict[str, t.Any]:
    """A model whose cache DCP deals out completely."""
    config = {
        "model_type": "deepseek_v3",
        "num_hidden_layers": layers,
        "num_attention_heads": 64,
        "kv_lora_rank": 512,
        "qk_rope_head_dim": 64,
    }
    return {
        "config": config,
        "engine": engine,
        "tensor_parallel_size": 8,
        "decode_context_parallel_size": dcp,
        "block_size": 64,
    }


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 10**6), size=SIZES, more=SIZES)
def test_more_bytes_never_hold_less(seed: int, size: int, more: int) -> None:
    """Blocks, tokens and the longest context grow with the budget."""
    options = generate(seed)
    options.pop("num_gpu_blocks_override", None)
    small, large = capacity(options, size, 100), capacity(options, size + more, 100)
    if small is None or large is None:
        return
    assert small.blocks <= large.blocks
    assert small.tokens <= large.tokens
    assert small.longest <= large.longest


@settings(max_examples=150, deadline=None)
@given(engine=st.sampled_from(ENGINES), dcp=st.sampled_from([1, 2, 4, 8]), layers=st.integers(1, 61), size=SIZES)
def test_longest_is_the_longest(engine: str, dcp: int, layers: int, size: int) -> None:
    """The longest context fits, and one token more does not."""
    options = latent(engine, dcp, layers)
    first = capacity(options, size, 10**9)
    assert first is not None
    if first.longest == 0:
        return
    at_most, beyond = capacity(options, size, first.longest), capacity(options, size, first.longest + 1)
    assert at_most is not None and at_most.error is None
    assert beyond is not None and beyond.error is not None


@settings(max_examples=150, deadline=None)
@given(engine=st.sampled_from(ENGINES), dcp=st.sampled_from([2, 4, 8]), layers=st.integers(1, 61), size=SIZES)
def test_dcp_multiplies_tokens(engine: str, dcp: int, layers: int, size: int) -> None:
    """DCP n holds n times the tokens of a cache that is fully dealt out."""
    # A context that every block size times DCP divides, so that the display does not round.
    alone, shared = (capacity(latent(engine, ranks, layers), size, 64 * 8 * 16) for ranks in (1, dcp))
    assert alone is not None and shared is not None
    assert shared.blocks == alone.blocks
    assert shared.tokens == alone.tokens * dcp
