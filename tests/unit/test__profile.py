# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import re
import typing as t
from pathlib import Path

import pytest
import yaml

from ansible_collections.sparkrig.serving.plugins.module_utils._kv_node import fit
from ansible_collections.sparkrig.serving.plugins.module_utils._profile import (
    KEYS,
    load_profile,
    merged,
    world_size,
)
from lab.checkpoint import config as lab_config

VARS = Path(__file__).parents[2] / "roles" / "profile" / "vars"
SHIPPED = sorted(path.stem for path in VARS.glob("*.yml"))


def content(name: str) -> dict[str, t.Any]:
    """The content of a profile's file over that of the one that it is based on, as the role lays it."""
    loaded = yaml.safe_load((VARS / f"{name}.yml").read_text(encoding="utf-8"))
    base = loaded.pop("profile_based_on", None)
    assert set(loaded) == {"profile_content"}
    return merged(content(base), loaded["profile_content"]) if base else dict(loaded["profile_content"])


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_profiles_are_valid(name: str) -> None:
    profile = load_profile(name, content(name), {})
    assert profile["name"] == name
    assert set(profile) <= set(KEYS)


def test_the_profiles_that_are_promised_are_there() -> None:
    assert SHIPPED == [
        "glm52_128k_dcp4_mtp1",
        "glm52_128k_dcp4_mtp3",
        "glm52_128k_dcp4_mtp4",
        "glm52_32k_dcp1_mtp3",
        "glm52_batch",
        "lab_cpu",
        "qwen3_32b",
    ]


@pytest.mark.parametrize("name", SHIPPED)
def test_a_profile_says_nothing_that_its_base_says(name: str) -> None:
    """One home for a fact: what is equal to the base is left out, and a base has no base."""
    loaded = yaml.safe_load((VARS / f"{name}.yml").read_text(encoding="utf-8"))
    if "profile_based_on" not in loaded:
        return
    base = yaml.safe_load((VARS / f"{loaded['profile_based_on']}.yml").read_text(encoding="utf-8"))
    assert "profile_based_on" not in base

    def repeated(own: dict[str, t.Any], below: dict[str, t.Any], prefix: str = "") -> list[str]:
        found = []
        for key, value in own.items():
            if isinstance(value, dict) and isinstance(below.get(key), dict):
                found += repeated(value, below[key], f"{prefix}{key}.")
            elif key in below and below[key] == value:
                found.append(prefix + key)
        return found

    assert repeated(loaded["profile_content"], base["profile_content"]) == []


@pytest.mark.parametrize("name", SHIPPED)
def test_every_variable_has_a_line_on_what_it_does(name: str) -> None:
    lines = (VARS / f"{name}.yml").read_text(encoding="utf-8").splitlines()
    variables = [n for n, line in enumerate(lines) if re.fullmatch(r"    [A-Z][A-Za-z0-9_]+: \S.*", line)]
    variables += [n for n, line in enumerate(lines) if re.match(r"    RAY_[a-z]", line)]
    for number in set(variables):
        assert lines[number - 1].lstrip().startswith("# "), lines[number]
    own = yaml.safe_load("\n".join(lines))["profile_content"].get("environment", {})
    assert len(set(variables)) == len(own)


# Of the seed: what the fabric writes for each node, and the rest of its table.
FABRIC = {"NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME", "NCCL_IB_DISABLE", "VLLM_HOST_IP", "HOST_IP"}
SEED = [
    "RAY_memory_usage_threshold",
    "RAY_memory_monitor_refresh_ms",
    "CUDA_DEVICE_ORDER",
    "CUDA_DEVICE_MAX_CONNECTIONS",
    "PYTORCH_CUDA_ALLOC_CONF",
    "SAFETENSORS_FAST_GPU",
    "CUTE_DSL_ARCH",
    "VLLM_WORKER_MULTIPROC_METHOD",
    "VLLM_USE_FLASHINFER_SAMPLER",
    "VLLM_USE_B12X_FP8_GEMM",
    "VLLM_USE_B12X_MOE",
    "VLLM_DISABLE_TP_MQ_BROADCASTER",
    "VLLM_ENABLE_PCIE_ALLREDUCE",
    "VLLM_USE_B12X_SPARSE_INDEXER",
    "VLLM_USE_DEEP_GEMM",
    "VLLM_DCP_GLOBAL_TOPK",
    "VLLM_DCP_SHARD_DRAFT",
    "VLLM_MTP_RECOMPUTE_TOPK_FROM_STEP",
    "VLLM_MTP_BROADCAST_DRAFT_TOKENS",
    "VLLM_DCP_SYNC_REJECTION_OUTPUT",
    "KZ_KV_DIAG",
    "VLLM_KZ_TRIM_AFTER_LOAD",
    "USES_B12X",
    "B12X_MOE_FORCE_A16",
    "B12X_W4A16_TC_DECODE",
    "B12X_DENSE_SPLITK_TURBO",
]


def test_the_environment_of_the_seed_is_complete() -> None:
    """The obsolete step only where the runtime lacks the fix; what a node has of its own never in a profile."""
    seed = content("glm52_32k_dcp1_mtp3")["environment"]
    assert set(SEED) <= set(seed) and not FABRIC & set(seed)
    assert set(seed) - set(content("glm52_128k_dcp4_mtp1")["environment"]) == {"VLLM_MTP_RECOMPUTE_TOPK_FROM_STEP"}
    readme = (VARS.parent / "README.md").read_text(encoding="utf-8")
    assert [variable for variable in sorted({*SEED, *FABRIC}) if f"`{variable}`" not in readme] == []


FIXTURES = Path(__file__).parents[1] / "fixtures"
CONFIGS = {"qwen3_32b": FIXTURES / "qwen3-32b/config.json"}


def model_config(name: str) -> dict[str, t.Any]:
    """The config.json of a profile's model; that of the lab is made."""
    if name == "lab_cpu":
        return lab_config()
    path = CONFIGS.get(name, FIXTURES / "glm-5.2/config.json")
    return t.cast("dict[str, t.Any]", json.loads(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("name", SHIPPED)
def test_what_a_profile_expects_is_what_the_fitter_computes(name: str) -> None:
    profile = load_profile(name, content(name), {})
    keys = yaml.safe_load((VARS.parents[1] / "kv_budget/vars/main.yml").read_text(encoding="utf-8"))
    question = {key: profile[key] for key in keys["__kv_budget_engine_keys"] if profile.get(key) is not None}
    question |= {key: profile["fit"][key] for key in keys["__kv_budget_fit_keys"] if key in profile["fit"]}
    answer = fit({**question, "config": model_config(name)})
    assert answer["fits"], answer["reasons"]
    expected = profile["expect"]
    for ours, theirs in (
        ("kv_cache_tokens", "kv_cache_tokens"),
        ("num_blocks", "num_blocks"),
        ("max_concurrency", "max_concurrency"),
        ("planned_model_len", "max_model_len"),
    ):
        assert answer[ours] == expected[theirs], theirs
    assert expected["source"] and expected["markers"]


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


def test_every_phase_has_its_limit_and_every_profile_its_measurement() -> None:
    base = content("lab_cpu")
    for name in ("memory_s", "ray_s", "serve_s", "stall_s", "completion_s", "hang_s"):
        with pytest.raises(ValueError, match=rf"profile key 'timeouts.{name}' is 0; it must be at least 1"):
            load_profile("lab_cpu", base, {"timeouts": {name: 0}})
    with pytest.raises(ValueError, match=r"profile key 'bench.output_tokens' is 1; it must be at least 2"):
        load_profile("lab_cpu", base, {"bench": {"output_tokens": 1}})
    with pytest.raises(ValueError, match=r"profile key 'bench.concurrency\[1\]' is 0; it must be at least 1"):
        load_profile("lab_cpu", base, {"bench": {"concurrency": [1, 0]}})


@pytest.mark.parametrize("name", SHIPPED)
def test_what_is_measured_fits_into_the_context(name: str) -> None:
    profile = load_profile(name, content(name), {})
    longest = max(profile["bench"]["prompt_tokens"]) + profile["bench"]["output_tokens"]
    assert longest <= profile["expect"]["max_model_len"]
