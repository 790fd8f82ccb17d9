# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The commands in README, pages and roles, and who runs them.

Each block of commands has a mark before it, a comment that no reader sees:

- ``<!-- run: unit -->``: ``tests/unit/test_docs.py`` runs it, in a copy of the checkout
- ``<!-- run: NAME -->``: the molecule scenario NAME runs it, on nodes that serve
- ``<!-- run: clone -->``: ``make commands`` types it in a fresh clone with a lab of its own, because it makes nodes or
  takes them away; page by page, with the changes of the page's ``diff`` blocks where they stand
- ``<!-- fails: clone -->``: the same, and it has to fail there
- ``<!-- needs: sparks -->``: only the owner of Sparks can

A sentence may name a make target as well: that one is reached by another that is run, is a test by itself, or
``make commands`` types it.

``python -m docs.commands`` shows those of the last kind, and how many somebody runs.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
PAGES = [PROJECT / "README.md", PROJECT / "CONTRIBUTING.md", *sorted((PROJECT / "docs").glob("*.md"))]
PAGES += sorted((PROJECT / "roles").glob("*/README.md"))
UNIT = "run: unit"
CLONE = "run: clone"
CLONE_FAILS = "fails: clone"
SPARKS = "needs: sparks"
BLOCK = re.compile(
    r"^(?: *<!-- (?P<mark>[^\n]*?) -->\n+)? *```(?P<language>sh|diff)\n(?P<body>.*?)^ *```$", re.M | re.S
)


@dataclass(frozen=True)
class Command:
    """One command of a page, on one line and without its comment, with the mark of its block."""

    page: Path
    line: int
    mark: str
    text: str

    @property
    def words(self) -> list[str]:
        """The command as the shell splits it."""
        return shlex.split(self.text)

    @property
    def playbook(self) -> str:
        """The name of the playbook that is run; empty for another command."""
        if self.words[0] != "ansible-playbook":
            return ""
        return self.words[1].removeprefix("sparkrig.serving.").removesuffix(".yml")


@dataclass(frozen=True)
class Change:
    """What a page tells its reader to change, as ``git apply`` takes it."""

    page: Path
    line: int
    text: str


def steps(page: Path) -> list[Command | Change]:
    """Everything that the page tells its reader to do, in its order; continued lines are joined."""
    text = page.read_text(encoding="utf-8")
    found: list[Command | Change] = []
    for block in BLOCK.finditer(text):
        line = text.count("\n", 0, block.start("body")) + 1
        if block["language"] == "diff":
            found.append(Change(page, line, block["body"]))
            continue
        started, words = line, ""
        for number, part in enumerate(block["body"].splitlines(), line):
            started = started if words else number
            words += re.split(r"(?:^|\s)#\s", part)[0].strip()
            if words.endswith("\\"):
                words = words[:-1].rstrip() + " "
            elif words:
                found.append(Command(page, started, block["mark"] or "", words))
                words = ""
    return found


def commands(page: Path) -> list[Command]:
    """Every command in the page's ``sh`` blocks."""
    return [step for step in steps(page) if isinstance(step, Command)]


def marked(mark: str) -> list[Command]:
    """The commands of all pages with this mark, each text once."""
    first: dict[str, Command] = {}
    for page in PAGES:
        for command in commands(page):
            if command.mark == mark:
                first.setdefault(command.text, command)
    return list(first.values())


def of_ci() -> str:
    """The command that continuous integration types, in a clone that it has just made."""
    last = (PROJECT / ".ci" / "run").read_text(encoding="utf-8").splitlines()[-1]
    return last.removeprefix("exec ")


def make_rules() -> dict[str, str]:
    """What the Makefile needs and does for each of its targets."""
    text = (PROJECT / "Makefile").read_text(encoding="utf-8")
    return dict(re.findall(r"^([a-z-]+):(.*\n(?:\t.*\n)*)", text, re.M))


def make_reaches(targets: Iterable[str]) -> set[str]:
    """These targets, and all that are made for them."""
    rules, reached, waiting = make_rules(), set[str](), set(targets)
    while waiting:
        target = waiting.pop()
        reached.add(target)
        needed, _newline, recipe = rules[target].partition("\n")
        words = needed.partition("##")[0] + " ".join(re.findall(r"\$\(MAKE\)(.*)", recipe))
        waiting |= (set(words.split()) & set(rules)) - reached
    return reached


def said_only() -> list[str]:
    """The make targets that sentences name, that no other command reaches, and that run no tests themselves."""
    rules = make_rules()
    said = {name for page in PAGES for name in re.findall("`make ([a-z-]+)", page.read_text(encoding="utf-8"))}
    typed = [step.text for page in PAGES for step in walk(page) if isinstance(step, Command)]
    reached = make_reaches(text.split()[1] for text in [of_ci(), *typed] if text.startswith("make "))
    runs_tests = {name for name, recipe in rules.items() if re.search(r"pytest|MOLECULE|-m tests\.", recipe)}
    tests = {name for name in said if make_reaches([name]) & runs_tests}
    return sorted(said - reached - tests)


def walk(page: Path) -> list[Command | Change]:
    """What of the page is typed in a fresh clone, in its order; CI types its own command."""
    return [
        step
        for step in steps(page)
        if isinstance(step, Change) or (step.mark in (CLONE, CLONE_FAILS) and step.text != of_ci())
    ]


def make_workplace(folder: Path) -> None:
    """A copy of the checkout without its tests, so that what a command writes is not written into the checkout.

    Another run may write in the checkout or take away what is there: only what git does not ignore is copied, and what
    is gone by then, as the plots that `make bench` draws anew, is left out.
    """
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(listing, cwd=PROJECT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, listed.split("\0")):
        if not name.startswith((".", "molecule/", "tests/")):
            copy = folder / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):
                shutil.copy2(PROJECT / name, copy)
    link = folder / ".collections" / "ansible_collections" / "sparkrig" / "serving"
    link.parent.mkdir(parents=True)
    link.symlink_to(folder)


def execute(command: Command, workplace: Path, **values: str) -> subprocess.CompletedProcess[str]:
    """Run *command* in a copy of the checkout, each word of *values* in it replaced by its value."""
    words = command.words
    for word, value in {"/mnt/disk": str(workplace / "disk"), **values}.items():
        words = [part.replace(word, value) for part in words]
    bin_folder = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{bin_folder}:{os.environ['PATH']}", "PWD": str(workplace)}
    environment |= {"ANSIBLE_CONFIG": str(workplace / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}
    environment["ANSIBLE_COLLECTIONS_PATH"] = str(workplace / ".collections")
    if words[0] == "ansible-galaxy":
        # As on a machine without a checkout: what is linked there would be installed over.
        environment["ANSIBLE_COLLECTIONS_PATH"] = str(workplace / "installed")
    return subprocess.run(
        words,
        cwd=workplace,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def main() -> None:
    """Show what no test runs as it stands, and who runs the rest."""
    print("\nwhat Sparks are needed for; parsed, and the same playbooks run on the lab:")
    for command in marked(SPARKS):
        print(f"  {command.page.relative_to(PROJECT)}:{command.line}: {command.text}")
    run = Counter(command.mark for page in PAGES for command in commands(page) if command.mark != SPARKS)
    print("what is run: " + ", ".join(f"{count} as '{mark}'" for mark, count in sorted(run.items())))


if __name__ == "__main__":
    main()
