# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line of every profile, read by the parser of the real API server (vLLM 0.32)."""

from __future__ import annotations

import typing as t
from pathlib import Path

import pytest
import yaml

from ansible_collections.sparkrig.serving.plugins.module_utils._profile import load_profile, merged
from ansible_collections.sparkrig.serving.plugins.module_utils._vllm_argv import OPTIONS, vllm_argv
from tests.oracle.models import DEEPSEEK_V3
from tests.oracle.oracle import Oracle

VARS = Path(__file__).parents[2] / "roles/profile/vars"
PLAN = {"kv_cache_memory_bytes": 1_810_000_000, "planned_model_len": 33_024}

# What only the fork of GLM-5.2 has: values of options, and options of the drafts.
FORK_VALUES = {"attention_backend": "B12X_MLA_SPARSE"}
FORK_DRAFT_OPTIONS = {"draft_attention_backend"}


def profile(name: str) -> dict[str, t.Any]:
    """A shipped profile, laid over the one that it is based on."""
    loaded = yaml.safe_load((VARS / f"{name}.yml").read_text(encoding="utf-8"))
    content = loaded["profile_content"]
    if "profile_based_on" in loaded:
        base = yaml.safe_load((VARS / f"{loaded['profile_based_on']}.yml").read_text(encoding="utf-8"))
        content = merged(base["profile_content"], content)
    return load_profile(name, content, {})


@pytest.mark.parametrize("name", sorted(path.stem for path in VARS.glob("*.yml")))
def test_the_engine_reads_the_command_line(oracle: Oracle, name: str) -> None:
    wanted = profile(name)
    argv = vllm_argv(wanted, PLAN)[3:]
    flags = [word.split("=")[0] for word in argv if word.startswith("--")]
    assert len(flags) == len(set(flags))
    fork = wanted["fit"]["engine"] == "dark-devotion"
    for option, value in FORK_VALUES.items():
        if fork and wanted.get(option) == value:
            # The parser checks the name of a backend; the fork's own stands for one of upstream's here.
            argv[argv.index("--" + option.replace("_", "-")) + 1] = "FLASHMLA_SPARSE"
    answer = oracle.ask("parse", argv=argv)
    assert answer["ok"], answer
    values = answer["values"]
    expected = {**wanted, **{key: PLAN["kv_cache_memory_bytes"] for key in ("kv_cache_memory_bytes",)}}
    if wanted["max_model_len"] == -1:
        expected["max_model_len"] = PLAN["planned_model_len"]
    for option in ("tensor_parallel_size", "max_model_len", "max_num_seqs", "kv_cache_memory_bytes", "kv_cache_dtype"):
        assert option in OPTIONS and values[option] == expected[option], option
    drafts = wanted["speculative_config"] or {}
    unknown = set(drafts) - set(answer["draft_options"])
    assert unknown == (FORK_DRAFT_OPTIONS & set(drafts) - set(answer["draft_options"]) if fork else set())
    if fork:
        assert FORK_VALUES["attention_backend"] not in answer["backends"]
    else:
        assert unknown == set()


OLD, NEW = "dcp_kv_cache_interleave_size", "cp_kv_cache_interleave_size"


def test_the_parser_takes_the_interleave_under_both_names(oracle: Oracle) -> None:
    """The flag follows the version of the profile; this parser knows both."""
    wanted = {**profile("glm52_128k_dcp4_mtp1"), OLD: 16, "attention_backend": "FLASHMLA_SPARSE"}
    for engine, name, other in (("0.32.0", NEW, OLD), ("0.28.0", OLD, NEW)):
        asked = {**wanted, "fit": {**wanted["fit"], "engine": engine}}
        answer = oracle.ask("parse", argv=vllm_argv(asked, PLAN)[3:])
        assert answer["ok"], answer
        assert answer["values"][name] == 16
        assert answer["values"].get(other) in (None, 1)


def test_the_engine_heeds_the_name_that_it_gets(oracle: Oracle) -> None:
    """Real ranks refuse an interleave that does not divide the blocks under the name of today, and miss the older."""
    arguments = {
        "tensor_parallel_size": 2,
        "decode_context_parallel_size": 2,
        "max_model_len": 256,
        "kv_cache_memory_bytes": 2_000_000,
    }
    answers = {
        name: oracle.ask(
            "build",
            config=DEEPSEEK_V3,
            arguments={**arguments, name: 48},
            available=arguments["kv_cache_memory_bytes"],
        )
        for name in (OLD, NEW)
    }
    assert answers[OLD]["ok"], answers[OLD]
    assert "divisible by cp_kv_cache_interleave_size (48)" in answers[NEW].get("error", ""), answers[NEW]
