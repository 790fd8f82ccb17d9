# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Prometheus' text format."""

from __future__ import annotations

import math
import re

import pytest

from ansible_collections.sparkrig.serving.plugins.module_utils._metrics import Sample, labels_of, parse_metrics, total

TEXT = """\
# HELP vllm:spec_decode_num_drafts_total Number of spec decoding drafts.
# TYPE vllm:spec_decode_num_drafts_total counter
vllm:spec_decode_num_drafts_total{engine="0",model_name="lab-moe"} 63.0
vllm:spec_decode_num_drafts_total{engine="1",model_name="lab-moe"} 1.0

python_info{implementation="CPython",version="3.11"} 1.0
process_open_fds 44
escaped{a="x\\"y\\\\z\\n",b="1,2} 3"} 1e3 1395066363000
empty{} +Inf
"""


def test_samples_have_names_labels_and_numbers() -> None:
    samples = parse_metrics(TEXT)
    assert [sample.name for sample in samples] == [
        "vllm:spec_decode_num_drafts_total",
        "vllm:spec_decode_num_drafts_total",
        "python_info",
        "process_open_fds",
        "escaped",
        "empty",
    ]
    assert samples[2] == Sample("python_info", {"implementation": "CPython", "version": "3.11"}, 1.0)
    assert samples[4] == Sample("escaped", {"a": 'x"y\\z\n', "b": "1,2} 3"}, 1000.0)
    assert math.isinf(samples[5].number)


def test_sums_and_labels() -> None:
    samples = parse_metrics(TEXT)
    assert total(samples, "vllm:spec_decode_num_drafts_total") == 64.0
    assert total(samples, "absent") is None
    assert labels_of(samples, "python_info") == {"implementation": "CPython", "version": "3.11"}
    assert labels_of(samples, "absent") is None


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("<html>", "'<html>' is no sample in Prometheus' text format"),
        ("a{b=c} 1", "'a{b=c} 1' has labels that cannot be read from 'b=c' on"),
    ],
)
def test_what_is_no_metric_is_an_error(line: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        parse_metrics(line)
