# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which attention kernel a GPU gets, and why none: ours beside the classes of vLLM that judge, on SM90, SM100, SM12x.

The installed 0.32 is always asked; the sources of the other versions come from the package index once, and only the
slow tests want them.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import typing as t
from pathlib import Path

import pytest

from ansible_collections.sparkrig.serving.plugins.module_utils._kv_options import parse_request
from ansible_collections.sparkrig.serving.plugins.module_utils._kv_planner import build_geometry
from ansible_collections.sparkrig.serving.plugins.module_utils._kv_specs import EngineRefusal
from lab.sources import python_sources
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
    {**DEEPSEEK, "kv_lora_rank": 384},
    {**GLM, "kv_lora_rank": 448},
    {**GLM, "index_topk": 1000},
)
CAPABILITIES = ((9, 0), (10, 0), (12, 1))
DTYPES = ("auto", "bfloat16", "float16", "fp8", "fp8_e4m3", "fp8_e5m2", "fp8_ds_mla", "nvfp4_ds_mla")
BLOCKS, DCP, HEADS = (None, 16, 32, 64, 128), (1, 4), (16, 24, 64)
# The model types with an indexer, and those without.
TYPES = {"deepseek_v32": "DeepseekV32ForCausalLM", "glm_moe_dsa": "GlmMoeDsaForCausalLM"}
DENSE = {"deepseek_v3": "DeepseekV3ForCausalLM"}
OTHER_VERSIONS = ("0.13.0", "0.20.0", "0.24.0", "0.26.0", "0.28.0", "0.30.0", "0.31.0", "0.33.0")
NAMED = (
    "TRITON_MLA",
    "FLASH_ATTN_MLA",
    "FLASHMLA",
    "CUTLASS_MLA",
    "FLASHINFER_MLA",
    "TOKENSPEED_MLA",
    "FLASH_ATTN_MLA_SPARSE",
    "FLASHMLA_SPARSE",
    "FLASHINFER_MLA_SPARSE",
    "FLASHINFER_MLA_SPARSE_SM120",
    "FLASHINFER_MLA_SPARSE_SM90",
    "FLASH_ATTN_MLA_SPARSE_FA4",
)

Question = dict[str, t.Any]


def questions(version: str) -> list[Question]:
    """Every combination that a version knows."""
    dtypes = known(DTYPES, version)
    names = ("config", "capability", "dtype", "block_size", "dcp", "heads")
    asked = []
    for each in itertools.product(MODELS, CAPABILITIES, dtypes, BLOCKS, DCP, HEADS):
        question: Question = dict(zip(names, each))
        for kind, architecture in (TYPES if "index_topk" in question["config"] else DENSE).items():
            asked.append({**question, "model_type": kind, "architecture": architecture})
    return asked


PLAIN_DTYPES = ("int8_per_token_head", "fp8_per_token_head", "int4_per_token_head", "nvfp4", *DTYPES[:6])
# The version that first knew a cache dtype, where it was not the first.
SINCE = {
    "float16": "0.20",
    "int8_per_token_head": "0.20",
    "fp8_per_token_head": "0.20",
    "nvfp4": "0.20",
    "int4_per_token_head": "0.26",
    "nvfp4_ds_mla": "0.30",
}
# What kind of layers a model has, its kernel's question, and the parts of its config.
PLAIN: tuple[tuple[Question, Question], ...] = (
    ({"model_type": "llama"}, {}),
    ({"model_type": "mistral", "window": True}, {"sliding_window": 64}),
    (
        {"model_type": "gpt_oss", "window": True, "sink": True},
        {"sliding_window": 64, "layer_types": ["sliding_attention"] * 2},
    ),
    ({"model_type": "llama4_text"}, {"attention_chunk_size": 256}),
)
SPEAKS_OF_SIZES = "0.32"
# Where the classes say nothing against what their kernels may not run, ours is no answer.
UNJUDGED = "unjudged"
# The version whose lists first have a kernel, where it was not the first.
NAMED_SINCE = {
    "FLASHINFER_MLA_SPARSE": "0.20",
    "TOKENSPEED_MLA": "0.24",
    "FLASHINFER_MLA_SPARSE_SM120": "0.24",
    "FLASH_ATTN_MLA_SPARSE": "0.26",
    "FLASHINFER_MLA_SPARSE_SM90": "0.30",
    "FLASH_ATTN_MLA_SPARSE_FA4": "0.33",
}
PLAIN_NAMED = ("FLASH_ATTN", "FLASHINFER", "TRITON_ATTN", "FLEX_ATTENTION")


def known(dtypes: tuple[str, ...], version: str) -> list[str]:
    """The cache dtypes that a version knows."""
    return [name for name in dtypes if version >= SINCE.get(name, "")]


def plain_questions(version: str) -> list[Question]:
    """Layers with K and V heads; every other model computes with float16."""
    asked: list[Question] = []
    names = ("capability", "dtype", "block_size", "dcp")
    blocks, capabilities = (None, 8, 16, 64, 128), (*CAPABILITIES, (8, 0), (10, 3))
    for head in (20, 64, 80, 128, 256, 384, 512, 640):
        for each in itertools.product(capabilities, known(PLAIN_DTYPES, version), blocks, DCP[:1] + (2,)):
            question: Question = dict(zip(names, each))
            for kind, more in PLAIN if question["dcp"] == 1 else PLAIN[:1]:
                config = {"num_key_value_heads": 4 if "sink" in kind else 2, "head_dim": head, **more}
                model_dtype = ("bfloat16", "float16")[len(asked) % 2]
                asked.append(
                    {"heads": 8, "architecture": "", "model_dtype": model_dtype, **question, **kind, "config": config}
                )
    return asked


# Layers whose kernels may refuse when they are made: capped logits, cross attention, V heads of another size.
GEMMA2: Question = {"model_type": "gemma2", "window": True, "model_dtype": "bfloat16"}
WHISPER: Question = {"model_type": "whisper", "cross": True, "kv_heads": 8}
MIMO_HEADS = ((192, 128), (128, 64), (64, 128), (192, 64), (256, 128))
MIMO_SINCE = "0.20"


def special_questions(version: str) -> list[Question]:
    """The same for such layers."""
    asked: list[Question] = []
    names, capabilities = ("capability", "dtype", "backend", "block_size"), (*CAPABILITIES, (8, 0), (10, 3))
    plain = {"heads": 8, "architecture": "", "dcp": 1}
    for each in itertools.product(capabilities, known(PLAIN_DTYPES, version), (None, *PLAIN_NAMED), (None, 64)):
        question = {**plain, **dict(zip(names, each))}
        for head in (64, 80, 128, 256):
            config: Question = {"num_key_value_heads": 2, "head_dim": head, "sliding_window": 64}
            asked.append({**question, **GEMMA2, "config": {**config, "attn_logit_softcapping": 50.0}})
            widths = {"d_model": head * 32, "decoder_attention_heads": 32, "decoder_layers": 2}
            asked.append({**question, **WHISPER, "config": {**widths, "max_source_positions": 64, "head_dim": head}})
        for head, value in MIMO_HEADS if version >= MIMO_SINCE else ():
            config = {"num_key_value_heads": 2, "head_dim": head, "v_head_dim": value, "hybrid_layer_pattern": [0, 0]}
            windows = {"swa_num_key_value_heads": 2, "swa_head_dim": head, "sliding_window_size": 64}
            asked.append({**question, "model_type": "mimo_v2_flash", "value": value, "config": {**config, **windows}})
    return asked


def named_questions(version: str) -> list[Question]:
    """A kernel that is asked for by name, of MLA or not, for layers of both kinds.

    Kernels of sparse MLA are not asked about K and V heads: newer versions end in the AttributeError of a config.
    """
    names = [name for name in (*PLAIN_NAMED, *NAMED) if version >= NAMED_SINCE.get(name, "")]
    dense = [name for name in names if "SPARSE" not in name]
    plain = [{**question, "backend": name} for question in plain_questions(version)[::11] for name in dense]
    return [*plain, *({**question, "backend": name} for question in questions(version)[::13] for name in names)]


def theirs(version: str, asked: list[Question]) -> list[dict[str, t.Any]]:
    """The answers of the real classes."""
    server = Path(__file__).with_name("kernels_server.py")
    python = os.environ[VARIABLE]
    variables = dict(os.environ)
    variables.pop("PYTHONPATH", None)
    if version != "0.32.0":
        (packages,) = Path(python).parents[1].glob("lib/python3.*/site-packages")
        variables["PYTHONPATH"] = str(python_sources(version, packages))
    run = subprocess.run(
        [python, str(server)], input=json.dumps(asked), capture_output=True, text=True, check=False, env=variables
    )
    assert run.returncode == 0, run.stderr[-2000:]
    answers = t.cast("list[dict[str, t.Any]]", json.loads(run.stdout))
    return answers if version >= SPEAKS_OF_SIZES else [without_sizes(answer) for answer in answers]


def without_sizes(answer: dict[str, t.Any]) -> dict[str, t.Any]:
    """An answer of a version that never prints the sizes of a kernel: what counts is which blocks it runs."""
    return {name: value for name, value in answer.items() if name != "sizes"}


def ours(version: str, asked: Question) -> dict[str, t.Any]:
    """The kernel, or why there is none."""
    config = {
        "model_type": asked["model_type"],
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
        "dtype": asked.get("model_dtype", "auto"),
        "tensor_parallel_size": 4,
        "decode_context_parallel_size": asked["dcp"],
        "attention_backend": asked.get("backend"),
        "max_model_len": 100,
        "engine": version,
    }
    try:
        geometry = build_geometry(parse_request(options))
    except EngineRefusal as refusal:
        return {"taken": None, "error": str(refusal)}
    except ValueError as error:
        assert "is not known to be served or refused" in str(error)
        return {"taken": UNJUDGED}
    spec = geometry.entries[0].spec
    layer: Question = {"block_size": None if geometry.model.sparse else spec.block_size}
    if not geometry.model.mla:
        layer["page"] = spec.page
    backend = geometry.backend
    runs = [block for block in (8, 16, 32, 48, 64, 96, 128, 256) if backend.runs(block)]
    answer = {"taken": backend.name, "error": "", "sizes": backend.spoken_sizes, "runs": runs, **layer}
    return answer if version >= SPEAKS_OF_SIZES else without_sizes(answer)


def compare(version: str, asked: list[Question]) -> int:
    """How many combinations are refused, none of them in other words."""
    refused = 0
    for question, answer in zip(asked, theirs(version, asked)):
        mine = ours(version, question)
        assert mine == answer or (mine["taken"] == UNJUDGED and answer["taken"]), question
        refused += answer["taken"] is None
    return refused


def test_kernels_of_mla() -> None:
    """The kernel or the whole refusal, word for word, for 10,080 combinations."""
    asked = questions("0.32.0")
    assert len(asked) == 10_080
    assert 5000 < compare("0.32.0", asked) < 8000


def test_kernels_by_name() -> None:
    """A kernel that was asked for by name is refused in the engine's words, or taken."""
    asked = named_questions("0.32.0")[::5]
    assert len(asked) > 3000
    assert 0 < compare("0.32.0", asked) < len(asked)


def test_kernels_of_grouped_heads() -> None:
    """The same for K and V heads, with windows, chunks and sinks, and the page of a layer."""
    asked = plain_questions("0.32.0")
    assert len(asked) == 10_000
    assert 3000 < compare("0.32.0", asked) < 6000


def test_kernels_that_refuse_when_they_are_made() -> None:
    """The same for capped logits, cross attention and V heads of another size."""
    asked = special_questions("0.32.0")[::4]
    assert len(asked) > 1500
    assert 500 < compare("0.32.0", asked) < len(asked)


@pytest.mark.slow
@pytest.mark.parametrize("version", OTHER_VERSIONS)
def test_kernels_of_other_versions_that_refuse_when_they_are_made(version: str) -> None:
    """The same for the other planner dialects."""
    asked = special_questions(version)
    assert len(asked) > 1000
    assert 0 < compare(version, asked) < len(asked)


@pytest.mark.slow
@pytest.mark.parametrize("version", OTHER_VERSIONS)
def test_kernels_of_grouped_heads_of_other_versions(version: str) -> None:
    """The same for the other planner dialects."""
    asked = plain_questions(version)
    assert len(asked) >= 5000
    assert 1000 < compare(version, asked) < len(asked) / 2


@pytest.mark.slow
@pytest.mark.parametrize("version", OTHER_VERSIONS)
def test_kernels_by_name_of_other_versions(version: str) -> None:
    """The same for kernels that were asked for by name."""
    asked = named_questions(version)
    assert len(asked) > 8000
    assert 0 < compare(version, asked) < len(asked)


@pytest.mark.slow
@pytest.mark.parametrize("version", OTHER_VERSIONS)
def test_kernels_of_other_versions(version: str) -> None:
    """The same for kernels of MLA."""
    asked = questions(version)
    assert 4000 < compare(version, asked) < len(asked)
