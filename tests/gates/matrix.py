# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``make matrix``: the installed collection under the oldest and the newest Ansible, and on every Python of a node.

On the controller: every playbook parses, ``ansible-doc`` reads every plugin and role, and the playbooks that reach no
node run for real, with the same answer. On a node: every file imports, and every module answers bad input in JSON.
Pythons are taken from PATH and from pyenv. One that this machine lacks is named; it fails where there is none at all
for one of the sides.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import typing as t
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from lab.common import LabError, cache_dir, main_guard, say
from tests.gates.artefact import BIN, PROJECT, bare_environment, install

# The Pythons that ansible-core 2.19 runs on, and those that a node may have.
OLDEST_ANSIBLE = "ansible-core==2.19.*"
CONTROLLERS = ("3.11", "3.12", "3.13")
TARGETS = ("3.9", "3.10", "3.11", "3.12", "3.13")
# They reach no node.
OFFLINE = ("fit", "monitoring", "switch_guide")
DOCUMENTED = ("module", "filter", "lookup", "role")
# Imports every file of the collection that runs on a node, and runs each module with an option that none has.
ON_A_NODE = """
import contextlib, importlib, io, json, pathlib, sys
from ansible.module_utils.testing import patch_module_args
plugins = pathlib.Path(sys.argv[1]) / "plugins"
names = {kind: sorted(path.stem for path in (plugins / kind).glob("*.py")) for kind in ("module_utils", "modules")}
for name in names["module_utils"]:
    importlib.import_module("ansible_collections.sparkrig.serving.plugins.module_utils." + name)
for name in names["modules"]:
    module = importlib.import_module("ansible_collections.sparkrig.serving.plugins.modules." + name)
    if not hasattr(module, "main"):
        # Only its documentation: an action on the controller does the work.
        assert (plugins / "action" / (name + ".py")).exists(), name
        continue
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), patch_module_args({"no_such_option": 1}):
            module.main()
    except SystemExit:
        pass
    answer = json.loads(said.getvalue())
    assert answer["failed"] and answer["msg"] and "exception" not in answer, (name, answer)
print(len(names["module_utils"]) + len(names["modules"]))
"""


@dataclass(frozen=True)
class Controller:
    """An Ansible in an environment of its own."""

    version: str
    python: str
    folder: Path

    def __str__(self) -> str:
        return f"ansible-core {self.version} on Python {self.python}"


def output_of(argv: Sequence[str], folder: Path, bin_folder: Path = BIN, **environment: str) -> str:
    """What *argv* prints; raises :class:`LabError` with it when it fails or warns of what will go away."""
    env = {**bare_environment(folder, bin_folder), **environment}
    done = subprocess.run(argv, cwd=folder, env=env, capture_output=True, text=True)
    if done.returncode != 0 or "[DEPRECAT" in done.stderr:
        raise LabError(f"'{' '.join(argv)}' (exit {done.returncode}):\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return done.stdout


def find_python(minor: str) -> str:
    """The interpreter of this version, from PATH or from pyenv; empty when there is none."""
    pyenv = shutil.which("pyenv")
    candidates = [shutil.which(f"python{minor}")]
    if pyenv:
        root = subprocess.run([pyenv, "root"], capture_output=True, text=True, check=False).stdout.strip()
        candidates += sorted(str(path) for path in Path(root).glob(f"versions/{minor}.*/bin/python{minor}"))
    for candidate in filter(None, candidates):
        # pyenv lays a script for each version into PATH, also for those that it is not told to use.
        seen = subprocess.run([candidate, "-c", "import sys; print(sys.executable)"], capture_output=True, text=True)
        if seen.returncode == 0:
            return seen.stdout.strip()
    return ""


def choose_controllers(found: Sequence[str]) -> tuple[str, str]:
    """The Pythons for the oldest and for the newest Ansible; *found* are those that there are, in their order."""
    for minors, what in ((CONTROLLERS, f"{OLDEST_ANSIBLE} runs on"), (TARGETS, "a node may have")):
        if not set(minors) & set(found):
            raise LabError(f"no Python that {what} is in PATH or under pyenv; install one of {', '.join(minors)}.")
    return next(minor for minor in found if minor in CONTROLLERS), found[-1]


def make_controller(folder: Path, minor: str, interpreter: str, requirement: str) -> Controller:
    """The environment for *requirement*, made once and brought up to date where the index answers."""
    venv = folder / f"{minor}-{requirement.replace('==', '-').rstrip('.*')}"
    if not (venv / "bin" / "python").exists():
        output_of([interpreter, "-m", "venv", str(venv)], folder)
    python = str(venv / "bin" / "python")
    # uv is quick, but knows nothing of a mirror in the user's pip configuration; pip does.
    uv = [str(BIN / "uv"), "pip", "install", "--quiet", "--system-certs", "--python", python, "--upgrade", requirement]
    pip = [python, "-m", "pip", "install", "--quiet", "--upgrade", requirement]
    if all(subprocess.run(argv, capture_output=True).returncode for argv in (uv, pip)):
        if not (venv / "bin" / "ansible").exists():
            raise LabError(f"neither '{' '.join(uv)}' nor '{' '.join(pip)}' works; see what they print.")
        say(f"no package index answers; {requirement} on Python {minor} stays as it was installed before")
    code = "from ansible.release import __version__; print(__version__)"
    return Controller(output_of([python, "-c", code], folder).strip(), minor, venv)


def make_place(place: Path, controller: Controller, collection: Path) -> None:
    """A folder to run in, with an inventory, and Ansible alone on a path for the Pythons of nodes."""
    place.mkdir(parents=True)
    shutil.copytree(PROJECT / "inventory", place / "inventory")
    (place / "ansible.cfg").write_text(f"[defaults]\ncollections_path = {collection.parents[2]}\n", encoding="utf-8")
    (place / "on_a_node.py").write_text(ON_A_NODE, encoding="utf-8")
    (packages,) = controller.folder.glob("lib/python3*/site-packages")
    (place / "path").mkdir()
    (place / "path" / "ansible").symlink_to(packages / "ansible")


def check_controller(controller: Controller, place: Path, collection: Path) -> t.Any:
    """What a controller does without a node; returns the answer of ``fit``."""
    binary = controller.folder / "bin"
    playbooks = [f"sparkrig.serving.{path.stem}" for path in sorted((collection / "playbooks").glob("*.yml"))]
    output_of([str(binary / "ansible-playbook"), "--syntax-check", "-i", "spark1,", *playbooks], place, binary)
    documented = 0
    for kind in DOCUMENTED:
        doc = [str(binary / "ansible-doc"), "--type", kind, "--json"]
        names = list(json.loads(output_of([*doc, "--list", "sparkrig.serving"], place, binary)))
        documented += len(json.loads(output_of([*doc, *names], place, binary)))
        if kind == "module" and len(names) != len(list((collection / "plugins" / "modules").glob("*.py"))):
            raise LabError(f"ansible-doc of {controller} lists {len(names)} modules: {', '.join(names)}")
    play = [str(binary / "ansible-playbook"), "-i", "inventory/quad_spark"]
    output_of([*play, *(f"sparkrig.serving.{name}" for name in OFFLINE)], place, binary)
    say(f"{controller}: {len(playbooks)} playbooks, {documented} plugins and roles; {', '.join(OFFLINE)} ran")
    return json.loads((place / "fit" / "fit.json").read_text(encoding="utf-8"))


def check_target(controller: Controller, minor: str, interpreter: str, place: Path, collection: Path) -> None:
    """What runs on a node, with this interpreter and this Ansible's module_utils."""
    search = f"{place / 'path'}:{collection.parents[2]}"
    # Only Ansible itself: nothing else that its environment has is on a node, nor (-S) what this Python has.
    argv = [interpreter, "-B", "-S", "-W", "error::SyntaxWarning", str(place / "on_a_node.py"), str(collection)]
    files = output_of(argv, place, PYTHONPATH=search).strip()
    say(f"Python {minor} on a node of {controller}: {files} files")


def main() -> None:
    """The whole matrix."""
    folder = cache_dir() / "matrix"
    folder.mkdir(exist_ok=True)
    _artefact, collection = install(folder)
    found = {minor: find_python(minor) for minor in (f"3.{number}" for number in range(9, 20))}
    found = {minor: interpreter for minor, interpreter in found.items() if interpreter}
    oldest, newest = choose_controllers(list(found))
    targets = {minor: found[minor] for minor in TARGETS if minor in found}
    for minor in TARGETS:
        if minor not in found:
            say(f"there is no Python {minor} in PATH or under pyenv: what runs on a node was not tried with it")
    controllers = [make_controller(folder, oldest, found[oldest], OLDEST_ANSIBLE)]
    if oldest != CONTROLLERS[0]:
        say(f"there is no Python {CONTROLLERS[0]} in PATH or under pyenv: the oldest Ansible was tried with {oldest}")
    last = make_controller(folder, newest, found[newest], "ansible-core")
    if last.version != controllers[0].version:
        controllers.append(last)
    else:
        say(f"there is no newer Ansible for Python {newest}, the newest in PATH or under pyenv: none was tried")
    shutil.rmtree(folder / "places", ignore_errors=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        answers, tried = [], []
        for controller in controllers:
            place = folder / "places" / controller.version
            make_place(place, controller, collection)
            answers.append(pool.submit(check_controller, controller, place, collection))
            for minor, interpreter in targets.items():
                tried.append(pool.submit(check_target, controller, minor, interpreter, place, collection))
        for future in tried:
            future.result()
        fits = [future.result() for future in answers]
    if any(fit != fits[0] for fit in fits):
        raise LabError(f"fit gives another answer under {controllers[-1]} than under {controllers[0]}.")


if __name__ == "__main__":
    main_guard(main)
