# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The real wheels and sources that the package index has, and the lab's own vLLM to run what is patched."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile
import typing as t
from dataclasses import dataclass
from pathlib import Path

import pytest

from ansible_collections.sparkrig.serving.plugins.module_utils._wheel_patch import Patch, apply_series
from lab.build import oracle_python
from lab.common import cache_dir
from lab.sources import sdist
from tests.fixtures.wheels import ROLE

PROBES = Path(__file__).parent / "probes"
SERIES = ROLE / "files" / "patches"


def series(name: str) -> list[Patch]:
    """The patches of a series of the role, in their order."""
    return [Patch(path.name, path.read_bytes()) for path in sorted((SERIES / name).glob("*.patch"))]


@dataclass(frozen=True)
class Overlay:
    """A folder with one vLLM package that is found before the one of the lab's runtime."""

    folder: Path
    python: Path

    def probe(self, name: str, **variables: str) -> tuple[t.Any, str]:
        """What the probe *name* saw, and everything else that it printed."""
        environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("VLLM_", "PYTHON"))},
            "PYTHONPATH": str(self.folder),
            "TORCHDYNAMO_DISABLE": "1",
            "VLLM_TARGET_DEVICE": "cpu",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_HOST_IP": "127.0.0.1",
            "GLOO_SOCKET_IFNAME": "lo",
            **variables,
        }
        done = subprocess.run(
            [str(self.python), str(PROBES / f"{name}.py")],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=180,
            check=False,
        )
        lines = [line[6:] for line in done.stdout.splitlines() if line.startswith("PROBE ")]
        assert done.returncode == 0, done.stdout[-3000:]
        assert len(lines) == 1, done.stdout[-3000:]
        return json.loads(lines[0]), done.stdout

    def patch(self, patches: t.Sequence[Patch]) -> None:
        """Apply a series in place."""
        result = apply_series(lambda path: (self.folder / path).read_bytes(), patches)
        for path, data in result.contents.items():
            assert data is not None
            target = self.folder / path
            # The file is linked to the runtime's own, and so is its byte code, which is never checked against it.
            target.unlink()
            target.write_bytes(data)
            for stale in (target.parent / "__pycache__").glob(f"{target.stem}.*"):
                stale.unlink()


@pytest.fixture(scope="session")
def runtime_packages() -> Path:
    """The packages of the lab's runtime on this machine."""
    (packages,) = oracle_python().parents[1].glob("lib/python3.*/site-packages")
    return packages


@pytest.fixture(scope="session")
def sources(runtime_packages: Path, tmp_path_factory: pytest.TempPathFactory) -> t.Callable[[str], Path]:
    """The unpacked source archive of a version."""
    there: dict[str, Path] = {}

    def unpack(version: str) -> Path:
        if version not in there:
            folder = tmp_path_factory.mktemp("sources")
            with tarfile.open(sdist(version, runtime_packages)) as tar:
                members = (item for item in tar if item.name.startswith(f"vllm-{version}/vllm/"))
                tar.extractall(folder, members, filter="data")
            there[version] = folder / f"vllm-{version}"
        return there[version]

    return unpack


@pytest.fixture
def lab_vllm(runtime_packages: Path) -> t.Iterator[Overlay]:
    """The lab's own vLLM, linked to a place where it can be patched (links need the same file system)."""
    folder = cache_dir() / "oracle" / f".overlay-{os.getpid()}"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(runtime_packages / "vllm", folder / "vllm", copy_function=os.link)
    for path, _folders, _files in os.walk(folder):
        os.chmod(path, 0o755)
    yield Overlay(folder, oracle_python())
    shutil.rmtree(folder)
