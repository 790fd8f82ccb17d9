# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a build from source gets, what it may take, what is said when it ends badly. tests/wheels builds for real."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import typing as t
from dataclasses import replace
from pathlib import Path

import pytest

from ansible_collections.sparkrig.serving.plugins.module_utils._runtime import BuildPlan, Source, Target
from ansible_collections.sparkrig.serving.plugins.module_utils._runtime_source import (
    Limits,
    SourceError,
    build_environment,
    build_key,
    failure_sentence,
    find_built,
    limited,
    limits_for,
    usable_scope,
)
from ansible_collections.sparkrig.serving.plugins.module_utils._wheel_patch import Patch

GIB = 1024**3
FORK = Source("git", "vllm", "0.11.2", None, "https://example.org/vllm.git", "a" * 40, True)
SPARK = BuildPlan(
    environment=(("VLLM_TARGET_DEVICE", "cuda"),), cuda_arch_list="12.1a", cuda_home="/usr/local/cuda", timeout_s=7200
)
TARGET = Target("3.12", "aarch64", "2.39")
PATCHES = (Patch("1.patch", b"one"),)


def test_a_cuda_build_gets_these_variables_and_no_other() -> None:
    seen = build_environment(
        FORK,
        SPARK,
        Limits(6, 48 * GIB, 7200, "system"),
        "0.11.2+sparkrig.1a2b3c4d",
        "/w/environment/bin",
        "/w/home",
        1234567890,
        {"https_proxy": "http://proxy:3128", "PIP_INDEX_URL": "https://mirror/simple", "SECRET": "x", "CUDA_HOME": "y"},
    )
    assert seen == {
        "https_proxy": "http://proxy:3128",
        "PIP_INDEX_URL": "https://mirror/simple",
        "PATH": "/w/environment/bin:/usr/local/cuda/bin:/usr/bin:/bin",
        "HOME": "/w/home",
        "LC_ALL": "C.UTF-8",
        "SOURCE_DATE_EPOCH": "1234567890",
        "SETUPTOOLS_SCM_PRETEND_VERSION_FOR_VLLM": "0.11.2+sparkrig.1a2b3c4d",
        "SETUPTOOLS_SCM_PRETEND_VERSION": "0.11.2+sparkrig.1a2b3c4d",
        "VLLM_VERSION_OVERRIDE": "0.11.2+sparkrig.1a2b3c4d",
        "MAX_JOBS": "6",
        "CMAKE_BUILD_PARALLEL_LEVEL": "6",
        "CARGO_BUILD_JOBS": "6",
        "MAKEFLAGS": "-j6",
        "NINJAFLAGS": "-j6",
        "NVCC_THREADS": "1",
        "CUDA_HOME": "/usr/local/cuda",
        "TORCH_CUDA_ARCH_LIST": "12.1a",
        "FLASHINFER_CUDA_ARCH_LIST": "12.1a",
        "VLLM_TARGET_DEVICE": "cuda",
    }


@pytest.mark.parametrize(
    ("plan", "cpus", "available_gib", "jobs", "memory_gib"),
    [
        (SPARK, 20, 118, 20, 114),
        (SPARK, 20, 44, 10, 40),
        (replace(SPARK, job_bytes=8 * GIB), 20, 44, 5, 40),
        (replace(SPARK, max_jobs=2), 20, 44, 2, 40),
        (replace(SPARK, memory_max_bytes=16 * GIB), 20, 118, 4, 16),
    ],
)
def test_jobs_follow_the_memory(plan: BuildPlan, cpus: int, available_gib: int, jobs: int, memory_gib: int) -> None:
    limits = limits_for(plan, cpus, available_gib * GIB, "system")
    assert limits == Limits(jobs, memory_gib * GIB, 7200, "system")


@pytest.mark.parametrize("available_gib", [1, 4, 7])
def test_a_host_on_which_not_one_job_fits_is_refused(available_gib: int) -> None:
    with pytest.raises(SourceError, match=r"4\.0 GiB for one compiler and the build host leaves it [03]\.0 GiB of"):
        limits_for(SPARK, 20, available_gib * GIB, "system")


@pytest.mark.parametrize(
    ("scope", "start"),
    [
        ("system", ["systemd-run", "--scope", "--quiet", "--collect", "--property=MemoryMax=1024"]),
        ("user", ["systemd-run", "--user", "--scope", "--quiet", "--collect", "--property=MemoryMax=1024"]),
        ("rlimit", ["prlimit", "--as=1024", "--", "make"]),
    ],
)
def test_the_memory_is_limited_by_whoever_can(scope: str, start: list[str]) -> None:
    seen = limited(["make"], Limits(1, 1024, 1, scope))
    assert seen[: len(start)] == start
    assert seen[-2:] == ["--", "make"]


def test_a_service_manager_is_used_only_where_it_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.path.isdir", lambda path: True)
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert usable_scope(lambda _command: 0) == "system"
    assert usable_scope(lambda _command: 1) == "rlimit"
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert usable_scope(lambda command: 0 if "--user" in command else 1) == "user"


def test_a_limit_counts_only_when_the_kernel_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A systemd in a container makes the scope and sets nothing: it is asked inside what the limit is."""
    monkeypatch.setattr("os.path.isdir", lambda path: True)
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")

    def without_a_limit(command: t.Sequence[str]) -> int:
        asked = command[command.index("--") + 1 :]
        assert f"--property=MemoryMax={asked[-1].rpartition(' ')[2]}" in command
        return subprocess.run(asked, check=False).returncode

    assert usable_scope(without_a_limit) == "rlimit"


LIMITS = Limits(8, 16 * GIB, 60, "system")


@pytest.mark.parametrize(
    ("code", "output", "words"),
    [
        (None, "", "was stopped after 61 s, the limit is 60 s: raise runtime.build.timeout_s"),
        (-9, "", "ran out of memory at 16.0 GiB with 8 jobs: set runtime.build.max_jobs to 4"),
        (137, "", "ran out of memory at 16.0 GiB"),
        (1, "c++: fatal error: Killed signal terminated program cc1plus", "ran out of memory"),
        (1, "nvcc error : 'cicc' died: Cannot allocate memory", "ran out of memory"),
        (2, "one\nninja: error: no nvcc\nlast", "ended with 2: ninja: error: no nvcc; its output: /log"),
        (2, "", "ended with 2: it said nothing; its output: /log"),
    ],
)
def test_what_is_said_of_a_build_that_ends_badly(code: int | None, output: str, words: str) -> None:
    text = failure_sentence(FORK, LIMITS, code, output, "/log", 61.0)
    assert text.startswith("the build of vllm ")
    assert words in text
    assert text.endswith("its output: /log")


@pytest.mark.parametrize(
    "change",
    [
        {"source": replace(FORK, commit="b" * 40)},
        {"source": replace(FORK, submodules=False)},
        {"plan": replace(SPARK, cuda_arch_list="12.0")},
        {"plan": replace(SPARK, requires=("torch==2",))},
        {"plan": replace(SPARK, environment=())},
        {"target": Target("3.13", "aarch64", "2.39")},
        {"version": "0.11.3"},
        {"patches": (Patch("1.patch", b"two"),)},
    ],
)
def test_a_key_names_all_that_decides(change: dict[str, t.Any]) -> None:
    arguments: dict[str, t.Any] = {
        "source": FORK,
        "plan": SPARK,
        "target": TARGET,
        "version": "0.11.2",
        "patches": PATCHES,
    }
    first = build_key(**arguments)
    assert build_key(**{**arguments, **change}) != first
    same = {
        "source": replace(FORK, repository="https://mirror/vllm.git"),
        "plan": replace(SPARK, max_jobs=1, memory_max_bytes=GIB, timeout_s=1),
    }
    assert build_key(**{**arguments, **same}) == first


def test_a_built_wheel_counts_only_when_its_bytes_are_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "b" / "key"
    folder.mkdir(parents=True)
    (folder / "x-1-py3-none-any.whl").write_bytes(b"wheel")
    content = {
        "file": "x-1-py3-none-any.whl",
        "name": "x",
        "version": "1",
        "sha256": hashlib.sha256(b"wheel").hexdigest(),
        "applied": ["1.patch"],
        "upstreamed": [],
        "seconds": 3.0,
    }
    (folder / "built.json").write_text(json.dumps(content))
    found = find_built([tmp_path / "a", tmp_path / "b"], "key")
    assert found is not None
    assert (found.path, found.applied) == (str(folder / "x-1-py3-none-any.whl"), ("1.patch",))
    (folder / "x-1-py3-none-any.whl").write_bytes(b"other")
    assert find_built([tmp_path / "b"], "key") is None
    os.unlink(folder / "x-1-py3-none-any.whl")
    assert find_built([tmp_path / "b"], "key") is None
