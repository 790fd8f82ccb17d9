# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import re
import typing as t
from pathlib import Path

import pytest

from ansible_collections.sparkrig.serving.plugins.module_utils._checkpoint import (
    CONFIG_FILE,
    INDEX_FILE,
    Layout,
    Survey,
    merge_index,
    parse_index,
    plan_hybrid,
    promised_mtp_layers,
    stages,
    survey_folder,
)
from ansible_collections.sparkrig.serving.plugins.module_utils._manifest import list_folder
from ansible_collections.sparkrig.serving.plugins.module_utils._safetensors import Header, Tensor
from lab import checkpoint

Weights = t.Mapping[str, "tuple[str, tuple[int, ...]]"]
BITS = {"BF16": 16, "F32": 32, "F16": 16, "U8": 8, "F8_E4M3": 8, "I32": 32}

# A plain dense model with grouped key-value heads.
GQA = {"num_hidden_layers": 1, "num_attention_heads": 8, "num_key_value_heads": 2, "vocab_size": 100}


def header(weights: Weights) -> Header:
    tensors = {}
    offset = 0
    for name, (dtype, shape) in weights.items():
        count = BITS[dtype] // 8
        for size in shape:
            count *= size
        tensors[name] = Tensor(dtype, shape, offset, offset + count)
        offset += count
    return Header(tensors, offset + 100, "0" * 64)


def rank_bytes(config: t.Mapping[str, t.Any], weights: Weights, layout: Layout) -> list[int]:
    survey = Survey(config, None, layout)
    survey.add("model.safetensors", header(weights))
    return list(survey.finish(b"", b"", complete=False).weights_bytes)


@pytest.mark.parametrize(
    ("layers", "count", "sizes"),
    [
        (78, 1, (78,)),
        (3, 2, (2, 1)),
        (78, 4, (19, 20, 20, 19)),
        (7, 4, (2, 2, 2, 1)),
        (5, 3, (2, 2, 1)),
        (4, 4, (1,) * 4),
    ],
)
def test_layers_are_spread_as_vllm_does(layers: int, count: int, sizes: tuple[int, ...]) -> None:
    assert stages(layers, count) == sizes


def test_more_stages_than_layers() -> None:
    with pytest.raises(ValueError, match="^pipeline_parallel_size is 4, the model has only 3 layers$"):
        stages(3, 4)


@pytest.mark.parametrize(
    ("layout", "sentence"),
    [
        ({"tensor_parallel_size": 0}, "tensor_parallel_size is 0, it must be at least 1"),
        ({"pipeline_parallel_size": -1}, "pipeline_parallel_size is -1, it must be at least 1"),
        (
            {"dtype": "int3"},
            "dtype is 'int3', it must be auto or one of bfloat16, float, float16, float32, half",
        ),
    ],
)
def test_bad_layouts(layout: dict[str, t.Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        Layout(**layout)


@pytest.mark.parametrize(
    ("name", "dtype", "shape", "ranks", "wanted"),
    [
        # Split by output rows, by input columns, or on every rank.
        ("model.layers.0.self_attn.q_proj.weight", "BF16", (64, 32), 4, 64 * 32 * 2 // 4),
        ("model.layers.0.self_attn.q_proj.bias", "BF16", (64,), 4, 32),
        ("model.layers.0.self_attn.o_proj.weight", "BF16", (32, 64), 4, 32 * 64 * 2 // 4),
        ("model.layers.0.self_attn.o_proj.bias", "BF16", (32,), 4, 64),
        ("model.layers.0.mlp.gate_proj.weight", "BF16", (128, 32), 4, 128 * 32 * 2 // 4),
        ("model.layers.0.mlp.down_proj.weight", "BF16", (32, 128), 4, 128 * 32 * 2 // 4),
        ("model.layers.0.self_attn.q_a_proj.weight", "BF16", (64, 32), 4, 64 * 32 * 2),
        ("model.layers.0.self_attn.kv_a_proj_with_mqa.weight", "BF16", (64, 32), 4, 64 * 32 * 2),
        ("model.layers.0.mlp.gate.weight", "BF16", (8, 32), 4, 8 * 32 * 2),
        ("model.layers.0.mlp.gate.e_score_correction_bias", "F32", (8,), 4, 32),
        ("model.layers.0.input_layernorm.weight", "BF16", (32,), 4, 64),
        # Two key-value heads: halves for two ranks, a whole one each for four.
        ("model.layers.0.self_attn.k_proj.weight", "BF16", (16, 32), 2, 16 * 32 * 2 // 2),
        ("model.layers.0.self_attn.k_proj.weight", "BF16", (16, 32), 4, 16 * 32 * 2 // 2),
        # The vocabulary is padded to a multiple of 64.
        ("model.embed_tokens.weight", "BF16", (100, 32), 4, 128 * 32 * 2 // 4),
        ("lm_head.weight", "BF16", (128, 32), 4, 128 * 32 * 2 // 4),
        # Unquantised weights take the engine's type.
        ("model.norm.weight", "F32", (32,), 4, 64),
        # NVFP4: values and block scales are split, the two scales of the whole tensor are on every rank.
        ("model.layers.0.mlp.experts.7.up_proj.weight", "U8", (64, 16), 4, 64 * 16 // 4),
        ("model.layers.0.mlp.experts.7.up_proj.weight_scale", "F8_E4M3", (64, 2), 4, 64 * 2 // 4),
        ("model.layers.0.mlp.experts.7.down_proj.weight_scale", "F8_E4M3", (32, 4), 4, 32 * 4 // 4),
        ("model.layers.0.mlp.experts.7.up_proj.weight_scale_2", "F32", (), 4, 4),
        ("model.layers.0.mlp.experts.7.up_proj.input_scale", "F32", (), 4, 4),
        # FP8: a scale for each row follows the rows, and is whole where the columns are split.
        ("model.layers.0.mlp.up_proj.weight_scale", "F32", (64, 1), 4, 64),
        ("model.layers.0.mlp.down_proj.weight_scale", "F32", (32, 1), 4, 128),
        ("model.layers.0.mlp.up_proj.weight_scale_inv", "F32", (3, 1), 2, 8),
        # GPTQ has inputs before outputs.
        ("model.layers.0.mlp.up_proj.qweight", "I32", (4, 64), 4, 4 * 64 * 4 // 4),
        ("model.layers.0.mlp.down_proj.qweight", "I32", (16, 32), 4, 16 * 32 * 4 // 4),
        # All experts in one tensor.
        ("model.layers.0.mlp.experts.gate_up_proj", "BF16", (8, 32, 64), 4, 8 * 32 * 64 * 2 // 4),
        ("model.layers.0.mlp.experts.down_proj", "BF16", (8, 32, 32), 4, 8 * 32 * 32 * 2 // 4),
        # A tower that is not known is on every rank.
        ("vision.blocks.0.proj.weight", "BF16", (64, 32), 4, 64 * 32 * 2),
    ],
)
def test_what_a_rank_keeps(name: str, dtype: str, shape: tuple[int, ...], ranks: int, wanted: int) -> None:
    assert rank_bytes(GQA, {name: (dtype, shape)}, Layout(ranks)) == [wanted] * ranks


def test_engine_in_float32_doubles_unquantised_weights() -> None:
    weights = {"model.norm.weight": ("BF16", (32,)), "model.layers.0.mlp.up_proj.weight": ("U8", (64, 16))}
    assert rank_bytes(GQA, weights, Layout(dtype="float32")) == [32 * 4 + 64 * 16]


@pytest.mark.parametrize(
    ("name", "shape", "ranks", "sentence"),
    [
        (
            "model.layers.0.mlp.up_proj.weight",
            (63, 2),
            4,
            "mlp.up_proj.weight is 63 wide, which 4 ranks cannot split evenly",
        ),
        (
            "model.layers.0.self_attn.k_proj.weight",
            (16, 2),
            3,
            "2 key-value heads can be neither split over nor shared by 3 ranks",
        ),
    ],
)
def test_what_ranks_cannot_split(name: str, shape: tuple[int, ...], ranks: int, sentence: str) -> None:
    survey = Survey(GQA, None, Layout(ranks))
    survey.add("x", header({name: ("BF16", shape)}))
    assert sentence in survey.finish(b"", b"", complete=False).problems


def test_pipeline_puts_embedding_first_and_head_last() -> None:
    config = {"num_hidden_layers": 2, "num_attention_heads": 1}
    weights = {
        "model.embed_tokens.weight": ("BF16", (64, 1)),
        "model.layers.0.mlp.up_proj.weight": ("BF16", (10, 1)),
        "model.layers.1.mlp.up_proj.weight": ("BF16", (30, 1)),
        "model.norm.weight": ("BF16", (5,)),
        "lm_head.weight": ("BF16", (64, 1)),
    }
    assert rank_bytes(config, weights, Layout(1, 2)) == [128 + 20, 60 + 10 + 128]
    assert rank_bytes(config, weights, Layout(2, 2)) == [64 + 10, 64 + 10, 30 + 10 + 64, 30 + 10 + 64]


def test_tied_embedding_is_on_the_last_stage_too() -> None:
    config = {"num_hidden_layers": 2, "num_attention_heads": 1, "tie_word_embeddings": True}
    weights = {"model.embed_tokens.weight": ("BF16", (64, 1))}
    assert rank_bytes(config, weights, Layout(1, 1)) == [128]
    assert rank_bytes(config, weights, Layout(1, 2)) == [128, 128]


def small_qwen3(tied: bool) -> tuple[dict[str, t.Any], Weights]:
    """Two layers, eight heads, two key-value heads, and a head that is in the files even when it is tied."""
    config = {
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "tie_word_embeddings": tied,
    }
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (100, 64),
        "lm_head.weight": (100, 64),
        "model.norm.weight": (64,),
    }
    for layer in range(2):
        for name, shape in {
            "self_attn.q_proj": (512, 64),
            "self_attn.k_proj": (128, 64),
            "self_attn.v_proj": (128, 64),
            "self_attn.o_proj": (64, 512),
            "self_attn.q_norm": (64,),
            "self_attn.k_norm": (64,),
            "input_layernorm": (64,),
            "post_attention_layernorm": (64,),
            "mlp.gate_proj": (128, 64),
            "mlp.up_proj": (128, 64),
            "mlp.down_proj": (64, 128),
        }.items():
            shapes[f"model.layers.{layer}.{name}.weight"] = shape
    return config, {name: ("BF16", shape) for name, shape in shapes.items()}


@pytest.mark.parametrize(
    ("tied", "tensor", "pipeline", "measured"),
    [
        # What vLLM 0.32.0 held on CPU, parameters without the rotary table and the cache's scales.
        (True, 1, 1, [459_904]),
        (True, 1, 2, [229_888, 230_016]),
        (False, 1, 2, [229_888, 230_016]),
        (False, 4, 1, [132_224] * 4),
    ],
)
def test_ranks_hold_what_vllm_holds_of_a_plain_model(
    tied: bool, tensor: int, pipeline: int, measured: list[int]
) -> None:
    config, weights = small_qwen3(tied)
    assert rank_bytes(config, weights, Layout(tensor, pipeline)) == measured


def test_absorbed_copies_count_for_every_latent_layer() -> None:
    config = {
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "kv_lora_rank": 8,
        "qk_nope_head_dim": 3,
        "v_head_dim": 2,
    }
    assert rank_bytes(config, {}, Layout(2)) == [2 * 2 * 8 * 5 * 2] * 2
    assert rank_bytes(config, {}, Layout(2, absorbed_copies=False)) == [0, 0]


def test_quantised_projections_are_unpacked_for_decoding() -> None:
    config = {
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "kv_lora_rank": 8,
        "qk_nope_head_dim": 3,
        "v_head_dim": 2,
    }
    weights = {"model.layers.0.self_attn.kv_b_proj.weight": ("F8_E4M3", (10, 8))}
    assert rank_bytes(config, weights, Layout(absorbed_copies=False)) == [80 + 2 * 8 * 5 * 2]


def test_mtp_layer_counts_only_for_an_engine_that_drafts() -> None:
    config = {"num_hidden_layers": 1, "num_attention_heads": 1, "num_nextn_predict_layers": 1}
    weights = {
        "model.layers.0.input_layernorm.weight": ("BF16", (5,)),
        "model.layers.1.enorm.weight": ("BF16", (7,)),
        "model.layers.1.embed_tokens.weight": ("BF16", (64, 1)),
        "model.layers.1.shared_head.head.weight": ("BF16", (64, 1)),
    }
    assert rank_bytes(config, weights, Layout()) == [10 + 14]
    assert rank_bytes(config, weights, Layout(mtp=False)) == [10]


MOE: dict[str, t.Any] = {"num_hidden_layers": 1, "num_attention_heads": 1, "num_nextn_predict_layers": 1}
EXPERT = "model.layers.{layer}.mlp.experts.{number}.{name}"


def experts(layer: int, count: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Experts of 30 bytes and one scale of 4 that no rank can split."""
    return {
        EXPERT.format(layer=layer, number=number, name=name): value
        for number in range(count)
        for name, value in {"up_proj.weight": ("U8", (6, 5)), "up_proj.weight_scale_2": ("F32", ())}.items()
    }


@pytest.mark.parametrize(
    ("count", "ranks", "kept"),
    [(4, 2, [2, 2]), (5, 2, [3, 2]), (7, 3, [3, 2, 2]), (8, 3, [3, 3, 2]), (3, 1, [3])],
)
def test_whole_experts_are_dealt_out_as_vllm_does(count: int, ranks: int, kept: list[int]) -> None:
    config = {**MOE, "n_routed_experts": count}
    layout = Layout(ranks, mtp=False, enable_expert_parallel=True)
    assert rank_bytes(config, experts(0, count), layout) == [number * 34 for number in kept]
    assert rank_bytes(config, experts(1, count), layout) == [0] * ranks
    drafting = Layout(ranks, enable_expert_parallel=True)
    assert rank_bytes(config, experts(1, count), drafting) == [number * 34 for number in kept]
    split = Layout(ranks, mtp=False)
    assert rank_bytes(config, experts(0, count), split) == [count * (30 // ranks + 4)] * ranks


def test_a_tensor_of_all_experts_is_dealt_out_too() -> None:
    config = {"num_hidden_layers": 1, "num_attention_heads": 1, "num_experts": 3}
    weights = {
        "model.layers.0.mlp.experts.gate_up_proj": ("BF16", (3, 4, 4)),
        "model.layers.0.mlp.shared_experts.up_proj.weight": ("BF16", (4, 4)),
    }
    assert rank_bytes(config, weights, Layout(2, enable_expert_parallel=True)) == [64 + 16, 32 + 16]


def test_fewer_experts_than_ranks() -> None:
    survey = Survey({**MOE, "n_routed_experts": 1}, None, Layout(2, enable_expert_parallel=True))
    survey.add("x", header(experts(0, 1)))
    assert "2 ranks cannot share 1 expert; drop enable_expert_parallel" in survey.finish(b"", b"").problems


@pytest.mark.parametrize(
    ("weights", "precision"),
    [
        ({"mlp.up_proj.weight": ("BF16", (64, 32))}, "bf16"),
        (
            {
                "mlp.up_proj.weight": ("U8", (64, 16)),
                "mlp.up_proj.weight_scale": ("F8_E4M3", (64, 2)),
                "eh_proj.weight": ("BF16", (4, 4)),
            },
            "nvfp4",
        ),
        ({"mlp.up_proj.weight": ("F8_E4M3", (64, 32)), "mlp.up_proj.weight_scale": ("F32", ())}, "fp8"),
        ({"mlp.up_proj.weight_packed": ("I32", (64, 4)), "mlp.up_proj.weight_scale": ("BF16", (64, 1))}, "int4"),
    ],
)
def test_precision_of_the_mtp_layer(weights: Weights, precision: str) -> None:
    survey = Survey({"num_hidden_layers": 1, "num_nextn_predict_layers": 1}, None)
    survey.add("x", header({f"model.layers.1.{name}": value for name, value in weights.items()}))
    assert survey.finish(b"", b"", complete=False).mtp["precision"] == precision


def test_parts_of_a_model_inside_a_multimodal_one() -> None:
    survey = Survey({"text_config": {"num_hidden_layers": 1, "num_attention_heads": 1}}, None)
    survey.add(
        "x",
        header(
            {
                "model.language_model.layers.0.self_attn.o_proj.weight": ("BF16", (1, 1)),
                "model.language_model.layers.0.mlp.experts.3.w1.weight": ("BF16", (1, 2)),
                "model.language_model.layers.0.mlp.shared_experts.up_proj.weight": ("BF16", (1, 3)),
                "model.language_model.layers.0.mlp.gate.weight": ("BF16", (1, 4)),
                "model.language_model.embed_tokens.weight": ("BF16", (1, 5)),
                "visual.layers.0.mlp.up_proj.weight": ("BF16", (1, 6)),
            }
        ),
    )
    report = survey.finish(b"", b"", complete=True)
    assert report.problems == ()
    assert report.bytes_by_part == {
        "attention": 2,
        "routed_experts": 4,
        "shared_experts": 6,
        "router": 8,
        "dense_mlp": 12,
        "embeddings": 10,
    }


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (b"{", "i is not JSON"),
        (b"[]", "i holds a JSON list, not an object; copy it again"),
        (b"{}", "i has no weight_map, so nobody knows which shard holds which tensor; copy it again"),
        (
            b'{"weight_map": {"a": "../x.safetensors"}}',
            "i names the shard '../x.safetensors'; a shard is a .safetensors file in the same folder",
        ),
        (
            b'{"weight_map": {"a": "/x.safetensors"}}',
            "i names the shard '/x.safetensors'; a shard is a .safetensors file in the same folder",
        ),
        (
            b'{"weight_map": {"a": "model.bin"}}',
            "i names the shard 'model.bin'; a shard is a .safetensors file in the same folder",
        ),
        (
            b'{"metadata": {"total_size": NaN}, "weight_map": {"a": "x.safetensors"}}',
            "i has the total_size nan, which is no size; copy it again",
        ),
        (
            b'{"metadata": {"total_size": -1}, "weight_map": {"a": "x.safetensors"}}',
            "i has the total_size -1, which is no size; copy it again",
        ),
        (
            b'{"weight_map": {"a": "x/..\\\\..\\\\y.safetensors"}}',
            "i names the shard 'x/..\\\\..\\\\y.safetensors'; a shard is a .safetensors file in the same folder",
        ),
        (b'{"weight_map": {"a": 3}}', "i names the shard '3'; a shard is a .safetensors file in the same folder"),
    ],
)
def test_bad_indexes(text: bytes, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}"):
        parse_index(text, "i")


def test_merged_index_takes_every_tensor_of_the_overlay_from_the_overlay() -> None:
    base = {"a": "1.safetensors", "b": "1.safetensors", "c": "2.safetensors"}
    overlay = {"a": "1.safetensors", "x": "3.safetensors", "y": "4.safetensors"}
    assert merge_index(base, overlay, {"2.safetensors": ["d"], "3.safetensors": ["x", "b"]}) == {
        "a": "1.safetensors",
        "b": "3.safetensors",
        "d": "2.safetensors",
        "x": "3.safetensors",
        "y": "4.safetensors",
    }


@pytest.mark.parametrize(
    ("config", "layers"),
    [({}, 0), ({"num_nextn_predict_layers": 2}, 2), ({"text_config": {"num_nextn_predict_layers": 1}}, 1)],
)
def test_promised_layers(config: dict[str, t.Any], layers: int) -> None:
    assert promised_mtp_layers(config) == layers


def test_promise_that_is_no_number() -> None:
    with pytest.raises(ValueError, match=r"^config\.json: num_nextn_predict_layers is '1', it must be a whole number$"):
        promised_mtp_layers({"num_nextn_predict_layers": "1"})


@pytest.fixture
def models(tmp_path: Path) -> Path:
    for name, files in checkpoint.build(0).items():
        checkpoint.write(tmp_path / name, files)
    return tmp_path


def edit_index(folder: Path, change: t.Callable[[dict[str, str]], None]) -> None:
    path = folder / INDEX_FILE
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))


SHARD = "model-00002-of-00003.safetensors"
NO_DRAFTS = Layout(mtp=False)


def test_hidden_files_are_no_part_of_a_checkpoint(models: Path) -> None:
    base = models / "lab-base"
    (base / ".cache").mkdir()
    (base / ".cache" / "x.safetensors").write_bytes(b"")
    (base / ".gitattributes").write_bytes(b"")
    (base / "encoding").mkdir()
    (base / "encoding" / "vocab.txt").write_bytes(b"")
    names = list_folder(str(base))
    assert "encoding/vocab.txt" in names
    assert not [name for name in names if name.startswith(".")]


def test_folder_without_config(models: Path) -> None:
    (models / "lab-base" / CONFIG_FILE).unlink()
    sentence = (
        f"{models}/lab-base has no config.json, so it is no model folder; copy the whole checkpoint there, or correct "
        "the path"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        survey_folder(str(models / "lab-base"))
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        plan_hybrid(str(models / "lab-base"), str(models / "lab-mtp"))


def test_no_folder_at_all(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no folder on this node; put the checkpoint there, or correct the path$"):
        survey_folder(str(tmp_path / "none"))


def problems_of(models: Path) -> list[str]:
    return list(survey_folder(str(models / "lab-base"), NO_DRAFTS).problems)


def test_whole_base_has_no_problem_without_drafts(models: Path) -> None:
    assert problems_of(models) == []


def test_missing_shard(models: Path) -> None:
    (models / "lab-base" / SHARD).unlink()
    assert problems_of(models) == [f"{SHARD} is missing in {models}/lab-base, and {INDEX_FILE} names it; copy it there"]
    assert plan_hybrid(str(models / "lab-base"), str(models / "lab-mtp")).report.problems == (
        f"{SHARD} is missing in {models}/lab-base and {models}/lab-mtp, and {INDEX_FILE} names it; copy it there",
    )


def test_missing_index(models: Path) -> None:
    (models / "lab-base" / INDEX_FILE).unlink()
    sentence = f"{models}/lab-base has 3 .safetensors files but no {INDEX_FILE}; copy it there"
    assert problems_of(models) == [sentence]
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        plan_hybrid(str(models / "lab-base"), str(models / "lab-mtp"))


def test_no_weights(models: Path) -> None:
    for path in (models / "lab-base").glob("model*"):
        path.unlink()
    assert problems_of(models) == [
        f"no .safetensors file is in {models}/lab-base, and nothing else is loaded; copy the weights there"
    ]


def test_truncated_shard(models: Path) -> None:
    path = models / "lab-base" / SHARD
    whole = path.stat().st_size
    with path.open("r+b") as stream:
        stream.truncate(whole - 1)
    assert problems_of(models) == [
        f"{path} is truncated: its tensors end at byte {whole}, the file at byte {whole - 1}; copy it again"
    ]


def test_tensors_in_the_index_but_in_no_file_and_the_reverse(models: Path) -> None:
    def change(weight_map: dict[str, str]) -> None:
        del weight_map["lm_head.weight"]
        weight_map["model.layers.1.ghost.weight"] = SHARD

    edit_index(models / "lab-base", change)
    assert problems_of(models) == [
        f"{SHARD} lacks 1 tensor that the index says it holds: model.layers.1.ghost.weight",
        "model-00003-of-00003.safetensors holds 1 tensor that the index does not name: lm_head.weight",
    ]


def test_tensor_in_two_files(models: Path) -> None:
    overlay = {"again.safetensors": {"model.norm.weight": checkpoint.ones(128)}}
    files = {name: checkpoint.safetensors(tensors) for name, tensors in overlay.items()}
    checkpoint.write(models / "twice", files)
    report = plan_hybrid(str(models / "lab-base"), str(models / "twice"), NO_DRAFTS).report
    assert report.problems == (
        "model.norm.weight is in two files, model-00003-of-00003.safetensors and again.safetensors: which one is "
        "loaded depends on their order",
    )


def test_missing_layer(models: Path) -> None:
    folder = models / "lab-base"
    (folder / SHARD).unlink()

    def change(weight_map: dict[str, str]) -> None:
        for name in [name for name, shard in weight_map.items() if shard == SHARD]:
            del weight_map[name]

    edit_index(folder, change)
    assert problems_of(models) == [
        "config.json promises 3 layers, but no file holds a tensor of layer 1; copy the missing shards there"
    ]


def test_file_that_the_index_does_not_name_is_not_loaded(models: Path) -> None:
    (models / "lab-base" / "consolidated.safetensors").write_bytes(b"whatever")
    report = survey_folder(str(models / "lab-base"), NO_DRAFTS)
    assert report.problems == ()
    assert "consolidated.safetensors" not in report.files


def test_one_file_needs_no_index(models: Path) -> None:
    folder = models / "single"
    shards = [checkpoint.layer(checkpoint.Noise(0), index) for index in range(3)]
    tensors = {name: tensor for shard in shards for name, tensor in shard.items()}
    config = checkpoint.json_text({**checkpoint.config(), "num_nextn_predict_layers": 0})
    checkpoint.write(folder, {"model.safetensors": checkpoint.safetensors(tensors), CONFIG_FILE: config})
    assert survey_folder(str(folder)).problems == ()
    hybrid = plan_hybrid(str(folder), str(models / "lab-mtp"))
    assert hybrid.index is not None
    assert set(json.loads(hybrid.index)["weight_map"].values()) == {
        "model.safetensors",
        "model-00004-of-00004.safetensors",
    } | {f"model-0000{number}-of-00003.safetensors" for number in (1, 3)}


def test_overlay_without_weights(models: Path) -> None:
    (models / "lab-mtp" / "model-00004-of-00004.safetensors").unlink()
    sentence = (
        f"{models}/lab-mtp has no .safetensors file, so it adds nothing to {models}/lab-base; correct the overlay"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        plan_hybrid(str(models / "lab-base"), str(models / "lab-mtp"))


def test_digest_tells_headers_config_and_index_apart(models: Path) -> None:
    base = str(models / "lab-base")
    before = survey_folder(base)
    assert survey_folder(base).digest == before.digest
    config = models / "lab-base" / CONFIG_FILE
    config.write_text(config.read_text() + "\n")
    after = survey_folder(base)
    assert after.digest != before.digest
    assert [name for name in before.digests if before.digests[name] != after.digests[name]] == [CONFIG_FILE]


def test_report_as_plain_data(models: Path) -> None:
    report = survey_folder(str(models / "lab-base"), NO_DRAFTS).as_dict()
    assert json.loads(json.dumps(report)) == report
