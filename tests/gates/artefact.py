# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The collection as a user gets it - built, installed - under Ansible's own gates.

``python -m tests.gates.artefact`` builds the artefact, installs it into a folder of its own and runs
``ansible-test sanity``, ``galaxy-importer`` and ``antsibull-docs lint-collection-docs`` on it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

from lab.common import LabError, cache_dir, main_guard, say

PROJECT = Path(__file__).resolve().parent.parent.parent
BIN = Path(sys.executable).parent
# The Python that runs this: another version need not be on the machine.
SANITY_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"

# ansible-test wants a script that puts pip into an empty environment, and fetches it from a host of its own.
# The same from the package index: pip's wheel can install itself.
GET_PIP = """\
import sys
sys.path.insert(0, {wheel!r})
from pip._internal.cli.main import main
sys.exit(main(["install", *[word for word in sys.argv[1:] if word not in ("--no-setuptools", "--no-wheel")]]))
"""

# The collection's own folders, and what Galaxy wants beside them.
CONTENTS = {"meta", "playbooks", "plugins", "roles"}
CONTENTS |= {"CHANGELOG.rst", "FILES.json", "LICENSE", "MANIFEST.json", "README.md", "changelogs"}

# What a user's shell has; the two of the lab say where its nodes' keys are.
ENVIRONMENT = ("HOME", "LANG", "LC_ALL", "SSH_AUTH_SOCK", "SPARKRIG_CACHE", "SPARKRIG_LAB", "TERM", "USER")

IMPORTER = """\
[galaxy-importer]
RUN_ANSIBLE_DOC = True
RUN_ANSIBLE_LINT = True
CHECK_REQUIRED_TAGS = True
"""


def execute(argv: Sequence[str], folder: Path, **environment: str) -> list[str]:
    """Run *argv* in *folder*, its output on the screen and returned; raises :class:`LabError` when it fails."""
    env, lines = {**os.environ, **environment}, []
    with subprocess.Popen(
        argv, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            lines.append(line.strip())
    if process.returncode != 0:
        raise LabError(f"'{' '.join(argv)}' failed (exit {process.returncode}); what it found stands above.")
    return lines


def bare_environment(folder: Path, bin_folder: Path = BIN) -> dict[str, str]:
    """The environment of a shell in *folder*: neither this checkout nor what `make` has set is in it."""
    kept = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
    path = f"{bin_folder}:/usr/sbin:/usr/bin:/sbin:/bin"
    return {**kept, "PATH": path, "PWD": str(folder), "ANSIBLE_NOCOLOR": "1"}


def install(folder: Path) -> tuple[Path, Path]:
    """Build the collection and install it under *folder*; returns the artefact and the installed collection.

    Raises :class:`LabError` when the artefact holds more than the collection, or less.
    """
    for name in ("artefact", "installed"):
        shutil.rmtree(folder / name, ignore_errors=True)
    installed = folder / "installed"
    galaxy = str(BIN / "ansible-galaxy")
    quiet = {"ANSIBLE_COLLECTIONS_PATH": str(installed), "ANSIBLE_GALAXY_DISPLAY_PROGRESS": "false"}
    execute([galaxy, "collection", "build", str(PROJECT), "--output-path", str(folder / "artefact")], folder, **quiet)
    (artefact,) = (folder / "artefact").glob("*.tar.gz")
    check_contents(artefact)
    execute([galaxy, "collection", "install", str(artefact), "--offline", "-p", str(installed)], folder, **quiet)
    return artefact, installed / "ansible_collections" / "sparkrig" / "serving"


def check_contents(artefact: Path) -> None:
    """Raises :class:`LabError` when the artefact holds more than the collection, or less."""
    with tarfile.open(artefact) as archive:
        names = archive.getnames()
    hidden = {name for name in names if Path(name).name.startswith(".")}
    odd = ", ".join(sorted(({name.split("/")[0] for name in names} ^ CONTENTS) | hidden))
    if odd:
        raise LabError(f"{artefact.name} differs from what it should hold in {odd}; see build_ignore in galaxy.yml.")


def provide_get_pip(home: Path) -> None:
    """Lay the bootstrap script where ansible-test looks for it before it fetches one."""
    source = next((BIN.parent / "lib").glob("python3*")) / "site-packages" / "ansible_test" / "_internal"
    text = (source / "python_requirements.py").read_text(encoding="utf-8")
    version = text.split("pip='", 1)[1].split("'", 1)[0]
    script = home / ".ansible" / "test" / "cache" / f"get_pip_{version.replace('.', '_')}.py"
    if script.exists():
        return
    script.parent.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
    execute([*pip, "--dest", str(script.parent), f"pip=={version}"], home)
    (wheel,) = script.parent.glob(f"pip-{version}-*.whl")
    script.write_text(GET_PIP.format(wheel=str(wheel)), encoding="utf-8")


def sanity(collection: Path, home: Path) -> None:
    """Every sanity test of ansible-test, each in the environment that ansible-test makes for it."""
    provide_get_pip(home)
    # ansible-test reads the list of files from git, and would test its own output as well.
    execute(["git", "init", "--quiet"], collection)
    (collection / ".git" / "info" / "exclude").write_text("tests/output\n", encoding="utf-8")
    execute(["git", "add", "--all"], collection)
    command = [str(BIN / "ansible-test"), "sanity", "--venv", "--python", SANITY_PYTHON, "--color", "no"]
    # It ends with 0 also when it left a test out.
    left_out = [line for line in execute(command, collection, HOME=str(home)) if "Skipping" in line]
    if left_out:
        raise LabError(f"ansible-test has not run every sanity test: {'; '.join(left_out)}.")


def galaxy_importer(artefact: Path, folder: Path) -> None:
    """What Galaxy does with an upload, in a process of its own."""
    configuration = folder / "galaxy-importer.cfg"
    configuration.write_text(IMPORTER, encoding="utf-8")
    command = [sys.executable, "-m", "tests.gates.importer", str(artefact)]
    execute(command, folder, GALAXY_IMPORTER_CONFIG=str(configuration), ANSIBLE_CONFIG=str(PROJECT / "ansible.cfg"))


def docs_lint(collection: Path) -> None:
    """The documentation of every plugin, module and role, and every reference in it."""
    command = [str(BIN / "antsibull-docs"), "lint-collection-docs", "--plugin-docs"]
    execute([*command, "--validate-collection-refs=self", str(collection)], collection)


def main() -> None:
    """All gates on one artefact."""
    folder = cache_dir() / "gates"
    folder.mkdir(exist_ok=True)
    artefact, collection = install(folder)
    say(f"{artefact.name} is built and installed")
    home = folder / "home"
    home.mkdir(exist_ok=True)
    docs_lint(collection)
    galaxy_importer(artefact, folder)
    sanity(collection, home)


if __name__ == "__main__":
    main_guard(main)
