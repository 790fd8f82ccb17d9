# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`make bench`: measure every part, keep its figures, and write the performance page from all of them.

    python -m tests.bench.performance [PART...]

Without parts all are measured. Figures are kept in build/bench/PART.json; the page is written when all parts have some.
Exit status 1 means that a part could not be measured, or that a figure is not what it has to be.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
import typing as t
import xml.etree.ElementTree as ET
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import datetime, timezone

from lab.common import LabError, main_guard, say
from tests.bench import rivals
from tests.bench.bench_lab import BUILD, PROJECT, BenchLab
from tests.bench.machine import surroundings
from tests.bench.page import SECTIONS, page, section
from tests.bench.promises import OF_PART

PAGE = PROJECT / "docs" / "performance.md"
# The last one stays up for what is measured on nodes that serve.
NODES = (1, 2, 8, 4)


def properties(junit: str) -> dict[str, float]:
    """What tests recorded with `record_property`, from pytest's report."""
    return {str(one.get("name")): float(one.get("value", "")) for one in ET.fromstring(junit).iter("property")}


def recorded(name: str) -> dict[str, float]:
    """What the tests of a file beside this one recorded."""
    report = BUILD / f"{name}.xml"
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--benchmark-quiet", f"tests/bench/{name}.py"]
    # The newer family has no room for what a test records.
    command += [f"--junitxml={report}", "-o", "junit_family=xunit1"]
    done = subprocess.run(command, cwd=PROJECT, check=False)
    if done.returncode != 0:
        raise LabError(f"tests/bench/{name}.py failed (exit {done.returncode})")
    figures = properties(report.read_text(encoding="utf-8"))
    report.unlink()
    return figures


def measure_fit(lab: BenchLab) -> dict[str, t.Any]:
    """Speed alone, then speed and accuracy beside the others."""
    del lab
    return {**recorded("test_fit"), "calculators": [asdict(answer) for answer in rivals.measure()]}


def measure_checkpoint(lab: BenchLab) -> dict[str, t.Any]:
    """On this machine, without nodes."""
    del lab
    return recorded("test_checkpoint")


def measure_prune(lab: BenchLab) -> dict[str, t.Any]:
    """On one bare node."""
    lab.bare(1)
    return lab.measured("prune")


def measure_site(lab: BenchLab) -> dict[str, t.Any]:
    """On bare nodes, so and so many."""
    runs = []
    for count in NODES:
        lab.bare(count)
        runs.append(lab.measured("site_speed"))
    return {"runs": sorted(runs, key=lambda run: int(run["nodes"]))}


def measure_start(lab: BenchLab) -> dict[str, t.Any]:
    """On nodes that serve."""
    lab.serving(NODES[-1])
    return lab.measured("start_up")


def measure_ray(lab: BenchLab) -> dict[str, t.Any]:
    """On nodes that serve."""
    lab.serving(NODES[-1])
    return lab.measured("ray_footprint")


PARTS: dict[str, Callable[[BenchLab], dict[str, t.Any]]] = {
    "fit": measure_fit,
    "checkpoint": measure_checkpoint,
    "prune": measure_prune,
    "site": measure_site,
    "start": measure_start,
    "ray": measure_ray,
}


def revision() -> str:
    """The commit that is measured, and whether something is not committed."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def measure(part: str, lab: BenchLab) -> dict[str, t.Any]:
    """One part, with when, where and how long it was measured."""
    say(f"measuring {part}")
    document: dict[str, t.Any] = {
        "part": part,
        "when": f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC",
        "revision": revision(),
        "machine": surroundings(),
    }
    started = time.monotonic()
    document["figures"] = PARTS[part](lab)
    document["seconds"] = round(time.monotonic() - started)
    return document


def kept() -> dict[str, dict[str, t.Any]]:
    """The figures of every part that was measured here, by part."""
    paths = {part: BUILD / f"{part}.json" for part in SECTIONS}
    return {part: json.loads(path.read_text(encoding="utf-8")) for part, path in paths.items() if path.is_file()}


def write_page(documents: dict[str, dict[str, t.Any]]) -> None:
    """The page and its plots; those of plots that are no more are removed."""
    text, plots = page(documents)
    folder = PAGE.with_suffix("")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, drawing in plots.items():
        (folder / f"{name}.svg").write_text(drawing, encoding="utf-8")
    PAGE.write_text(text, encoding="utf-8")


def broken(documents: dict[str, dict[str, t.Any]], parts: Sequence[str]) -> list[str]:
    """One sentence for each figure of these parts that is not what it has to be."""
    promises = [one for part in parts if part in documents for one in OF_PART[part](documents[part]["figures"])]
    return [f"{one.what}: {one.cells()[1]}, wanted at most {one.cells()[2]}" for one in promises if not one.kept]


def main() -> None:
    """Measure the parts of the command line, each whatever became of the others."""
    parts = sys.argv[1:] or list(PARTS)
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        raise LabError(f"there is no part {', '.join(unknown)}; parts are {', '.join(PARTS)}")
    BUILD.mkdir(parents=True, exist_ok=True)
    lab, problems = BenchLab(), []
    try:
        for part in (part for part in PARTS if part in parts):
            try:
                document = measure(part, lab)
            except LabError as error:
                problems.append(f"{part} could not be measured: {error}")
                continue
            (BUILD / f"{part}.json").write_text(json.dumps(document, indent=1), encoding="utf-8")
            print("\n".join(section(part, document)[0]), flush=True)
    finally:
        lab.remove()
    documents = kept()
    missing = [part for part in SECTIONS if part not in documents]
    if missing:
        say(f"the page stays as it is: {', '.join(missing)} was never measured here")
    else:
        write_page(documents)
        say(f"wrote {PAGE.relative_to(PROJECT)} and its plots")
    problems += broken(documents, parts)
    if problems:
        raise LabError("\nlab: ".join(problems))


if __name__ == "__main__":
    main_guard(main)
