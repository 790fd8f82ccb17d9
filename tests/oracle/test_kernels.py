# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which kernel of MLA a GPU gets, and why none: ours beside the classes of vLLM that judge, on SM90, SM100, SM12x."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import typing as t
from pathlib import Path

from ansible_collections.sparkrig.serving.plugins.module_utils._kv_options import parse_request
from ansible_collections.sparkrig.serving.plugins.module_utils._kv_planner import build_geometry
from ansible_collections.sparkrig.serving.plugins.module_utils._kv_specs import EngineRefusal
from tests.oracle.oracle import VARIABLE

DEEPSEEK = {"kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128}
GLM = {**DEEPSEEK, "qk_nope_head_dim": 192, "v_head_dim": 256, "index_topk": 2048}
MODELS: tuple[dict[str, int], ...] = (
    DEEPSEEK,
    {**DEEPSEEK, "index_topk": 2048},
    {**DEEPSEEK, "index_topk": 1024},
    GLM,
    {**DEEPSEEK, "qk_nope_head_dim": 32, "v_head_dim": 32},
    {**DEEPSEEK, "kv_lora_rank": 256},
)
CAPABILITIES = ((9, 0), (10, 0), (12, 1))
DTYPES = ("auto", "bfloat16", "float16", "fp8", "fp8_e4m3", "fp8_e5m2", "fp8_ds_mla", "nvfp4_ds_mla")
BLOCKS, DCP, HEADS = (None, 16, 32, 64, 128), (1, 4), (16, 64)

Question = dict[str, t.Any]


def questions() -> list[Question]:
    """Every combination."""
    names = ("config", "capability", "dtype", "block_size", "dcp", "heads")
    every = itertools.product(MODELS, CAPABILITIES, DTYPES, BLOCKS, DCP, HEADS)
    return [dict(zip(names, each)) for each in every]


def theirs(asked: list[Question]) -> list[dict[str, t.Any]]:
    """The answers of the real classes."""
    server = Path(__file__).with_name("kernels_server.py")
    python = os.environ[VARIABLE]
    run = subprocess.run([python, str(server)], input=json.dumps(asked), capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    return t.cast("list[dict[str, t.Any]]", json.loads(run.stdout))


def ours(asked: Question) -> tuple[str | None, str]:
    """The kernel, or why there is none."""
    sparse = "index_topk" in asked["config"]
    config = {
        "model_type": "deepseek_v32" if sparse else "deepseek_v3",
        "num_hidden_layers": 2,
        "num_attention_heads": asked["heads"] * 4,
        "max_position_embeddings": 4096,
        "index_head_dim": 128,
        **asked["config"],
    }
    options = {
        "config": config,
        "compute_capability": "{}.{}".format(*asked["capability"]),
        "kv_cache_dtype": asked["dtype"],
        "block_size": asked["block_size"],
        "tensor_parallel_size": 4,
        "decode_context_parallel_size": asked["dcp"],
        "max_model_len": 100,
        "engine": "0.32.0",
    }
    try:
        return build_geometry(parse_request(options)).backend.name, ""
    except EngineRefusal as refusal:
        return None, str(refusal)


def test_kernels_of_mla() -> None:
    """The kernel or the whole refusal, word for word, for 2,880 combinations."""
    asked = questions()
    assert len(asked) == 2880
    refused = 0
    for question, answer in zip(asked, theirs(asked)):
        kernel, words = ours(question)
        assert kernel == next(iter(answer["taken"]), None), (question, answer)
        if kernel is None:
            refused += 1
            assert words == (
                f"No valid attention backend found for cuda with {answer['asked']}. Reasons: {{{answer['reasons']}}}."
            ), question
    assert 500 < refused < 2000
