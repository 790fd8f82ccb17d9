# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which layers of a model with sparse attention (DSA) carry an indexer: ours beside vLLM's own model classes.

The classes are built for real, on every pipeline stage and with their draft layers; only the kernel is a stand-in.
"""

from __future__ import annotations

import random
import re
import typing as t

import pytest

from ansible_collections.sparkrig.serving.plugins.module_utils._kv_options import parse_request
from ansible_collections.sparkrig.serving.plugins.module_utils._kv_planner import build_geometry
from ansible_collections.sparkrig.serving.plugins.module_utils._kv_specs import INDEXER
from tests.oracle.models import DEEPSEEK_V3
from tests.oracle.oracle import Oracle

ARCHITECTURES = {"glm_moe_dsa": "GlmMoeDsaForCausalLM", "deepseek_v32": "DeepseekV32ForCausalLM"}
# Layer number, and whether it is an indexer.
Held = list[list[tuple[int, bool]]]


def generate(seed: int) -> tuple[dict[str, t.Any], dict[str, t.Any]]:
    """A model that says in one of the three ways which layers carry an indexer, and the engine's arguments."""
    draw = random.Random(seed)
    model_type = draw.choice(sorted(ARCHITECTURES))
    layers = draw.randint(1, 12)
    config: dict[str, t.Any] = {
        **DEEPSEEK_V3,
        "model_type": model_type,
        "architectures": [ARCHITECTURES[model_type]],
        "num_hidden_layers": layers,
        "num_nextn_predict_layers": draw.choice([1, 1, 2]),
        "index_topk": 64,
        "index_head_dim": 128,
        "index_n_heads": 4,
    }
    rule: dict[str, t.Any] = {}
    if draw.random() < 0.6:
        rule["index_topk_freq"] = draw.choice([1, 2, 3, 4, 20])
    if draw.random() < 0.6:
        rule["index_skip_topk_offset"] = draw.choice([0, 1, 2, 3, 5, 20])
    if draw.random() < 0.4:
        length = draw.choice([layers, layers, layers + 1, layers + 3, max(1, layers - 2)])
        rule["index_topk_pattern"] = "".join(draw.choice("FS") for _layer in range(length))
    elif draw.random() < 0.2:
        rule["index_topk_pattern"] = None
    arguments: dict[str, t.Any] = {"max_model_len": 512, "kv_cache_memory_bytes": 4_000_000}
    if draw.random() < 0.3:
        # As an engine's hf_overrides name it, the config being silent.
        arguments["hf_overrides"] = {key: value for key, value in rule.items() if value is not None}
    else:
        config.update(rule)
    if draw.random() < 0.3:
        arguments["pipeline_parallel_size"] = draw.choice([stages for stages in (1, 2, 3) if stages <= layers])
    if draw.random() < 0.5:
        arguments["speculative_config"] = {"method": "mtp", "num_speculative_tokens": 1}
    return config, arguments


def ours(config: dict[str, t.Any], arguments: dict[str, t.Any]) -> Held:
    """What each stage holds by the fitter."""
    geometry = build_geometry(parse_request({**arguments, "config": config, "device": "cuda", "engine": "0.32.0"}))
    return [
        sorted((entry.layer, entry.spec.kind == INDEXER) for entry in geometry.entries if first <= entry.layer < end)
        for first, end in geometry.stage_bounds
    ]


def theirs(oracle: Oracle, config: dict[str, t.Any], arguments: dict[str, t.Any]) -> Held:
    """The same by the names that the model's class registers."""
    answer = oracle.ask("layers", config=config, arguments=arguments)
    assert answer["ok"], (config, arguments, answer)
    stages: Held = []
    for names in answer["stages"]:
        numbers = [re.search(r"layers\.(\d+)\.", name) for name in names]
        stages.append(sorted((int(n.group(1)), "indexer" in name) for n, name in zip(numbers, names) if n is not None))
        assert len(stages[-1]) == len(names)
    return stages


def check(oracle: Oracle, seeds: range) -> None:
    """Frequency and offset, a pattern, or every layer; none deviates."""
    for seed in seeds:
        config, arguments = generate(seed)
        assert ours(config, arguments) == theirs(oracle, config, arguments), (seed, config, arguments)


def test_layers_with_an_indexer(oracle: Oracle) -> None:
    """A dozen models, from all of the three ways."""
    check(oracle, range(12))


@pytest.mark.slow
@pytest.mark.parametrize("first", range(12, 72, 20))
def test_more_layers_with_an_indexer(oracle: Oracle, first: int) -> None:
    """The same, for as long as there is time."""
    check(oracle, range(first, first + 20))


def test_the_three_ways_differ(oracle: Oracle) -> None:
    """The published GLM-5.2: 21 of 78 layers by its rule and by its pattern, and all of them where neither is given."""
    base = {**DEEPSEEK_V3, "model_type": "glm_moe_dsa", "architectures": ["GlmMoeDsaForCausalLM"]}
    base.update(num_hidden_layers=78, index_topk=64, index_head_dim=128, index_n_heads=4, first_k_dense_replace=78)
    rule = {"index_topk_freq": 4, "index_skip_topk_offset": 3}
    ways: dict[str, dict[str, t.Any]] = {
        "rule": rule,
        "pattern": {"index_topk_pattern": "FFF" + "SSSF" * 18 + "SSS"},
        "every": {},
    }
    counted = {}
    for way, keys in ways.items():
        held = theirs(oracle, {**base, **keys}, {"max_model_len": 512, "kv_cache_memory_bytes": 10**8})
        assert ours({**base, **keys}, {"max_model_len": 512, "kv_cache_memory_bytes": 10**8}) == held
        counted[way] = sum(indexer for _layer, indexer in held[0])
    assert counted == {"rule": 21, "pattern": 21, "every": 78}
