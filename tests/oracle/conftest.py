# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One oracle for all tests of this folder: importing vLLM takes ten seconds."""

from __future__ import annotations

import typing as t

import pytest

from tests.oracle.oracle import Oracle


def pytest_configure(config: pytest.Config) -> None:
    """The marker of the engines that a quick run leaves out (`-m "not slow"`)."""
    config.addinivalue_line("markers", "slow: one engine of every family and option, four seconds each")


@pytest.fixture(scope="session")
def oracle() -> t.Iterator[Oracle]:
    """The real planner and the real engine. Without it the tests fail, they are never skipped."""
    problem, running = "", None
    try:
        running = Oracle()
    except RuntimeError as error:
        problem = str(error)
    if running is None:
        pytest.fail(problem, pytrace=False)
    yield running
    running.close()
