# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The faces of the fitter: module and filters give the core's answer and its sentences."""

from __future__ import annotations

import json
import typing as t
from pathlib import Path

import pytest
import yaml
from ansible.errors import AnsibleFilterError
from ansible.module_utils.testing import patch_module_args

from ansible_collections.sparkrig.serving.plugins.filter.kv_budget import FilterModule as BudgetFilter
from ansible_collections.sparkrig.serving.plugins.filter.kv_plan import FilterModule as PlanFilter
from ansible_collections.sparkrig.serving.plugins.filter.kv_report import FilterModule as ReportFilter
from ansible_collections.sparkrig.serving.plugins.filter.kv_search import FilterModule as SearchFilter
from ansible_collections.sparkrig.serving.plugins.module_utils._kv_node import fit
from ansible_collections.sparkrig.serving.plugins.module_utils._kv_options import OPTION_NAMES
from ansible_collections.sparkrig.serving.plugins.modules import kv_budget

CONFIG = {
    "model_type": "llama",
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 8192,
}
QUESTION: dict[str, t.Any] = {
    "config": CONFIG,
    "device": "cpu",
    "kv_cache_memory_bytes": 1_000_000,
    "max_model_len": 512,
}


def run(arguments: dict[str, t.Any], capsys: pytest.CaptureFixture[str]) -> dict[str, t.Any]:
    """What the module prints."""
    with patch_module_args(arguments), pytest.raises(SystemExit):
        kv_budget.main()
    return t.cast("dict[str, t.Any]", json.loads(capsys.readouterr().out))


def test_module_gives_the_answer(capsys: pytest.CaptureFixture[str]) -> None:
    """The module returns what the core answers and changes nothing, in check mode too."""
    for check in (False, True):
        result = run({**QUESTION, "_ansible_check_mode": check}, capsys)
        assert result["changed"] is False
        expected = fit(QUESTION)
        assert {key: result[key] for key in expected} == expected
        assert result["kv_cache_tokens"] == 896


def test_module_refusal_is_an_answer(capsys: pytest.CaptureFixture[str]) -> None:
    """What vLLM refuses does not fail the module."""
    result = run({**QUESTION, "max_model_len": 4096}, capsys)
    assert result["fits"] is False and "failed" not in result
    assert "the estimated maximum model length is 768." in result["engine_error"]


def test_module_reads_the_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder or a file, and a sentence when there is none."""
    question = {key: value for key, value in QUESTION.items() if key != "config"}
    (tmp_path / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    assert run({**question, "model": str(tmp_path)}, capsys)["num_blocks"] == 7
    assert run({**question, "model": str(tmp_path / "config.json")}, capsys)["num_blocks"] == 7
    missing = run({**question, "model": str(tmp_path / "none")}, capsys)
    assert missing["msg"] == f"model: {tmp_path}/none cannot be read: No such file or directory"
    (tmp_path / "config.json").write_text("{", encoding="utf-8")
    assert run({**question, "model": str(tmp_path)}, capsys)["msg"].startswith(
        f"model: {tmp_path}/config.json is not JSON"
    )


def test_module_measures_its_node(capsys: pytest.CaptureFixture[str]) -> None:
    """The memory of this very machine."""
    result = run({**QUESTION, "measure_memory": True}, capsys)
    rank = result["ranks"][0]
    assert 0 < rank["available_bytes"] <= rank["total_bytes"]


def test_module_bad_value(capsys: pytest.CaptureFixture[str]) -> None:
    """Malformed input fails with the core's sentence."""
    result = run({**QUESTION, "engine": "0.1"}, capsys)
    assert result["failed"] is True
    assert result["msg"].startswith("engine: '0.1' is not a planner that is known here")


def test_module_documents_what_it_takes() -> None:
    """Documentation, argument specification and core know the same options; results are documented."""
    documented = yaml.safe_load(kv_budget.DOCUMENTATION)["options"]
    specified = kv_budget.argument_spec()
    assert set(documented) == set(specified)
    assert set(specified) == set(OPTION_NAMES) | {"model", "measure_memory"}
    for name, spec in specified.items():
        for key in ("type", "default", "choices", "elements"):
            assert documented[name].get(key) == spec.get(key), (name, key)
    assert set(yaml.safe_load(kv_budget.RETURN)) == set(fit(QUESTION))


def test_filters() -> None:
    """The filters give the core's answers."""
    budget = BudgetFilter().filters()["kv_budget"]
    assert budget(QUESTION) == fit(QUESTION)
    plan = PlanFilter().filters()["kv_plan"](QUESTION)
    assert plan["result"]["num_blocks"] == 7 and json.loads(plan["document"])["num_blocks"] == 7
    found = SearchFilter().filters()["kv_search"]({"options": QUESTION, "sequences": [1]})
    report = ReportFilter().filters()["kv_report"](found, fit=fit(QUESTION))
    assert report["html"].startswith("<!DOCTYPE html>")


@pytest.mark.parametrize(
    ("name", "call", "message"),
    [
        ("kv_budget", BudgetFilter, "kv_budget: config: the model's config.json as a dictionary is needed, not None"),
        ("kv_plan", PlanFilter, "kv_budget: config: the model's config.json as a dictionary is needed, not None"),
        ("kv_search", SearchFilter, "kv_search: options: the options of the fit as a dictionary are needed, not None"),
    ],
)
def test_filter_errors(name: str, call: t.Any, message: str) -> None:
    """A filter's error is the core's sentence."""
    with pytest.raises(AnsibleFilterError) as caught:
        call().filters()[name]({})
    assert str(caught.value) == message
