# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A lock that the build host makes, from pip's own report."""

from __future__ import annotations

import sys
import typing as t
from pathlib import Path

import pytest

from ansible_collections.sparkrig.serving.plugins.module_utils._runtime import Target, parse_lock
from ansible_collections.sparkrig.serving.plugins.module_utils._runtime_lock import (
    LockError,
    lock_id,
    lock_text,
    make_lock,
    requirement_lines,
)
from tests.fixtures.wheels import make_wheel

TARGET = Target("3.12", "aarch64", "2.39")


def item(name: str, version: str, sha256: str | None) -> dict[str, t.Any]:
    info = {"hashes": {"sha256": sha256}} if sha256 else {}
    return {"metadata": {"name": name, "version": version}, "download_info": {"url": "u", "archive_info": info}}


def test_a_report_becomes_a_lock() -> None:
    report = {"install": [item("Torch_X", "2.0+cu130", "b" * 64), item("a", "1", "a" * 64), item("vllm", "1", None)]}
    text = lock_text(report, ["vllm"])
    assert text == f"a==1 --hash=sha256:{'a' * 64}\ntorch-x==2.0+cu130 --hash=sha256:{'b' * 64}\n"
    assert [entry.name for entry in parse_lock(text)] == ["a", "torch-x"]
    with pytest.raises(LockError, match="the index gives no SHA-256 for vllm 1: it cannot be locked"):
        lock_text(report, [])


def test_only_requirements_are_taken_from_an_input() -> None:
    assert requirement_lines("# head\n\nray==2.60.0  # base\ntorch\n") == ("ray==2.60.0", "torch")
    with pytest.raises(LockError, match="has the option '--index-url x', expected only requirements"):
        requirement_lines("--index-url x\n")


def test_the_name_of_a_lock_changes_with_what_it_is_made_from() -> None:
    first = lock_id("a\n", "", ["vllm 1"], TARGET)
    assert first == lock_id("# comment\na\n", "", ["vllm 1"], TARGET)
    others = [lock_id("b\n", "", ["vllm 1"], TARGET), lock_id("a\n", "b", ["vllm 1"], TARGET)]
    others += [lock_id("a\n", "", ["vllm 2"], TARGET), lock_id("a\n", "", [], Target("3.11", "aarch64", "2.39"))]
    assert first not in others


@pytest.mark.slow
def test_pip_resolves_for_another_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_wheel(tmp_path / "index", "a", "1.0", {"a.py": b""})
    make_wheel(tmp_path / "index", "b", "2.0", {"b.py": b""}, tags="cp312-cp312-manylinux_2_28_aarch64")
    make_wheel(tmp_path / "index", "b", "3.0", {"b.py": b""}, tags="cp312-cp312-manylinux_2_28_x86_64")
    requires = ["b>=2", "flash==9.9", "x ; extra == 'bench'", "dropped", "c ; python_version < '3.0'"]
    built = [make_wheel(tmp_path / "built", "vllm", "1.0", {"vllm.py": b""}, requires=requires)]
    built.append(make_wheel(tmp_path / "built", "flash", "1.0", {"flash.py": b""}))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    text = make_lock("a\n", "dropped\n", TARGET, built, sys.executable, ())
    assert [(entry.name, entry.version) for entry in parse_lock(text)] == [("a", "1.0"), ("b", "2.0")]
    with pytest.raises(LockError, match="cannot resolve the lock for Python 3.12 on aarch64: .*c"):
        make_lock("c\n", "", TARGET, [], sys.executable, ())
