# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Build what is slow: the node image and the runtime archive, side by side, each once and then cached.

``python -m lab.build`` builds; with ``--oracle`` it unpacks the runtime on this machine as well, for the tests
that ask vLLM itself, and prints its interpreter; with ``--sources`` it fetches vLLM's own sources, for the tests
that patch and build them.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

from lab.common import LabError, cache_dir, main_guard, say
from lab.nodes import INVENTORY, PROJECT
from lab.sources import VERSIONS, repository

BIN = Path(sys.executable).parent
HEARTBEAT_S = 10.0


class Job:
    """A command that runs beside what goes on, its output in a log under the cache."""

    def __init__(self, name: str, argv: list[str]) -> None:
        """Start *argv*; *name* is what a person is told that is waited for."""
        self.name = name
        self.log = cache_dir() / f"{name.replace(' ', '-')}.log"
        with self.log.open("wb") as stream:
            self.process = subprocess.Popen(argv, cwd=PROJECT, stdout=stream, stderr=subprocess.STDOUT)

    def wait(self) -> None:
        """Wait for the end, saying every ten seconds what is waited for.

        Raises :class:`LabError` with the command's last words when it failed.
        """
        started = time.monotonic()
        while True:
            try:
                code = self.process.wait(timeout=HEARTBEAT_S)
                break
            except subprocess.TimeoutExpired:
                say(f"waiting for the {self.name}, {time.monotonic() - started:.0f} s")
        if code != 0:
            tail = "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:])
            raise LabError(f"the {self.name} failed (exit {code}); its last words:\n{tail}\nThe whole log: {self.log}")

    def end(self) -> None:
        """Stop the command if it still runs."""
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait()


def playbook(name: str, *options: str) -> list[str]:
    """The command that runs a playbook against the lab's inventory."""
    return [str(BIN / "ansible-playbook"), "-i", str(INVENTORY), name, *options]


def runtime_job() -> Job:
    """Start building the runtime archive."""
    return Job("runtime archive", playbook("sparkrig.serving.runtime_archive"))


def oracle_python() -> Path:
    """The interpreter of the newest runtime archive, unpacked on this machine once."""
    manifests = sorted((cache_dir() / "runtime").glob("*.json"), key=lambda path: path.stat().st_mtime)
    if not manifests:
        raise LabError("there is no runtime archive yet; `make build` makes it.")
    archive = manifests[-1].with_suffix(".tar")
    tree = cache_dir() / "oracle" / archive.stem
    if not tree.is_dir():
        partial = tree.with_name(f".{tree.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        subprocess.run(["tar", "--extract", "--file", str(archive), "--directory", str(partial)], check=True)
        partial.rename(tree)
    return tree / "bin" / "python"


def main() -> None:
    """Build image and runtime side by side, or show the runtime's interpreter on this machine."""
    if sys.argv[1:] == ["--oracle"]:
        print(oracle_python())
        return
    if sys.argv[1:] == ["--sources"]:
        (packages,) = oracle_python().parents[1].glob("lib/python3.*/site-packages")
        for version in VERSIONS:
            say(f"the source of vLLM {version} is there: {repository(version, packages).url}")
        return
    runtime = runtime_job()
    try:
        Job("node image", [sys.executable, "-m", "lab.image"]).wait()
        runtime.wait()
    finally:
        runtime.end()


if __name__ == "__main__":
    main_guard(main)
