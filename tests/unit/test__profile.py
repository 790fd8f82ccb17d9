# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import re
import typing as t
from pathlib import Path

import pytest
import yaml

from ansible_collections.sparkrig.serving.plugins.module_utils._profile import (
    KEYS,
    load_profile,
    merged,
    world_size,
)

VARS = Path(__file__).parents[2] / "roles" / "profile" / "vars"
SHIPPED = sorted(path.stem for path in VARS.glob("*.yml"))


def content(name: str) -> dict[str, t.Any]:
    loaded = yaml.safe_load((VARS / f"{name}.yml").read_text(encoding="utf-8"))["profile_content"]
    assert isinstance(loaded, dict)
    return loaded


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_profiles_are_valid(name: str) -> None:
    profile = load_profile(name, content(name), {})
    assert profile["name"] == name
    assert set(profile) <= set(KEYS)


def test_overrides_are_merged_key_by_key() -> None:
    profile = load_profile("lab_cpu", content("lab_cpu"), {"model": {"path": "/other"}, "max_num_seqs": 1})
    assert profile["model"] == {"base": "/srv/models/lab-base", "overlay": "/srv/models/lab-mtp", "path": "/other"}
    assert profile["max_num_seqs"] == 1


def test_null_switches_an_option_off() -> None:
    profile = load_profile("lab_cpu", content("lab_cpu"), {"speculative_config": None})
    assert profile["speculative_config"] is None


def test_merged_leaves_its_inputs_alone() -> None:
    base = {"a": {"b": 1}}
    assert merged(base, {"a": {"c": 2}}) == {"a": {"b": 1, "c": 2}}
    assert base == {"a": {"b": 1}}


def test_world_size_counts_pipeline_ranks() -> None:
    assert world_size({"tensor_parallel_size": 4, "pipeline_parallel_size": 2}) == 8


def test_the_engine_s_other_options_are_passed_on() -> None:
    profile = load_profile("lab_cpu", content("lab_cpu"), {"reasoning_parser": "glm45", "stream_interval": 2})
    assert (profile["reasoning_parser"], profile["stream_interval"]) == ("glm45", 2)


def test_the_kv_cache_may_be_sized_by_the_fit() -> None:
    profile = load_profile("lab_cpu", content("lab_cpu"), {"kv_cache_memory_bytes": "auto"})
    assert profile["kv_cache_memory_bytes"] == "auto"


REFUSED: list[tuple[dict[str, t.Any], str]] = [
    ({"max_modle_len": 5}, "'max_modle_len' is no key of a profile (did you mean 'max_model_len'?)"),
    ({"model": {"bass": "/x"}}, "'model.bass' is no key of a profile (did you mean 'base'?)"),
    ({"max_model_len": "8k"}, "profile key 'max_model_len' is '8k' (str); it must be of type int"),
    ({"max_model_len": True}, "profile key 'max_model_len' is True (bool); it must be of type int"),
    ({"max_model_len": 0}, "max_model_len is 0; it must be a number of tokens, or -1 for the longest that fits"),
    ({"max_num_seqs": 0}, "profile key 'max_num_seqs' is 0; it must be at least 1"),
    ({"kv_cache_memory_bytes": "all"}, "profile key 'kv_cache_memory_bytes' is 'all' (str); it must be of type int"),
    ({"stream_interval": "x"}, "profile key 'stream_interval' is 'x' (str); it must be of type int"),
    ({"port": 70000}, "profile key 'port' is 70000; it must be at most 65535"),
    ({"tensor_parallel_size": None}, "profile key 'tensor_parallel_size' has no value; it needs one (int)"),
    ({"model": {"path": "models/x"}}, "profile key 'model.path' is 'models/x'; it must match /.+"),
    (
        {"runtime": {"source": {"kind": "docker"}}},
        "profile key 'runtime.source.kind' is 'docker'; it must be one of git, path, wheel",
    ),
    (
        {"decode_context_parallel_size": 3},
        "decode_context_parallel_size is 3, which does not divide tensor_parallel_size 4",
    ),
    (
        {"speculative_config": {"num_speculative_tokens": 0}},
        "speculative_config.num_speculative_tokens is 0; it must be a number of tokens from 1 on,"
        " or speculative_config must be null",
    ),
    (
        {"speculative_config": {"num_speculative_tokens": 3}, "max_cudagraph_capture_size": 4},
        "max_cudagraph_capture_size is 4; with num_speculative_tokens 3 it must be greater than 4,"
        " or the engine ends with 'No valid cudagraph sizes'",
    ),
    (
        {"environment": {"NCCL_IB_DISABLE": "1"}},
        "environment.NCCL_IB_DISABLE is '1'; it must stay '0': without RDMA the ranks fall back to sockets,"
        " which costs more than half of the speed and is not reported",
    ),
    (
        {"environment": {"NCCL_IB_GID_INDEX": ""}},
        "environment.NCCL_IB_GID_INDEX is ''; the right index differs by node and moves after a reboot"
        " (and NCCL reads an empty one as 0): take it out, it is resolved on each node at every start where it is"
        " needed",
    ),
    (
        {"environment": {"VLLM_HOST_IP": "10.0.0.1"}},
        "environment.VLLM_HOST_IP is '10.0.0.1', but VLLM_HOST_IP differs by node: role fabric sets it; take it out",
    ),
    ({"environment": {"A B": "1"}}, "environment has the variable 'A B', which is no name of a variable"),
    (
        {"environment": {"A": "1\n2"}},
        "environment.A is '1\\n2'; a value of more than one line cannot be passed on",
    ),
    (
        {"environment": {"OMP_NUM_THREADS": 1}},
        "profile key 'environment.OMP_NUM_THREADS' is 1 (int); it must be of type str",
    ),
]


@pytest.mark.parametrize(("overrides", "sentence"), REFUSED)
def test_refusals_name_key_value_and_rule(overrides: dict[str, t.Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        load_profile("lab_cpu", content("lab_cpu"), overrides)


def test_a_missing_key_is_named() -> None:
    shipped = content("lab_cpu")
    del shipped["kv_cache_dtype"]
    with pytest.raises(ValueError, match=r"^profile key 'kv_cache_dtype' is missing; it needs a value \(str\)$"):
        load_profile("lab_cpu", shipped, {})


def test_overrides_must_be_a_dict() -> None:
    overrides: t.Any = ["max_model_len"]
    with pytest.raises(ValueError, match=r"^serving_overrides is \['max_model_len'\]; it must be a dict"):
        load_profile("lab_cpu", content("lab_cpu"), overrides)
