# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A lock with hashes, made by the build host for what no lock could be shipped for.

The resolver is pip's, as the user configured it: its report of a dry run names every wheel and its SHA-256.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ansible_collections.sparkrig.serving.plugins.module_utils._runtime import (
    LockEntry,
    Target,
    normalized,
    parse_lock,
    platform_tags,
)
from ansible_collections.sparkrig.serving.plugins.module_utils._wheel_patch import parse_wheel_name

__all__ = ["LockError", "lock_id", "lock_text", "make_lock", "requirement_lines", "requirements_of"]

_TIMEOUT_S = 1800


class LockError(ValueError):
    """No lock can be made; the text says why."""


def requirement_lines(text: str) -> tuple[str, ...]:
    """The requirements in an input file: comments and empty lines are left out, options are refused."""
    lines = []
    for line in text.splitlines():
        line = line.split(" #", 1)[0].strip()
        if not line or line.startswith("#"):
            continue
        if line.startswith("-"):
            raise LockError(f"the lock's input has the option {line!r}, expected only requirements")
        lines.append(line)
    return tuple(lines)


def requirements_of(wheel: Path, left_out: Iterable[str]) -> tuple[str, ...]:
    """What a wheel that was built here asks for, without extras and without the distributions ``left_out``.

    What is built or left out on purpose is not for the resolver: a fork pins versions that its own builds replace.
    """
    skipped = {normalized(name) for name in left_out}
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if re.match(r"^[^/]+\.dist-info/METADATA$", name))
        head = archive.read(metadata).decode().split("\n\n", 1)[0]
    lines = []
    for line in head.splitlines():
        match = re.match(r"^Requires-Dist:\s*(?P<text>(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*).*)$", line)
        if match is None or re.search(r";.*\bextra\b", line) or normalized(match["name"]) in skipped:
            continue
        lines.append(match["text"].strip())
    return tuple(lines)


def lock_id(inputs: str, excludes: str, built: Iterable[str], target: Target) -> str:
    """Eight digits that name everything that a lock is made from."""
    content = [requirement_lines(inputs), requirement_lines(excludes), sorted(built), target.python, target.machine]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:8]


def lock_text(report: Any, left_out: Iterable[str]) -> str:
    """The lock that pip's report of an installation amounts to, without the distributions ``left_out``."""
    skipped = {normalized(name) for name in left_out}
    entries: dict[str, LockEntry] = {}
    for item in report["install"]:
        name, version = normalized(str(item["metadata"]["name"])), str(item["metadata"]["version"])
        if name in skipped:
            continue
        seen = str((item["download_info"].get("archive_info") or {}).get("hashes", {}).get("sha256", ""))
        if not re.match(r"^[0-9a-f]{64}$", seen):
            raise LockError(f"the index gives no SHA-256 for {name} {version}: it cannot be locked")
        entries[name] = LockEntry(name, version, (seen,))
    lines = [f"{item.name}=={item.version} --hash=sha256:{item.hashes[0]}\n" for _name, item in sorted(entries.items())]
    text = "".join(lines)
    parse_lock(text)
    return text


def make_lock(
    inputs: str,
    excludes: str,
    target: Target,
    built: Sequence[Path],
    pip_python: str,
    extra_index_urls: Sequence[str],
) -> str:
    """Resolve ``inputs`` and what the ``built`` wheels ask for, for ``target``; only wheels are taken."""
    with tempfile.TemporaryDirectory(prefix="sparkrig-lock-") as name:
        folder = Path(name)
        report, requirements = folder / "report.json", folder / "requirements.txt"
        left_out = [*requirement_lines(excludes), *(parse_wheel_name(path.name).name for path in built)]
        lines = [*requirement_lines(inputs), *(line for path in built for line in requirements_of(path, left_out))]
        requirements.write_text("".join(f"{line}\n" for line in lines))
        command = [pip_python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
        command += ["--dry-run", "--ignore-installed", "--only-binary=:all:", "--target", str(folder / "nowhere")]
        command += ["--python-version", target.python, "--implementation", "cp"]
        command += ["--abi", f"cp{target.python.replace('.', '')}", "--abi", "abi3", "--abi", "none"]
        for tag in platform_tags(target):
            command += ["--platform", tag]
        for url in extra_index_urls:
            command += ["--extra-index-url", url]
        command += ["--report", str(report), "--requirement", str(requirements)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired as exc:
            raise LockError(f"pip did not resolve the lock within {_TIMEOUT_S} s") from exc
        if done.returncode != 0:
            errors = [line.split("ERROR:", 1)[1].strip() for line in done.stderr.splitlines() if "ERROR:" in line]
            words = errors or done.stderr.strip().splitlines() or [f"pip ended with {done.returncode}"]
            shortened = re.sub(r"\(from versions: .*\)", "", " ".join(words[-2:]))
            raise LockError(f"pip cannot resolve the lock for Python {target.python} on {target.machine}: {shortened}")
        return lock_text(json.loads(report.read_text()), left_out)
