# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the measured figures have to be; `make bench` fails when one is not."""

from __future__ import annotations

import typing as t
from dataclasses import dataclass

COLD_S, PLAN_S, SEARCH_S = 0.150, 0.002, 5.0
HEADERS_S, HASHING_RATIO = 3.0, 1.2
PRUNE_RATIO = 1 / 8
WARM_S, WARM_RATIO = 20.0, 1.4
START_S, START_SHARE = 10.0, 0.10
RAY_HEAD_MIB, RAY_NODE_MIB = 260.0, 115.0

Figures = dict[str, t.Any]


@dataclass(frozen=True)
class Promise:
    """One figure, and what it may be at most."""

    what: str
    seen: float
    at_most: float
    unit: str = ""

    @property
    def kept(self) -> bool:
        """Whether it is what was wanted."""
        return self.seen <= self.at_most

    def cells(self) -> list[str]:
        """The row of the table."""
        unit = f" {self.unit}" if self.unit else ""
        return [self.what, f"{self.seen:.3g}{unit}", f"{self.at_most:.3g}{unit}", "yes" if self.kept else "**no**"]


def warm_by_nodes(site: Figures) -> dict[int, float]:
    """Seconds of the quickest run that had nothing to do, by number of nodes."""
    return {int(run["nodes"]): float(min(run["warm_s"])) for run in site["runs"]}


def idle_mib(ray: Figures) -> dict[str, float]:
    """MiB of each idle Ray in all."""
    return {one["what"]: sum(mib for _name, mib in one["processes"]) for one in ray["idle"]}


def _fit(figures: Figures) -> list[Promise]:
    return [
        Promise("fit, a cold process", figures["cold_best_s"], COLD_S, "s"),
        Promise("fit, one plan of GLM-5.2", 1000 * figures["plan_best_s"], 1000 * PLAN_S, "ms"),
        Promise(f"fit, a search of {figures['search_combinations']:,.0f}", figures["search_best_s"], SEARCH_S, "s"),
    ]


def _checkpoint(figures: Figures) -> list[Promise]:
    ratio = figures["sha256sum_mb_per_s"] / figures["hashing_mb_per_s"]
    return [
        Promise(f"headers of {figures['tensors']:,.0f} tensors", figures["headers_s"], HEADERS_S, "s"),
        Promise("hashing, time beside `sha256sum`", ratio, HASHING_RATIO),
    ]


def _prune(figures: Figures) -> list[Promise]:
    return [Promise("pruning, time beside the loop", figures["call_s"] / figures["loop_s"], PRUNE_RATIO)]


def _site(figures: Figures) -> list[Promise]:
    warm = warm_by_nodes(figures)
    return [
        Promise("`site` with nothing to do on four nodes", warm[4], WARM_S, "s"),
        Promise("the same on eight nodes, beside four", warm[8] / warm[4], WARM_RATIO),
    ]


def _start(figures: Figures) -> list[Promise]:
    ours, whole = (sum(start[name] for start in figures["starts"]) for name in ("ours_s", "whole_s"))
    return [
        Promise("our part of a start, on average", ours / len(figures["starts"]), START_S, "s"),
        Promise("our share of the starts", ours / whole, START_SHARE),
    ]


def _ray(figures: Figures) -> list[Promise]:
    held = idle_mib(figures)
    return [
        Promise("idle Ray on the head", held["ours, head"], RAY_HEAD_MIB, "MiB"),
        Promise("idle Ray on a node", held["ours, node"], RAY_NODE_MIB, "MiB"),
    ]


OF_PART: dict[str, t.Callable[[Figures], list[Promise]]] = {
    "fit": _fit,
    "checkpoint": _checkpoint,
    "prune": _prune,
    "site": _site,
    "start": _start,
    "ray": _ray,
}
