# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import hashlib
import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from ansible_collections.sparkrig.serving.plugins.module_utils._checkpoint import (
    Layout,
    plan_hybrid,
    survey_folder,
)
from ansible_collections.sparkrig.serving.plugins.module_utils._safetensors import read_header
from lab import checkpoint


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name, files in checkpoint.build(0).items():
        checkpoint.write(folder / name, files)
    return folder


def test_every_run_writes_the_same_bytes(models: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "lab/checkpoint.py", str(tmp_path)], check=True, stdout=subprocess.DEVNULL)
    assert digests(tmp_path) == digests(models)
    # A change of these bytes invalidates every cache of the lab: let it be one that was meant.
    whole = hashlib.sha256(json.dumps(digests(models)).encode()).hexdigest()
    assert whole == "c873d8d359798d6c22e6450e888f99a6ed2bb9dad06c32e61795de75fa33851a"


def test_another_seed_writes_other_weights(models: Path) -> None:
    other = checkpoint.build(1)
    changed = {
        f"{folder}/{name}"
        for folder, files in other.items()
        for name, data in files.items()
        if data != (models / folder / name).read_bytes()
    }
    assert changed == {
        "lab-base/model-00001-of-00003.safetensors",
        "lab-base/model-00002-of-00003.safetensors",
        "lab-base/model-00003-of-00003.safetensors",
        "lab-mtp/model-00004-of-00004.safetensors",
    }


def test_base_advertises_the_layer_that_only_the_overlay_has(models: Path) -> None:
    base = survey_folder(str(models / "lab-base"))
    assert base.mtp["promised"]
    assert not base.mtp["present"]
    assert len(base.problems) == 1
    report = plan_hybrid(str(models / "lab-base"), str(models / "lab-mtp")).report
    assert report.problems == ()
    assert report.mtp["layers"] == [3]
    assert report.mtp["precision"] == "bf16"
    assert len(report.files) == 4


def test_overlay_index_is_the_whole_one(models: Path) -> None:
    index = json.loads((models / "lab-mtp" / "model.safetensors.index.json").read_text())
    hybrid = plan_hybrid(str(models / "lab-base"), str(models / "lab-mtp"))
    assert hybrid.index is not None
    assert json.loads(hybrid.index) == index


@pytest.mark.parametrize(
    ("tensor", "pipeline", "mtp", "measured"),
    [
        # What vLLM 0.32.0 holds on CPU, without its rotary table of 1,048,576 B and 16 B of scales a layer.
        (1, 1, True, (5_220_912,)),
        (4, 1, True, (1_854_000,) * 4),
        (1, 2, False, (2_429_200, 1_411_984)),
    ],
)
def test_ranks_hold_what_vllm_holds(
    models: Path, tensor: int, pipeline: int, mtp: bool, measured: tuple[int, ...]
) -> None:
    layout = Layout(tensor, pipeline, mtp=mtp, absorbed_copies=False)
    hybrid = plan_hybrid(str(models / "lab-base"), str(models / "lab-mtp"), layout)
    assert tuple(hybrid.report.weights_bytes) == measured


def test_config_fits_four_ranks_and_the_cpu_kernel() -> None:
    config = checkpoint.config()
    assert config["architectures"] == ["DeepseekV3ForCausalLM"]
    assert (config["kv_lora_rank"], config["qk_rope_head_dim"]) == (512, 64)
    for key in ("num_attention_heads", "n_routed_experts", "intermediate_size", "moe_intermediate_size", "vocab_size"):
        assert config[key] % 4 == 0


def test_more_ranks_may_have_more_heads() -> None:
    files = checkpoint.build(0, heads=8)["lab-base"]
    config = json.loads(files["config.json"])
    assert (config["num_attention_heads"], config["num_key_value_heads"]) == (8, 8)
    header = files["model-00002-of-00003.safetensors"]
    (size,) = struct.unpack("<Q", header[:8])
    shapes = {name: tensor["shape"] for name, tensor in json.loads(header[8 : 8 + size]).items() if "attn" in name}
    # Of each head: 64 values without and 64 with rotary embedding, and 64 of V.
    assert shapes["model.layers.1.self_attn.q_b_proj.weight"] == [8 * 128, 64]
    assert shapes["model.layers.1.self_attn.kv_b_proj.weight"] == [8 * 128, 512]
    assert shapes["model.layers.1.self_attn.o_proj.weight"] == [128, 8 * 64]


def test_tokenizer_knows_every_byte_every_word_and_the_special_tokens() -> None:
    tokenizer = checkpoint.tokenizer()
    ids = [*tokenizer["model"]["vocab"].values(), *(token["id"] for token in tokenizer["added_tokens"])]
    assert sorted(ids) == list(range(checkpoint.config()["vocab_size"]))
    assert {token["content"] for token in tokenizer["added_tokens"]} >= {"<|user|>", "<|assistant|>", "<|system|>"}
    assert tokenizer["model"]["vocab"]["Ġmachines"] >= checkpoint.BYTES


@pytest.mark.parametrize(
    ("value", "bits"),
    [(0.0, 0x0000), (1.0, 0x3F80), (-1.0, 0xBF80), (1.00390625, 0x3F80), (1.01171875, 0x3F82), (3.14159, 0x4049)],
)
def test_bfloat16_rounds_to_nearest_even(value: float, bits: int) -> None:
    assert checkpoint.bfloat16(value) == struct.pack("<H", bits)


def test_embeddings_of_the_text_are_orthogonal() -> None:
    rows = [checkpoint.directions()[token] for token in sorted(checkpoint.word_pairs())]
    assert len({row for row, _sign in rows}) == len(rows)
    first, second = rows[1][0], rows[2][0]
    dot = sum(checkpoint.hadamard(first, column) * checkpoint.hadamard(second, column) for column in range(128))
    assert dot == 0


def test_rewriting_leaves_a_hardlink_alone(tmp_path: Path) -> None:
    checkpoint.write(tmp_path / "model", {"a": b"old"})
    (tmp_path / "link").hardlink_to(tmp_path / "model" / "a")
    checkpoint.write(tmp_path / "model", {"a": b"new"})
    assert (tmp_path / "link").read_bytes() == b"old"
    assert (tmp_path / "model" / "a").read_bytes() == b"new"
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["a"]


def test_shards_are_real_safetensors(models: Path) -> None:
    header = read_header(str(models / "lab-mtp" / "model-00004-of-00004.safetensors"))
    assert header.tensors["model.layers.3.eh_proj.weight"].shape == (128, 256)
    assert header.tensors["model.layers.3.mlp.gate.e_score_correction_bias"].dtype == "F32"
