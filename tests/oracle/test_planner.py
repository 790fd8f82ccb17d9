# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Our planner beside the functions of vLLM's planner, on generated models and options."""

from __future__ import annotations

import os
import typing as t
from pathlib import Path

import pytest

from ansible_collections.sparkrig.serving.plugins.module_utils._kv_options import parse_request
from ansible_collections.sparkrig.serving.plugins.module_utils._kv_planner import (
    Capacity,
    Geometry,
    build_geometry,
    plan_cache,
)
from ansible_collections.sparkrig.serving.plugins.module_utils._kv_specs import EngineRefusal
from lab.sources import python_sources
from tests.oracle.cases import generate
from tests.oracle.models import MIMO_V2
from tests.oracle.oracle import OLD_SERVER, VARIABLE, Oracle, plan_question

CASES = 600
OLD_VERSIONS = ("0.13.0", "0.20.0", "0.24.0", "0.26.0", "0.28.0")


def test_version(oracle: Oracle) -> None:
    """The oracle is the version whose dialect the tests ask for."""
    assert oracle.ask("hello")["version"].startswith("0.32.0")


def test_executors_that_schedule_ahead(oracle: Oracle) -> None:
    """All of them, Ray's too: the blocks of a sliding window are counted by the batches in flight."""
    assert oracle.ask("hello")["overlaps"] == {"mp": True, "ray": True, "uni": True}


def _ours(options: dict[str, t.Any]) -> tuple[Geometry, Capacity | None, str]:
    request = parse_request(options)
    geometry = build_geometry(request)
    try:
        return geometry, plan_cache(geometry, request.kv_cache_memory_bytes, request.max_model_len), ""
    except EngineRefusal as refusal:
        return geometry, None, str(refusal)


def differences(geometry: Geometry, capacity: Capacity | None, refusal: str, theirs: dict[str, t.Any]) -> list[str]:
    """What the two planners do not agree on."""
    if capacity is None or capacity.error is not None and not theirs["ok"]:
        error = refusal if capacity is None else capacity.error
        return [] if theirs.get("error") == error else [f"error: {error} / {theirs}"]
    if capacity.error is not None:
        return [f"we refuse: {capacity.error} / {theirs}"]
    if not theirs["ok"]:
        return ["they refuse: {}".format(theirs["error"])]
    tp = geometry.request.tensor_parallel_size
    pairs = {
        "blocks": (capacity.blocks, theirs["blocks"]),
        "tokens": (capacity.tokens, theirs["tokens"]),
        "concurrency": (capacity.concurrency, theirs["concurrency"]),
        "context": (capacity.context, theirs["max_model_len"]),
        "groups": (sorted(len(group.entries) for group in geometry.stages[0].groups), theirs["groups"]),
    }
    if geometry.dialect.version < (0, 20) and len(geometry.stages) > 1:
        # There a stage names its own layers of a group of mixed pages, and counts the bytes of all.
        del pairs["groups"]
    if theirs["block_bytes"] is not None:
        pairs["block bytes"] = ([stage.block_bytes for stage in geometry.stages], theirs["block_bytes"][::tp])
    return [f"{name}: {ours} / {other}" for name, (ours, other) in pairs.items() if ours != other]


def _compare(oracle: Oracle, seeds: range, changes: dict[str, t.Any]) -> int:
    compared = 0
    for seed in seeds:
        options = {**generate(seed), **changes}
        if options.get("engine") == "0.13.0" and options["config"]["model_type"] == "llama4_text":
            # Chunked attention switches it off there, before the planner is asked.
            options["disable_hybrid_kv_cache_manager"] = True
        try:
            geometry, capacity, refusal = _ours(options)
        except EngineRefusal:
            # Refused before there is a cache to plan: the rules of TP and DCP, which test_engine.py compares.
            continue
        except ValueError:
            # An older version does not know the cache dtype, or to look for the context itself.
            if options.get("engine", "") not in OLD_VERSIONS:
                raise
            continue
        request = geometry.request
        context = -1 if request.max_model_len == -1 else request.max_model_len or 0
        theirs = oracle.ask("plan", **plan_question(geometry, request.kv_cache_memory_bytes, context))
        assert differences(geometry, capacity, refusal, theirs) == [], (seed, options)
        compared += 1
    return compared


@pytest.mark.parametrize("first", range(0, CASES, 50))
def test_generated(oracle: Oracle, first: int) -> None:
    """Blocks, tokens, concurrency, bytes of a block, groups and refusals, without any deviation."""
    assert _compare(oracle, range(first, first + 50), {}) > 25


@pytest.mark.parametrize("first", range(0, 200, 50))
def test_packed_layout(oracle: Oracle, first: int) -> None:
    """The layout that keeps all layers of a block together: groups with pages of different sizes."""
    assert _compare(oracle, range(first, first + 50), {"kv_cache_layout": "BLHNC"}) > 25


@pytest.mark.slow
@pytest.mark.parametrize("version", ["0.30.0", "0.31.0", "0.33.0"])
def test_other_versions(version: str) -> None:
    """The same for the planners of other versions, whose sources come from the package index once."""
    (packages,) = Path(os.environ[VARIABLE]).parents[1].glob("lib/python3.*/site-packages")
    other = Oracle(python_sources(version, packages))
    try:
        assert _compare(other, range(CASES), {"engine": version}) > 400
        assert _compare(other, range(200), {"engine": version, "kv_cache_layout": "BLHNC"}) > 120
    finally:
        other.close()


@pytest.mark.slow
@pytest.mark.parametrize("version", OLD_VERSIONS)
def test_old_versions(version: str) -> None:
    """The same for the planners before 0.30, as their functions are found."""
    (packages,) = Path(os.environ[VARIABLE]).parents[1].glob("lib/python3.*/site-packages")
    other = Oracle(python_sources(version, packages), OLD_SERVER)
    try:
        assert _compare(other, range(CASES), {"engine": version}) > 200
    finally:
        other.close()


def test_different_head_sizes(oracle: Oracle) -> None:
    """MiMo-V2: K heads of 192 and V heads of 128, and other KV heads in windowed layers."""
    compared = 0
    for layout in ("LBNHC", "BLHNC"):
        for tp in (1, 2, 4, 8):
            options = {
                "config": MIMO_V2,
                "tensor_parallel_size": tp,
                "kv_cache_memory_bytes": 10**9,
                "max_model_len": 65_536,
                "kv_cache_layout": layout,
            }
            geometry, capacity, refusal = _ours(options)
            theirs = oracle.ask("plan", **plan_question(geometry, (10**9,) * tp, 65_536))
            assert differences(geometry, capacity, refusal, theirs) == [], options
            compared += 1
    assert compared == 8
