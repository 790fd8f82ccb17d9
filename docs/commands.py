# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The commands in README, pages and roles, and who runs them.

Each block of commands has a mark before it, a comment that no reader sees:

- ``<!-- run: unit -->``: ``tests/unit/test_docs.py`` runs it, in a copy of the checkout
- ``<!-- run: NAME -->``: the molecule scenario NAME runs it, on nodes that serve
- ``<!-- needs: a lab of its own -->``: it makes the nodes or takes them away, so no test on them can run it
- ``<!-- needs: sparks -->``: only the owner of Sparks can

``python -m docs.commands`` shows the commands of the last two kinds.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
PAGES = [PROJECT / "README.md", PROJECT / "CONTRIBUTING.md", *sorted((PROJECT / "docs").glob("*.md"))]
PAGES += sorted((PROJECT / "roles").glob("*/README.md"))
UNIT = "run: unit"
OWN_LAB = "needs: a lab of its own"
SPARKS = "needs: sparks"
BLOCK = re.compile(r"^(?: *<!-- (?P<mark>[^\n]*?) -->\n+)? *```sh\n(?P<body>.*?)^ *```$", re.M | re.S)


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


def commands(page: Path) -> list[Command]:
    """Every command in the page's ``sh`` blocks, continued lines joined."""
    text = page.read_text(encoding="utf-8")
    found = []
    for block in BLOCK.finditer(text):
        line = text.count("\n", 0, block.start("body")) + 1
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


def marked(mark: str) -> list[Command]:
    """The commands of all pages with this mark, each text once."""
    first: dict[str, Command] = {}
    for page in PAGES:
        for command in commands(page):
            if command.mark == mark:
                first.setdefault(command.text, command)
    return list(first.values())


def make_workplace(folder: Path) -> None:
    """A copy of the checkout without its tests, so that what a command writes is not written into the checkout."""
    shutil.copytree(PROJECT, folder, ignore=shutil.ignore_patterns(".*", "__pycache__", "build", "molecule", "tests"))
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
    """Show what no test runs as it stands."""
    for mark, instead in (
        (SPARKS, "what Sparks are needed for; parsed, and the same playbooks run on the lab"),
        (OWN_LAB, "what makes or removes the lab; its parts are what `make test` is made of"),
    ):
        print(f"\n{instead}:")
        for command in marked(mark):
            print(f"  {command.page.relative_to(PROJECT)}:{command.line}: {command.text}")


if __name__ == "__main__":
    main()
