# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What has to be gone before a launch."""

from __future__ import annotations

import subprocess
import sys
import typing as t
from pathlib import Path

import pytest

from ansible_collections.sparkrig.serving.plugins.module_utils._launch_ground import (
    end_processes,
    mapped_shared_memory,
    process_titles,
    stale_shared_memory,
)


def test_what_was_left_behind_is_ended() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])

    def find() -> list[str]:
        return [] if child.poll() is not None else [f"{child.pid} python"]

    assert end_processes(find) == [f"{child.pid} python"]
    assert child.wait() < 0


def test_what_cannot_be_ended_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[t.Any] = []
    monkeypatch.setattr("os.kill", lambda pid, number: sent.append((pid, number.name)))
    with pytest.raises(ValueError, match=r"1 process\(es\) of an earlier start cannot be ended: 7 stuck"):
        end_processes(lambda: ["7 stuck"], patience_s=0.0)
    assert sent == [(7, "SIGTERM"), (7, "SIGKILL")]


def test_shared_memory_that_somebody_has_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "psm_old").write_text("x")
    (tmp_path / "psm_used").write_text("x")
    (tmp_path / "of-somebody-else").write_text("x")
    with (tmp_path / "psm_used").open():
        assert stale_shared_memory(str(tmp_path)) == [str(tmp_path / "psm_old")]
    assert stale_shared_memory(str(tmp_path / "none")) == []
    maps = "7f00-7f01 rw-s 00000000 00:19 42    /dev/shm/psm_a\n7f02-7f03 r-xp 0 00:01 1 /usr/lib/x.so\n"
    assert mapped_shared_memory([maps]) == {"/dev/shm/psm_a"}


def test_a_process_is_called_as_it_calls_itself(tmp_path: Path) -> None:
    for entry, text in {
        "7": b"ray::RayWorkerProc_TP2\0\0",
        "8": b"",
        "9": b"/usr/bin/python3\0-c\0pass\0",
        "sys": None,
    }.items():
        (tmp_path / entry).mkdir()
        if text is not None:
            (tmp_path / entry / "cmdline").write_bytes(text)
    assert sorted(process_titles(str(tmp_path))) == ["/usr/bin/python3 -c pass", "ray::RayWorkerProc_TP2"]
