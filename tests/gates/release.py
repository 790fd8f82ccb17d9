# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``make release-check``: the artefact alone takes the lab to a served model.

Every fragment has to be in the changelog. The collection is built, installed into a folder that is empty, and run from
there with a copy of the lab's inventory, an ``ansible.cfg`` of two lines and an environment that names nothing of the
checkout: ``site``, ``verify``, and ``site`` again, which has nothing to change.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import typing as t
from pathlib import Path

from lab.build import Job, playbook
from lab.common import LabError, cache_dir, main_guard, say
from lab.nodes import INVENTORY
from lab.play import Outcome, parse_recap
from lab.play import play as play_here
from tests.gates.artefact import BIN, PROJECT, bare_environment, install

REACH = "reach.py"
CONFIGURATION = "[defaults]\ncollections_path = {installed}\n"


def check_changelog() -> None:
    """Raises :class:`LabError` while a change is told in a fragment only, which a reader of the artefact never sees."""
    left = sorted(path.name for path in (PROJECT / "changelogs" / "fragments").glob("*.y*ml"))
    if left:
        raise LabError(f"CHANGELOG.rst lacks what {', '.join(left)} in changelogs/fragments say; run `make changelog`.")


def make_place(place: Path, installed: Path) -> None:
    """A folder as somebody has it who only installed the collection: an inventory and a configuration."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    inventory = place / "inventory"
    shutil.copytree(INVENTORY, inventory, ignore=shutil.ignore_patterns(REACH))
    # How its nodes are reached is the lab's to say, from where it lies.
    (inventory / REACH).symlink_to(INVENTORY / REACH)
    (place / "ansible.cfg").write_text(CONFIGURATION.format(installed=installed), encoding="utf-8")


def play(place: Path, name: str, *options: str) -> Outcome:
    """Run a playbook of the installed collection; raises :class:`LabError` with its last words when it fails."""
    process = subprocess.Popen(
        [str(BIN / "ansible-playbook"), "-i", "inventory", f"sparkrig.serving.{name}", *options],
        cwd=place,
        env=bare_environment(place),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    lines = []
    for line in t.cast("t.IO[str]", process.stdout):
        lines.append(line)
        if line.startswith("TASK ["):
            say(f"{name}: {line.strip().rstrip('* ')}")
    outcome = Outcome(process.wait(), "".join(lines), parse_recap("".join(lines)))
    if outcome.code != 0:
        last = "".join(lines[-25:])
        raise LabError(f"{name} of the installed collection failed (exit {outcome.code}):\n{last}")
    # The tools may stand in the checkout, under .venv; the collection's own files may not.
    named = [folder for folder in ("lab", "playbooks", "plugins", "roles") if str(PROJECT / folder) in outcome.text]
    if named:
        raise LabError(f"{name} of the installed collection names {named} of {PROJECT}:\n{outcome.text}")
    return outcome


def main() -> None:
    """The whole check; the lab is left serving."""
    folder = cache_dir() / "release"
    folder.mkdir(exist_ok=True)
    check_changelog()
    artefact, collection = install(folder)
    say(f"{artefact.name} is installed; it holds what a user needs and nothing else")
    place = folder / "place"
    make_place(place, collection.parents[2])
    play(place, "site", "--syntax-check")
    # What an owner of Sparks has: nodes, and checkpoints on them. The runtime is for the installed collection to build.
    Job("nodes", [sys.executable, "-m", "lab.nodes", "up"]).wait()
    Job("checkpoints", playbook(str(PROJECT / "molecule" / "default" / "prepare.yml"))).wait()
    first = play(place, "site")
    say(f"site served the model: {first.changed} changed on {len(first.recap)} nodes")
    play(place, "verify")
    again = play(place, "site")
    if again.changed:
        raise LabError(f"the second site changed {again.changed}, expected 0:\n{again.text}")
    # From a controller that is configured in another way: what is on the nodes does not depend on that.
    checkout = play_here("site.yml")
    if checkout.code != 0 or checkout.changed:
        raise LabError(f"site of the checkout changed {checkout.changed}, expected 0:\n{checkout.text}")
    say(f"release-check: {artefact.name} serves by itself; a second run changed 0 on {len(again.recap)} nodes")


if __name__ == "__main__":
    main_guard(main)
