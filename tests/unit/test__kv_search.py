# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The search: what it lists fits, what it marks is best, and its report stands alone."""

from __future__ import annotations

import re
import typing as t
import xml.etree.ElementTree

import pytest

from ansible_collections.sparkrig.serving.plugins.module_utils._kv_node import fit
from ansible_collections.sparkrig.serving.plugins.module_utils._kv_report import html_page, text_table
from ansible_collections.sparkrig.serving.plugins.module_utils._kv_search import search
from tests.fixtures.glm52 import GLM

GIB = 2**30
OPTIONS: dict[str, t.Any] = {
    "config": GLM,
    "engine": "dark-devotion",
    "tensor_parallel_size": 4,
    "kv_cache_dtype": "fp8_ds_mla",
    "weights_bytes": int(106.93 * GIB),
    "overhead_bytes": 5 * GIB,
    "reserve_bytes": GIB,
    "memory_available_bytes": 115 * GIB,
}


def question(**changes: t.Any) -> dict[str, t.Any]:
    """A search over GLM-5.2 on four nodes."""
    return {"options": OPTIONS, **changes}


def as_fit(row: dict[str, t.Any], **changes: t.Any) -> dict[str, t.Any]:
    """A row of the search asked as a fit of its own."""
    drafts = row["num_speculative_tokens"]
    return fit(
        {
            **OPTIONS,
            "kv_cache_dtype": row["kv_cache_dtype"],
            "decode_context_parallel_size": row["decode_context_parallel_size"],
            "max_num_seqs": row["max_num_seqs"],
            "max_model_len": row["max_model_len"],
            "kv_cache_memory_bytes": row["kv_cache_memory_bytes"],
            "speculative_config": {"method": "mtp", "num_speculative_tokens": drafts} if drafts else None,
            **changes,
        }
    )


def test_every_row_fits() -> None:
    """Each row is a fit that holds, its concurrency included, and the longest rows are the longest."""
    found = search(question(sequences=[1, 3, 8], draft_tokens=[0, 2], contexts=[8192, 65_536, 100_000]))
    assert found["rows"]
    for row in found["rows"]:
        answer = as_fit(row)
        assert answer["fits"], row
        assert answer["max_concurrency"] >= row["max_num_seqs"]
        if row["longest"]:
            longer = as_fit(row, max_model_len=row["max_model_len"] + 256, kv_cache_memory_bytes="auto")
            assert not longer["fits"], row


@pytest.mark.parametrize(
    ("aim", "key"),
    [
        ("context", lambda row: -row["max_model_len"]),
        ("concurrency", lambda row: -row["max_num_seqs"]),
        ("both", lambda row: -row["max_model_len"] * row["max_num_seqs"]),
    ],
)
def test_order(aim: str, key: t.Callable[[dict[str, t.Any]], int]) -> None:
    """Rows come by the aim."""
    values = [key(row) for row in search(question(aim=aim))["rows"]]
    assert values == sorted(values)


def test_pareto() -> None:
    """No row has more context and as many sequences as a marked one, or the other way round."""
    rows = search(question(cache_dtypes=["fp8_ds_mla", "bfloat16"]))["rows"]
    best = [row for row in rows if row["pareto"]]
    assert best
    for mark in best:
        for row in rows:
            more = row["max_model_len"] - mark["max_model_len"], row["max_num_seqs"] - mark["max_num_seqs"]
            assert not (min(more) >= 0 and max(more) > 0), (mark, row)


def test_bounds() -> None:
    """Bounds leave out what is below them."""
    rows = search(question(aim="both", minimum_context=65_536, minimum_concurrency=2))["rows"]
    assert rows
    assert all(row["max_model_len"] >= 65_536 and row["max_num_seqs"] >= 2 for row in rows)


def test_refused_combinations_are_counted() -> None:
    """GQA cannot be context-parallel over so few ranks: counted, not listed."""
    llama = {
        "model_type": "llama",
        "num_hidden_layers": 2,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "hidden_size": 4096,
        "max_position_embeddings": 8192,
    }
    options = {"config": llama, "tensor_parallel_size": 4, "memory_available_bytes": GIB}
    found = search({"options": options, "sequences": [1], "contexts": [4096]})
    assert found["considered"] == 6
    assert found["refused"] == 4
    assert {row["decode_context_parallel_size"] for row in found["rows"]} == {1}


def test_explicit_budget() -> None:
    """Budgets that were given are what is searched, and measured memory is not needed."""
    options = {key: value for key, value in OPTIONS.items() if not key.endswith("_bytes")}
    found = search(
        {"options": {**options, "kv_cache_memory_bytes": 1_810_000_000}, "draft_tokens": [1], "sequences": [1]}
    )
    assert max(row["max_model_len"] for row in found["rows"]) == 132_096


BAD = [
    ({"aim": "speed"}, "aim: 'speed' is not allowed; it must be one of context, concurrency, both"),
    ({"sequences": [0]}, "sequences: 0 is not allowed; it must be an integer of at least 1"),
    ({"contexts": 5}, "contexts: 5 is not allowed; it must be a list of integers"),
    ({"options": 7}, "options: the options of the fit as a dictionary are needed, not 7"),
    ({"speed": 7}, "speed: unknown key of a search; known are options, aim, "),
    ({"cache_dtypes": ["fp3"]}, "cache_dtypes: 'fp3' is not allowed; known are auto, "),
    (
        {"options": {"config": GLM}},
        "memory_available_bytes: it is needed for every rank, or kv_cache_memory_bytes as bytes",
    ),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_bad_search(change: dict[str, t.Any], message: str) -> None:
    """One sentence that names the key, the value and the rule."""
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        search(question(**change))


def test_gate_stops_the_search() -> None:
    """A rank that the engine's start-up gate stops leaves no combination, and page and table say why."""
    found = search(question(options={**OPTIONS, "memory_total_bytes": 128 * GIB, "nodes": ["a", "b", "c", "d"]}))
    assert found["rows"] == []
    assert found["blocked"] == (
        "Nothing fits: the engine will not start on rank 0 (a), where it wants 123695058125 B free at start-up "
        "(gpu_memory_utilization 0.9 of 137438953472) and 123480309760 B are."
    )
    answer = fit({**OPTIONS, "kv_cache_memory_bytes": 10**9, "max_model_len": 4096})
    assert found["blocked"] in html_page("GLM", answer, found)
    assert text_table([], 3) == ["No combination fits."]


def test_page_stands_alone() -> None:
    """The page is well-formed, names no address, and shows a bar for each rank and a line for each DCP."""
    found = search(question(aim="both", sequences=[1, 2, 4]))
    answer = as_fit(found["rows"][0], nodes=["<spark&1>", "b", "c", "d"])
    page = html_page("GLM <5.2> & co", answer, found)
    assert "GLM &lt;5.2&gt; &amp; co" in page and "rank 0 &lt;spark&amp;1&gt;" in page
    assert "http" not in page and "<script" not in page
    for drawing in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        xml.etree.ElementTree.fromstring(drawing)
    assert page.count("<polyline") == 3
    assert page.count(">spare<") == 4 and page.count(">KV cache<") == 4


def test_table() -> None:
    """The table is cut at its limit and says so."""
    rows = search(question())["rows"]
    lines = text_table(rows, 3)
    assert len(lines) == 5
    assert lines[1].startswith("*")
    assert lines[-1] == f"... and {len(rows) - 3} more"
