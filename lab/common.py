# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What every script of the lab shares: where the cache is, and how to run a command as root."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


class LabError(Exception):
    """A sentence for the person in front of the screen: what failed, and what to do."""


def cache_dir() -> Path:
    """The one folder that holds everything that is slow to make.

    ``SPARKRIG_CACHE`` if it is set, else ``~/.cache/sparkrig``.
    """
    configured = os.environ.get("SPARKRIG_CACHE")
    path = Path(configured) if configured else Path.home() / ".cache" / "sparkrig"
    path.mkdir(parents=True, exist_ok=True)
    return path


def lab_name() -> str:
    """The name of a lab beside the first one (``lab/beside.sh``), else an empty string."""
    return os.environ.get("SPARKRIG_LAB", "")


def state_dir() -> Path:
    """Where the running lab keeps its SSH key and its known hosts."""
    path = cache_dir() / ("lab" + lab_name())
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def as_root(argv: Sequence[str]) -> list[str]:
    """*argv* as root: unchanged for root, through ``sudo -n`` for anybody else."""
    if os.geteuid() == 0:
        return list(argv)
    if shutil.which("sudo") is None:
        raise LabError(f"'{argv[0]}' needs root: run make as root, or install sudo and allow it to this user.")
    return ["sudo", "-n", *argv]


def run(argv: Sequence[str], *, stdin: bytes | None = None, check: bool = True) -> subprocess.CompletedProcess[bytes]:
    """Run *argv* as root and keep its output.

    Raises :class:`LabError` with the command and its own last words when *check* is set and it fails.
    """
    result = subprocess.run(as_root(argv), input=stdin, capture_output=True, check=False)
    if check and result.returncode != 0:
        words = (result.stderr or result.stdout).decode(errors="replace").strip().splitlines()
        raise LabError(f"'{' '.join(argv)}' failed (exit {result.returncode}): {' | '.join(words[-3:]) or 'no output'}")
    return result


def say(sentence: str) -> None:
    """One line for the person who waits."""
    print(f"lab: {sentence}", flush=True)


def main_guard(main: object) -> None:
    """Call *main* and turn a :class:`LabError` into one line and exit code 1."""
    if not callable(main):
        raise TypeError(f"{main!r} is no function")
    try:
        main()
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        raise SystemExit(1) from None
