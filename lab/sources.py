# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""vLLM's own sources for the tests: the index's source archives, and git repositories made from them.

A repository made from the same archive has the same commit everywhere, so that a description can pin it and what
is built from it is found again.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from lab.common import LabError, cache_dir

VERSIONS = ("0.32.0", "0.33.0")
# What vLLM's setup.py imports before it can even name itself, beside torch.
_TOOLS = ("setuptools==80.9.0", "setuptools-scm==9.2.2", "setuptools-rust==1.12.0", "packaging", "wheel")
_DATE = "2026-01-01T00:00:00Z"


@dataclass(frozen=True)
class Repository:
    """A git repository on this machine and its only commit."""

    url: str
    commit: str


def _folder() -> Path:
    path = cache_dir() / "sources"
    path.mkdir(exist_ok=True)
    return path


def _run(argv: list[str], cwd: Path | None = None, **variables: str) -> str:
    result = subprocess.run(argv, cwd=cwd, env={**os.environ, **variables}, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        words = (result.stderr or result.stdout).strip().splitlines()
        raise LabError(f"'{' '.join(argv)}' failed (exit {result.returncode}): {' | '.join(words[-3:])}")
    return result.stdout.strip()


def sdist(version: str, torch: Path) -> Path:
    """The source archive of vLLM *version*, from the package index once; *torch* is a folder that has PyTorch."""
    folder = _folder()
    archive = folder / f"vllm-{version}.tar.gz"
    if archive.is_file():
        return archive
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    tools = folder / "tools"
    if not tools.is_dir():
        with tempfile.TemporaryDirectory(dir=folder) as name:
            _run([*pip, "install", "--target", name + "/tools", *_TOOLS])
            Path(name, "tools").rename(tools)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        # Even to download it, pip asks it for its metadata.
        argv = [*pip, "download", "--no-deps", "--no-binary=vllm", "--no-build-isolation", "--dest", name]
        path = f"{tools}:{torch}"
        _run([*argv, f"vllm=={version}"], PYTHONPATH=path, VLLM_TARGET_DEVICE="empty", VLLM_VERSION_OVERRIDE=version)
        Path(name, archive.name).rename(archive)
    return archive


def python_sources(version: str, torch: Path) -> Path:
    """A folder with the package of vLLM *version* as it was written, nothing of it compiled."""
    folder = _folder() / f"vllm-{version}"
    if not folder.is_dir():
        archive = sdist(version, torch)
        with tempfile.TemporaryDirectory(dir=_folder()) as name:
            with tarfile.open(archive) as tar:
                inside = [member for member in tar if member.name.startswith(f"vllm-{version}/vllm/")]
                tar.extractall(name, [member for member in inside if member.name.endswith(".py")], filter="data")
            # Another run may have been faster.
            with contextlib.suppress(OSError):
                Path(name, f"vllm-{version}").rename(folder)
    return folder


def repository(version: str, torch: Path) -> Repository:
    """A bare repository whose one commit is the source archive of vLLM *version*."""
    bare = _folder() / f"vllm-{version}.git"
    if not bare.is_dir():
        archive = sdist(version, torch)
        with tempfile.TemporaryDirectory(dir=_folder()) as name:
            with tarfile.open(archive) as tar:
                tar.extractall(name, filter="data")
            tree = Path(name, f"vllm-{version}")
            # What only a source archive has.
            shutil.rmtree(tree / "vllm.egg-info", ignore_errors=True)
            for extra in ("PKG-INFO", "setup.cfg"):
                (tree / extra).unlink(missing_ok=True)
            person = {"GIT_AUTHOR_NAME": "lab", "GIT_AUTHOR_EMAIL": "lab@localhost", "GIT_AUTHOR_DATE": _DATE}
            person |= {"GIT_COMMITTER_NAME": "lab", "GIT_COMMITTER_EMAIL": "lab@localhost", "GIT_COMMITTER_DATE": _DATE}
            git = ["git", "-c", "init.defaultBranch=main", "-c", "core.autocrlf=false", "-c", "core.fileMode=true"]
            _run([*git, "init", "--quiet"], tree)
            _run([*git, "add", "--all", "--force", "."], tree)
            _run([*git, "commit", "--quiet", "--no-gpg-sign", "--message", f"vLLM {version}"], tree, **person)
            _run([*git, "clone", "--quiet", "--bare", str(tree), f"{name}/bare"])
            Path(name, "bare").rename(bare)
    return Repository(f"file://{bare}", _run(["git", "rev-parse", "HEAD"], bare))
