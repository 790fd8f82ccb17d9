# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How long headers and hashes take, and how a copy around four nodes compares with one copy."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import threading
import time
import typing as t
from pathlib import Path

import pytest

from ansible_collections.sparkrig.serving.plugins.module_utils._checkpoint import Layout, survey_folder
from ansible_collections.sparkrig.serving.plugins.module_utils._manifest import hash_files
from ansible_collections.sparkrig.serving.plugins.module_utils._spread_peer import Peer
from tests.fixtures import glm52

FILES = 8
FILE_BYTES = 64 * 2**20
PORT = 26499
CORES = len(os.sched_getaffinity(0))
Record = t.Callable[[str, object], None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half a gigabyte in eight files, in the page cache: what is measured is the hashing."""
    path = tmp_path_factory.mktemp("data")
    for number in range(FILES):
        (path / f"{number}.safetensors").write_bytes(os.urandom(FILE_BYTES))
    return path


def quickest(*functions: t.Callable[[], t.Any], rounds: int = 5) -> list[float]:
    """The best time of each, in turns: whatever else the machine does then meets all of them."""
    seconds: list[list[float]] = [[] for _function in functions]
    for _round in range(rounds):
        for function, times in zip(functions, seconds, strict=True):
            started = time.perf_counter()
            function()
            times.append(time.perf_counter() - started)
    return [min(times) for times in seconds]


def test_headers_of_235400_tensors(tmp_path: Path, record_property: Record) -> None:
    """What checkpoint_info does with GLM-5.2 at full size, base and MTP layer, in processor time."""
    glm52.write_base(tmp_path / "base")
    glm52.write_overlay(tmp_path / "nvfp4", glm52.nvfp4)
    whole = tmp_path / "whole"
    glm52.write_whole(tmp_path / "base", tmp_path / "nvfp4", whole)
    started = time.process_time()
    report = survey_folder(str(whole), Layout(tensor_parallel_size=4))
    seconds = time.process_time() - started
    for name, value in (("tensors", report.tensors), ("files", len(report.files)), ("headers_s", seconds)):
        record_property(name, value)
    assert report.tensors == 235_400


def test_hashing_beside_sha256sum(folder: Path, record_property: Record) -> None:
    """`sha256sum` over the same files, one process for each of the same cores."""
    names = sorted(path.name for path in folder.iterdir())
    command = f"printf '%s\\0' * | xargs -0 -n 1 -P {CORES} sha256sum"
    ours, theirs = quickest(
        lambda: hash_files(str(folder), names, CORES),
        lambda: subprocess.run(["sh", "-c", command], cwd=folder, check=True, stdout=subprocess.DEVNULL),
    )
    record_property("hashing_mb_per_s", FILES * FILE_BYTES / 1e6 / ours)
    record_property("sha256sum_mb_per_s", FILES * FILE_BYTES / 1e6 / theirs)


def copy(folder: Path, root: Path, count: int) -> float:
    """Seconds until *count* further nodes, folders of this machine, have all files."""
    files = {
        path.name: {"size_bytes": FILE_BYTES, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in folder.iterdir()
    }
    paths = [folder, *(root / f"n{number}" for number in range(1, count + 1))]
    threads = []
    for number, path in enumerate(paths):
        job = {
            "name": f"n{number}",
            "key": "k",
            "port": PORT,
            "listen": [f"127.0.{number}.1"],
            "before": {"name": f"n{number - 1}", "addresses": [f"127.0.{number - 1}.1"]} if number else None,
            "after": f"n{number + 1}" if number < count else None,
            "streams": 4,
            "idle_timeout_s": 60,
            "folders": [{"path": str(path), "files": files, "need": sorted(files) if number else []}],
        }
        threads.append(threading.Thread(target=Peer(job).run, args=(lambda status: None,)))
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - started
    assert all((path / name).stat().st_size == FILE_BYTES for path in paths for name in files)
    return seconds


def test_three_copies_on_one_machine(folder: Path, tmp_path: Path, record_property: Record) -> None:
    """Without links between the nodes three copies are three times the work of the same processor.

    Molecule scenario `checkpoint` shows what holds between machines, where the link is what a copy waits for.
    """
    for count in (1, 3):
        seconds = copy(folder, tmp_path / str(count), count)
        shutil.rmtree(tmp_path / str(count))
        record_property(f"spread_to_{count}_mb_per_s", count * FILES * FILE_BYTES / 1e6 / seconds)
