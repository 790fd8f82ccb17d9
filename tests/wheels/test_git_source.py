# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A runtime from a git source, for real: vLLM's own source, patched and built, kept by its key, carried by disk."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import typing as t
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from ansible.module_utils.testing import patch_module_args

from ansible_collections.sparkrig.serving.plugins.module_utils._runtime import Target, description_from
from ansible_collections.sparkrig.serving.plugins.module_utils._runtime_build import (
    BuildError,
    Request,
    build,
    built_wheels,
    export_wheelhouse,
)
from ansible_collections.sparkrig.serving.plugins.module_utils._runtime_layout import Layout
from ansible_collections.sparkrig.serving.plugins.module_utils._runtime_nodes import check_tree, install
from ansible_collections.sparkrig.serving.plugins.module_utils._runtime_source import Limits
from ansible_collections.sparkrig.serving.plugins.modules import runtime_archive
from lab.common import cache_dir
from lab.sources import repository
from tests.wheels.conftest import series

MINOR = "3.11"
PYTHON = f"/usr/bin/python{MINOR}"
LIMITS = Limits(2, 4 * 1024**3, 900, "rlimit")
# What vLLM's setup.py needs; torch comes from the wheels that the lab's own runtime is built from.
REQUIRES = [
    "torch==2.13.0+cpu",
    "setuptools==80.10.2",
    "setuptools-scm==10.3.4",
    "setuptools-rust==1.13.0",
    "packaging==26.3",
    "jinja2==3.1.6",
]


@pytest.fixture(scope="module")
def request_for(runtime_packages: Path) -> Request:
    """The lab's description, with vLLM from a repository, and a lock of two wheels that are there."""
    repo = repository("0.32.0", runtime_packages)
    patches = series("vllm-0.32.0")
    wheels = cache_dir() / "runtime" / "wheels"
    lock = ""
    for name, version in (("packaging", "26.3"), ("jinja2", "3.1.6")):
        (wheel,) = wheels.glob(f"{name}-{version}-*.whl")
        lock += f"{name}=={version} --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}\n"
    description = {
        "glibc": "2.34",
        "source": {
            "kind": "git",
            "name": "vllm",
            "version": "0.32.0",
            "repository": repo.url,
            "commit": repo.commit,
        },
        "local_version": "empty",
        "patches": {"series": "vllm-0.32.0", "files": [patch.name for patch in patches]},
        "lock": "test",
        "build": {"requires": REQUIRES, "environment": {"VLLM_TARGET_DEVICE": "empty"}, "timeout_s": 900},
    }
    target = Target(MINOR, platform.machine(), "2.34")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return Request(
        description_from(description), target, lock, tuple(patches), sys.executable, PYTHON, None, LIMITS, inherited
    )


def test_a_source_is_built_once_and_carried_to_a_site_without_network(request_for: Request, tmp_path: Path) -> None:
    cache = cache_dir() / "runtime"
    (built,) = built_wheels(request_for, cache).values()
    assert built.version.startswith("0.32.0+empty.sparkrig.")
    assert built.applied == request_for.description.patch_files
    with zipfile.ZipFile(built.path) as wheel:
        text = wheel.read("vllm/distributed/parallel_state.py").decode()
        assert 'os.getenv("VLLM_DISABLE_TP_MQ_BROADCASTER", "0")' in text
        assert built.version in wheel.read("vllm/_version.py").decode()
    # Again: nothing is built, since nothing may be.
    (again,) = built_wheels(replace(request_for, limits=None), cache).values()
    assert again == built

    house = tmp_path / "wheelhouse"
    assert "lock.txt" in export_wheelhouse(request_for, cache, house)
    assert export_wheelhouse(request_for, cache, house) == ()
    # The other site: an empty cache, a pip that cannot be called, no limits for a build.
    site = replace(request_for, wheelhouse=house, limits=None, pip_python="/nowhere/python")
    archive, made = build(site, tmp_path / "cache")
    assert made is True
    assert archive.digest == request_for.digest
    assert archive.versions["vllm"] == built.version
    assert archive.applied == built.applied
    layout = Layout(tmp_path / "opt", tmp_path / "record.json")
    install(layout, Path(archive.path), archive.digest, archive.tree_sha256)
    assert check_tree(layout.tree(archive.digest), archive.tree_sha256, full=True) is None

    (folder,) = (house / "built").iterdir()
    shutil.rmtree(folder)
    with pytest.raises(BuildError, match=r"has no vllm 0\.32\.0.* built from the commit"):
        build(site, tmp_path / "other")


def test_the_module_finds_what_was_built(
    request_for: Request, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (built,) = built_wheels(request_for, cache_dir() / "runtime").values()
    for name in ("built", "wheels"):
        (tmp_path / name).symlink_to(cache_dir() / "runtime" / name)
    source = request_for.description.source
    options = {
        "description": {
            "python": MINOR,
            "glibc": "2.34",
            "source": {
                "kind": "git",
                "name": "vllm",
                "version": source.version,
                "repository": source.repository,
                "commit": source.commit,
            },
            "local_version": "empty",
            "patches": {"series": "vllm-0.32.0", "files": list(request_for.description.patch_files)},
            "lock": "test",
            "build": {"requires": REQUIRES, "environment": {"VLLM_TARGET_DEVICE": "empty"}, "timeout_s": 900},
        },
        "lock": request_for.lock,
        "patches": {patch.name: patch.text.decode() for patch in request_for.patches},
        "cache_dir": str(tmp_path),
        "_ansible_check_mode": False,
    }
    with patch_module_args(options), pytest.raises(SystemExit):
        runtime_archive.main()
    archive = json.loads(capsys.readouterr().out)["archive"]
    assert archive["digest"] == request_for.digest
    assert archive["versions"]["vllm"] == built.version
    assert archive["seconds"]["source"] < 5


def refused(request: Request, folder: Path, **more: t.Any) -> str:
    with pytest.raises(ValueError) as caught:
        built_wheels(replace(request, **more), folder)
    # The log is what the sentence points to; the lock is empty, and stays for the next build of the same key.
    left = [path for path in (folder / "built").iterdir() if path.suffix not in (".log", ".lock")]
    assert left == []
    return str(caught.value)


def described(request: Request, source: dict[str, t.Any] | None = None, **build_plan: t.Any) -> dict[str, t.Any]:
    """Another description, as a change to a request."""
    description = request.description
    return {
        "description": replace(
            description,
            source=replace(description.source, **(source or {})),
            build=replace(description.build, **build_plan),
        )
    }


def test_a_patch_that_does_not_apply_stops_before_the_build(request_for: Request, tmp_path: Path) -> None:
    patches = tuple(series("vllm-0.33.0"))
    text = refused(request_for, tmp_path, patches=patches)
    assert text.startswith(
        "patch 0001-no-mq-broadcaster-on-request.patch: file vllm/distributed/parallel_state.py: hunk"
    )


def test_a_commit_that_is_not_there(request_for: Request, tmp_path: Path) -> None:
    text = refused(request_for, tmp_path, **described(request_for, {"commit": "0" * 40}))
    assert "checking 0000000000000000000000000000000000000000 of vllm out failed: fatal: " in text


def test_a_repository_that_cannot_be_reached(request_for: Request, tmp_path: Path) -> None:
    text = refused(request_for, tmp_path, **described(request_for, {"repository": "file:///nowhere.git"}))
    assert "of file:///nowhere.git for vllm failed: fatal: " in text


def small(folder: Path, body: str) -> dict[str, t.Any]:
    """A source whose setup.py does what *body* says, and builds nothing else."""
    tree = folder / "source"
    tree.mkdir()
    (tree / "setup.py").write_text(
        f"import os, subprocess, time\n{body}\nfrom setuptools import setup\nsetup(name='x')\n"
    )
    person = ["-c", "user.name=t", "-c", "user.email=t@localhost"]
    for command in (["init", "-q"], ["add", "-A"], [*person, "commit", "-q", "-m", "x"]):
        subprocess.run(["git", *command], cwd=tree, check=True)
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=tree, check=True, capture_output=True, text=True)
    return {"name": "x", "version": "1.0", "repository": f"file://{tree}", "commit": done.stdout.strip()}


@pytest.mark.parametrize(
    ("body", "limits", "words"),
    [
        (
            "x = bytearray(3 << 30)",
            Limits(4, 1 << 30, 60, "rlimit"),
            "ran out of memory at 1.0 GiB with 4 jobs: set run",
        ),
        (
            "os.kill(os.getpid(), 9)",
            LIMITS,
            "ran out of memory at 4.0 GiB with 2 jobs: set runtime.build.max_jobs to 1",
        ),
        ("time.sleep(600)", Limits(2, 1 << 32, 3, "rlimit"), "the limit is 3 s: raise runtime.build.timeout_s"),
        ("raise SystemExit('fatal error: nvcc is not there')", LIMITS, "ended with 1: "),
    ],
)
def test_a_build_that_ends_badly(request_for: Request, tmp_path: Path, body: str, limits: Limits, words: str) -> None:
    change = described(request_for, small(tmp_path, body), requires=("setuptools==80.10.2",))
    text = refused(request_for, tmp_path / "cache", **change, patches=(), limits=limits)
    assert text.startswith("the build of x ")
    assert words in text
    assert "its output: " in text


def test_an_index_that_cannot_be_reached(request_for: Request, tmp_path: Path) -> None:
    change = described(request_for, small(tmp_path, ""), requires=("setuptools==80.10.2",))
    inherited = {**request_for.inherited, "PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "0"}
    inherited |= {"PIP_CONFIG_FILE": os.devnull}
    text = refused(request_for, tmp_path / "cache", **change, patches=(), inherited=inherited)
    assert text.startswith("pip cannot install what the build of x needs (setuptools==80.10.2): ")
    assert "its output: " in text
