# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Measure one part in the network of the lab that it is measured on.

    python -m tests.bench.inside PART FIGURES.json

PART is a module beside this one that has `measure()`.
"""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import asdict, is_dataclass
from pathlib import Path

from lab.common import main_guard


def main() -> None:
    """Write what is measured as JSON."""
    part, path = sys.argv[1:]
    figures = importlib.import_module(f"tests.bench.{part}").measure()
    found = asdict(figures) if is_dataclass(figures) and not isinstance(figures, type) else figures
    Path(path).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main_guard(main)
