# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The sizes of GLM-5.2 on four ranks, from a checkpoint of full size whose data are holes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ansible_collections.sparkrig.serving.plugins.module_utils._checkpoint import Layout, plan_hybrid, survey_folder
from tests.fixtures import glm52

pytestmark = pytest.mark.slow

GIB = 2**30
TP4 = Layout(tensor_parallel_size=4)
BASE_BYTES = 439_842_893_136
BF16_BYTES = 459_748_734_800
# What the measured system logged for its weights, per rank.
MEASURED_GIB = 106.93

MEASURE = """
import json, sys
from ansible_collections.sparkrig.serving.plugins.module_utils._checkpoint import Layout, survey_folder
from time import process_time
seconds = []
# A busy neighbour slows a processor down as well: one quiet moment is enough.
while len(seconds) < 4 and min(seconds, default=6) >= 6:
    start = process_time()
    report = survey_folder(sys.argv[1], Layout(tensor_parallel_size=4))
    seconds.append(process_time() - start)
# Not ru_maxrss: that begins with what the process held that started this one.
with open("/proc/self/status") as status:
    peak = int(next(line.split()[1] for line in status if line.startswith("VmHWM:"))) * 1024
print(json.dumps([min(seconds), peak, report.tensors, len(report.files)]))
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("glm52")
    glm52.write_base(folder / "base")
    glm52.write_overlay(folder / "nvfp4", glm52.nvfp4)
    glm52.write_overlay(folder / "bf16", glm52.bf16)
    return folder


def test_base_has_the_published_size_and_lacks_its_mtp_layer(models: Path) -> None:
    report = survey_folder(str(models / "base"), TP4)
    assert report.total_bytes == BASE_BYTES
    assert report.tensors == 232_296
    assert len(report.indexer_layers) == 21
    assert report.mtp == {"promised": True, "present": False, "precision": None, "layers": [], "bytes": 0}
    assert report.problems == (
        "config.json promises 1 MTP layer (num_nextn_predict_layers), but no file holds model.layers.78.*: add the "
        "overlay that does, or serve without drafts",
    )
    assert sum(report.bytes_by_part.values()) == BASE_BYTES
    assert sum(report.bytes_by_dtype.values()) == BASE_BYTES


def test_ranks_hold_what_was_measured(models: Path) -> None:
    report = plan_hybrid(str(models / "base"), str(models / "nvfp4"), TP4).report
    assert report.problems == ()
    assert report.tensors == 235_400
    assert report.total_bytes == BASE_BYTES + 5_960_049_176
    assert report.mtp == {
        "promised": True,
        "present": True,
        "precision": "nvfp4",
        "layers": [78],
        "bytes": 5_960_049_176,
    }
    assert len(set(report.weights_bytes)) == 1
    assert report.weights_bytes[0] / GIB == pytest.approx(106.68, abs=0.01)
    assert abs(report.weights_bytes[0] / GIB - MEASURED_GIB) < 0.5


def test_mtp_layer_in_bf16_costs_3_2_gib_more_on_every_rank(models: Path) -> None:
    nvfp4 = plan_hybrid(str(models / "base"), str(models / "nvfp4"), TP4).report
    hybrid = plan_hybrid(str(models / "base"), str(models / "bf16"), TP4)
    bf16 = hybrid.report
    assert bf16.total_bytes == BF16_BYTES
    assert bf16.tensors == 232_296 + 791
    assert bf16.mtp["precision"] == "bf16"
    assert (bf16.weights_bytes[0] - nvfp4.weights_bytes[0]) / GIB == pytest.approx(3.25, abs=0.01)
    assert hybrid.index is not None
    index = json.loads(hybrid.index)
    assert index["metadata"] == {"total_size": BF16_BYTES}
    assert len(index["weight_map"]) == bf16.tensors


def test_an_indexer_on_every_layer_costs_one_gib(models: Path) -> None:
    shared = survey_folder(str(models / "base"), Layout(4, mtp=False))
    every = survey_folder(str(models / "base"), Layout(4, mtp=False, hf_overrides={"use_index_cache": False}))
    assert (every.weights_bytes[0] - shared.weights_bytes[0]) / GIB == pytest.approx(0.995, abs=0.001)
    assert every.problems == (
        "the config gives an indexer to layers that have none in the files: 3, 4, 5 and 54 more; correct "
        "index_topk_freq, index_topk_pattern or the hf_overrides",
    )


@pytest.mark.alone
def test_235400_tensors_take_seconds_and_under_300_mb(models: Path) -> None:
    """What checkpoint_info does with the whole checkpoint: base and MTP layer in one folder.

    An idle machine takes 2.2 s. On one whose neighbours are busy even processor time grows, so this only tells a
    regression; `make bench` has the 3 s that are promised.
    """
    whole = models / "whole"
    glm52.write_whole(models / "base", models / "nvfp4", whole)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(whole)],
        env={"PYTHONPATH": ".collections"},
        stdout=subprocess.PIPE,
        check=True,
    )
    seconds, peak_bytes, tensors, files = json.loads(done.stdout)
    assert (tensors, files) == (235_400, 46)
    assert seconds < 6.0
    assert peak_bytes < 300_000_000
