# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The gates fail when a tool that they run only says in passing that it left something out."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import galaxy_importer.loaders.collection
import galaxy_importer.main
import pytest

from lab.common import LabError
from tests.gates import artefact, release
from tests.gates.importer import Linter, import_artefact
from tests.gates.matrix import choose_controllers

LOGGER = logging.getLogger("galaxy_importer.main")


def importer(monkeypatch: pytest.MonkeyPatch, lint: str, status: int | None = None, *warnings: str) -> None:
    """An importer that calls this as its linter, logs these warnings, and ends with this status."""

    def main(_arguments: list[str]) -> int | None:
        popen = vars(galaxy_importer.loaders.collection)["Popen"]
        if lint:
            popen([sys.executable, "-c", lint], encoding="utf-8", stdout=-1, stderr=-1).communicate(timeout=0)
        for warning in warnings:
            LOGGER.warning(warning)
        LOGGER.info("nothing to worry about")
        return status

    monkeypatch.setattr(galaxy_importer.main, "main", main)


def test_an_import_without_a_word_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    importer(monkeypatch, "print(1)")
    import_artefact("sparkrig-serving-0.1.0.tar.gz")
    assert vars(galaxy_importer.loaders.collection)["Popen"] is subprocess.Popen


@pytest.mark.parametrize(
    ("lint", "status", "warnings", "said"),
    [
        ("print(1)", None, ("ansible-lint not found, skipping lint of collection",), "ansible-lint not found"),
        ("print(1)", 1, ("The import failed for the following reason: no manifest",), "no manifest"),
        ("raise SystemExit(2)", None, (), r"its exit statuses are \[2\]"),
        ("", None, (), r"its exit statuses are \[\]"),
    ],
)
def test_what_the_importer_only_logs_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, lint: str, status: int | None, warnings: tuple[str, ...], said: str
) -> None:
    importer(monkeypatch, lint, status, *warnings)
    with pytest.raises(LabError, match=f"galaxy-importer on some.tar.gz: .*{said}"):
        import_artefact("some.tar.gz")


def test_a_linter_that_does_not_end_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.gates.importer.LINT_TIMEOUT_S", 0.1)
    linter = Linter([sys.executable, "-c", "import time; time.sleep(60)"], encoding="utf-8", stdout=-1, stderr=-1)
    with pytest.raises(subprocess.TimeoutExpired):
        linter.communicate(timeout=180)
    linter.kill()
    linter.wait()


@pytest.mark.parametrize(
    ("found", "controllers"),
    [
        (["3.9", "3.10", "3.11", "3.12", "3.13"], ("3.11", "3.13")),
        (["3.9", "3.11"], ("3.11", "3.11")),
        (["3.12"], ("3.12", "3.12")),
        (["3.13", "3.14"], ("3.13", "3.14")),
    ],
)
def test_the_matrix_takes_the_pythons_that_there_are(found: list[str], controllers: tuple[str, str]) -> None:
    assert choose_controllers(found) == controllers


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        (["3.9", "3.10"], r"no Python that ansible-core==2.19.\* runs on is in PATH .* one of 3.11, 3.12, 3.13"),
        (["3.14"], r"no Python that ansible-core==2.19.\* runs on"),
    ],
)
def test_the_matrix_wants_one_python_of_each_side(found: list[str], sentence: str) -> None:
    with pytest.raises(LabError, match=sentence):
        choose_controllers(found)


def test_a_release_has_no_fragment_left(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fragments = tmp_path / "changelogs" / "fragments"
    fragments.mkdir(parents=True)
    monkeypatch.setattr(release, "PROJECT", tmp_path)
    (fragments / ".keep").touch()
    release.check_changelog()
    (fragments / "ports.yml").touch()
    with pytest.raises(LabError, match="CHANGELOG.rst lacks what ports.yml in .* run `make changelog`"):
        release.check_changelog()


def test_a_sanity_test_that_was_left_out_is_a_failure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    said = ['Running sanity test "shebang"']

    def execute(argv: list[str], _folder: Path, **_environment: str) -> list[str]:
        return said if "sanity" in argv else []

    (tmp_path / ".git" / "info").mkdir(parents=True)
    monkeypatch.setattr(artefact, "execute", execute)
    monkeypatch.setattr(artefact, "provide_get_pip", lambda _home: None)
    artefact.sanity(tmp_path, tmp_path)
    said.append('WARNING: Skipping sanity test "import" on Python 3.11 because it could not be found.')
    with pytest.raises(LabError, match="has not run every sanity test: .*Skipping sanity test .import."):
        artefact.sanity(tmp_path, tmp_path)
