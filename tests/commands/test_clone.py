# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""README and pages as somebody reads them who has just cloned: typed from the top, in a lab beside every other one.

The commands and the changes are taken from the pages. Image, runtime and tools come from the cache.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import typing as t
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from docs.commands import CLONE_FAILS, PAGES, PROJECT, Change, Command, said_only, walk
from tests.bench.performance import PARTS, broken
from tests.commands.outcomes import FAILS, outcome_of
from tests.gates.artefact import bare_environment

LAB = "docs"
# Labs that the pages' own commands make, and take away.
MADE = ("mine", "bench")
# It makes its lab by itself, and fetches what it compares with where the cache does not have it yet.
WITH_NETWORK = ("make bench",)
TIMEOUT_S = 3600.0
# CONTRIBUTING promises it for the way from the clone to a changed and tested role.
INNER_LOOP_S = 600.0


@dataclass
class Clone:
    """A fresh clone, and a shell in it."""

    folder: Path
    cloned_s: float
    environment: dict[str, str]
    activated: str = ""
    seconds: dict[int, float] = field(default_factory=dict)

    def type(self, text: str, line: int = 0, more: Mapping[str, str] | None = None) -> tuple[int, str]:
        """The exit status of a command, and all it prints; what it sources holds for those that come after it."""
        beside = [] if text in WITH_NETWORK else [str(self.folder / "lab" / "beside.sh"), LAB]
        began = time.monotonic()
        process = subprocess.Popen(
            [*beside, "bash", "-c", self.activated + text],
            cwd=self.folder,
            env={**self.environment, **(more or {})},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            printed = process.communicate(timeout=TIMEOUT_S)[0]
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGTERM)
            printed = process.communicate()[0] + f"\nit was ended after {TIMEOUT_S:.0f} s"
        self.seconds[line] = time.monotonic() - began
        print(f"{self.seconds[line]:5.0f} s  exit {process.returncode}  {text}", flush=True)
        if text.startswith("source "):
            self.activated += f"{text} && "
        return process.returncode, printed


def shell_environment(folder: Path) -> dict[str, str]:
    """A user's own shell: what `make` and these tests have set is not in it."""
    tools = Path(sys.executable).parent.resolve()
    path = [each for each in os.environ["PATH"].split(":") if Path(each).resolve() != tools]
    return {**bare_environment(folder), "PATH": ":".join(path)}


def lab_exists(name: str) -> bool:
    """Whether somebody has a lab of this name."""
    return Path("/run/netns", f"sparkrig-{name}").exists()


@pytest.fixture
def clone(tmp_path: Path) -> Iterator[Clone]:
    """A clone, and no lab before and after."""
    there = [name for name in (LAB, *MADE) if lab_exists(name)]
    assert there == [], f"somebody uses these labs: {there}; lab/beside.sh NAME python -m lab.nodes down"
    began = time.monotonic()
    folder = tmp_path / "serving"
    subprocess.run(["git", "clone", "--quiet", str(PROJECT), str(folder)], check=True)
    one = Clone(folder, time.monotonic() - began, shell_environment(folder))
    try:
        yield one
    finally:
        for name in (LAB, *MADE):
            if lab_exists(name):
                down = [str(PROJECT / "lab" / "beside.sh"), name, sys.executable, "-m", "lab.nodes", "down"]
                subprocess.run(down, cwd=PROJECT, check=True)
        shutil.rmtree(folder)


def bench_status(clone: Clone) -> int:
    """What `make bench` has to end with: 1 when a figure is not what it has to be, which is for the page to say."""
    documents: dict[str, dict[str, t.Any]] = {}
    for part in PARTS:
        path = clone.folder / "build" / "bench" / f"{part}.json"
        # One that could not be measured is no figure: then nothing is what it has to end with.
        if not path.is_file():
            return -1
        documents[part] = json.loads(path.read_text(encoding="utf-8"))
    sentences = broken(documents, list(PARTS))
    print("\n".join(sentences))
    return min(len(sentences), 1)


def check(clone: Clone, command: Command) -> None:
    """Type the command of a page; it has to do what the page says."""
    status, printed = clone.type(command.text, command.line)
    wanted = 0
    if command.mark == CLONE_FAILS:
        wanted, pattern = 1, FAILS
    else:
        pattern = outcome_of(command.text)
    if command.text == "make bench":
        wanted = bench_status(clone)
    if command.text.startswith("make "):
        # make's own status for a recipe that failed.
        wanted *= 2
    assert status == wanted, f"{command.page.name}:{command.line}: {command.text}\n{printed}"
    assert re.search(pattern, printed, re.M), f"{command.page.name}:{command.line}: {command.text}\n{printed}"


TYPED = {page: walk(page) for page in PAGES if any(isinstance(step, Command) for step in walk(page))}


@pytest.mark.parametrize("page", TYPED, ids=lambda page: str(page.relative_to(PROJECT)))
def test_a_page_is_true(page: Path, clone: Clone) -> None:
    for step in TYPED[page]:
        if isinstance(step, Change):
            applied = subprocess.run(
                ["git", "apply", "-"], input=step.text, cwd=clone.folder, capture_output=True, text=True, check=False
            )
            assert applied.returncode == 0, f"{page.name}:{step.line}: {applied.stderr}"
        else:
            check(clone, step)
    if any(isinstance(step, Change) for step in TYPED[page]):
        # From the clone over the nodes to a role that is changed and tested: all from the first change on.
        first = next(step.line for step in TYPED[page] if isinstance(step, Change))
        steps = [step for step in TYPED[page] if isinstance(step, Command)]
        way = [step for step in steps if step.line > first or step.text.startswith(("make up", "source "))]
        seconds = clone.cloned_s + sum(clone.seconds[step.line] for step in way)
        print(f"{seconds:5.0f} s  from the clone to a changed and tested role")
        assert seconds < INNER_LOOP_S


def test_what_only_sentences_name(clone: Clone, tmp_path: Path) -> None:
    """`make clean` gets a cache of its own, and a podman that has no image: others use the real ones."""
    cache = tmp_path / "cache"
    tools = Path(sys.executable).parent.parent.resolve()
    (cache / "venv").mkdir(parents=True)
    (cache / "venv" / tools.name).symlink_to(tools)
    (tmp_path / "bin").mkdir()
    podman = tmp_path / "bin" / "podman"
    podman.write_text("#!/bin/sh\nexit 0\n", encoding="utf-8")
    podman.chmod(0o755)
    own = {"SPARKRIG_CACHE": str(cache), "PATH": f"{podman.parent}:{clone.environment['PATH']}"}
    for target in said_only():
        status, printed = clone.type(f"make {target}", more=own if target == "clean" else None)
        assert status == 0, printed
        assert re.search(outcome_of(f"make {target}"), printed, re.M), printed
    assert not cache.exists()
    assert (tools / "bin" / "ansible-playbook").exists()
    # There was nothing to fold: the changelog is what was committed.
    look = ["git", "status", "--short", "changelogs", "CHANGELOG.rst"]
    assert subprocess.run(look, cwd=clone.folder, check=True, capture_output=True).stdout == b""
