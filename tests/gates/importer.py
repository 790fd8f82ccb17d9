# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""``python -m tests.gates.importer ARTEFACT``: what Galaxy does with an upload, without Galaxy, and strictly.

Galaxy's importer takes an artefact all the same when ``ansible-lint`` finds something, is missing, dies or takes more
than three minutes: it only logs that. Here whatever it warns of is a failure.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import typing as t
from unittest.mock import patch

import galaxy_importer.main

from lab.common import LabError, main_guard

# The importer gives ansible-lint 180 s, which are not enough beside other tests.
LINT_TIMEOUT_S = 1200


class Remembered(logging.Handler):
    """Keeps what is logged as a warning or worse."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.sentences: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the first line of it."""
        self.sentences.append(record.getMessage().strip().split("\n")[0])


class Linter(subprocess.Popen[str]):
    """The importer's call of ansible-lint, with time enough, and with an exit status that somebody reads."""

    ended: t.ClassVar[list[int]] = []

    def communicate(self, *_args: t.Any, **_timeout: t.Any) -> tuple[str, str]:
        """Whatever limit the importer gives, this is the one."""
        told = super().communicate(timeout=LINT_TIMEOUT_S)
        self.ended.append(self.returncode)
        return told


def import_artefact(artefact: str) -> None:
    """Raises :class:`LabError` when the importer refuses the artefact, warns, or leaves something out."""
    remembered = Remembered()
    logger = logging.getLogger("galaxy_importer")
    logger.addHandler(remembered)
    Linter.ended.clear()
    with patch("galaxy_importer.loaders.collection.Popen", Linter):
        refused = galaxy_importer.main.main([artefact])
    logger.removeHandler(remembered)
    problems = list(remembered.sentences)
    if Linter.ended != [0]:
        problems.append(f"ansible-lint was to run once and end with 0; its exit statuses are {Linter.ended}")
    if refused or problems:
        raise LabError(f"galaxy-importer on {artefact}: {'; '.join(problems)}.")


def main() -> None:
    """Import the artefact that the command line names."""
    import_artefact(sys.argv[1])


if __name__ == "__main__":
    main_guard(main)
