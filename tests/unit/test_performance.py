# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The performance page from given figures: what it says, what it draws, and what it calls a broken promise."""

from __future__ import annotations

import copy
import json
import re
import typing as t
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from lab.common import LabError
from lab.nodes import nodes_of
from tests.bench import performance
from tests.bench.bench_lab import inventory_of
from tests.bench.machine import Machine, busy_share, described
from tests.bench.page import SECTIONS, page, section
from tests.bench.performance import broken, properties
from tests.bench.plots import LEFT, RIGHT, Bar, bars
from tests.bench.promises import OF_PART

PROJECT = Path(__file__).parents[2]
SVG = "{http://www.w3.org/2000/svg}"
MACHINE = {
    "cores": 2,
    "processor": "A Processor",
    "memory_gib": 23.5,
    "system": "Debian 12, kernel 6.1",
    "load_average": 0.25,
    "busy_share": 0.015,
}


def run_of(nodes: int, cold_s: float, warm_s: list[float]) -> dict[str, t.Any]:
    roles = {"profile": 1.0, "runtime": cold_s / 2, "vllm_serve": cold_s / 2 - 1}
    controller = [seconds / 2 for seconds in warm_s]
    return {
        "nodes": nodes,
        "cold_s": cold_s,
        "roles_s": roles,
        "warm_s": warm_s,
        "controller_processor_s": controller,
    }


def calculator(name: str, seconds: float, *figures: float | None, refusal: str = "") -> dict[str, t.Any]:
    keys = ("bytes_per_token", "tokens_dcp1", "tokens_dcp4")
    return {"name": name, "seconds": seconds, **dict(zip(keys, figures, strict=True)), "refusal": refusal}


def start_of(ours_s: float, engine_s: float) -> dict[str, float]:
    return {"whole_s": ours_s + engine_s, "ours_s": ours_s, "engine_s": engine_s}


FIGURES: dict[str, dict[str, t.Any]] = {
    "fit": {
        "cold_best_s": 0.069,
        "cold_median_s": 0.094,
        "plan_best_s": 0.00088,
        "plan_median_s": 0.001,
        "search_best_s": 0.2,
        "search_median_s": 0.21,
        "search_combinations": 10560.0,
        "calculators": [
            calculator("ours", 0.07, 54_728.0, 33_024.0, 132_096.0),
            calculator("another", 0.5, 27_364.0, 66_048.0, 66_048.0),
            calculator("a third", 0.6, None, None, None, refusal="it cannot."),
        ],
    },
    "checkpoint": {
        "tensors": 235400.0,
        "files": 46.0,
        "headers_s": 2.2,
        "hashing_mb_per_s": 900.0,
        "sha256sum_mb_per_s": 990.0,
        "spread_to_1_mb_per_s": 400.0,
        "spread_to_3_mb_per_s": 500.0,
    },
    "prune": {"units": 40, "call_s": 1.0, "loop_s": 16.0},
    "site": {
        "runs": [
            run_of(1, 80, [9.0, 8.0]),
            run_of(2, 100, [10.0, 10.5]),
            run_of(4, 160, [16.5, 15.0]),
            run_of(8, 320, [20.0, 18.0]),
        ]
    },
    "start": {
        "nodes": 4,
        "starts": [
            start_of(5.6, 64.4),
            start_of(6.0, 44.0),
        ],
    },
    "ray": {
        "version": "2.51.0",
        "idle": [
            {"what": "ours, head", "processes": [["gcs_server --x", 100.0], ["raylet --y", 90.5]]},
            {"what": "ours, node", "processes": [["raylet --y", 100.0]]},
            {"what": "the seed's, head", "processes": [["gcs_server --x", 100.0], ["raylet --y", 300.0]]},
            {"what": "the seed's, node", "processes": [["raylet --y", 310.0]]},
        ],
        "serving_mib": {"ray": {"spark1": 1500.0, "spark2": 800.0}, "mp": {"spark1": 1200.0, "spark2": 810.0}},
    },
}
DOCUMENTS: dict[str, dict[str, t.Any]] = {
    part: {
        "part": part,
        "when": "2026-11-22 12:00 UTC",
        "revision": "abc1234",
        "machine": MACHINE,
        "seconds": 12,
        "figures": figures,
    }
    for part, figures in FIGURES.items()
}


def changed(part: str, **figures: t.Any) -> dict[str, dict[str, t.Any]]:
    documents = copy.deepcopy(DOCUMENTS)
    documents[part]["figures"].update(figures)
    return documents


def rectangles(drawing: str) -> list[tuple[float, float, str]]:
    """Left edge, width and colour of every segment of a bar."""
    found = [one for one in ET.fromstring(drawing).iter(f"{SVG}rect") if one.find(f"{SVG}title") is not None]
    return [(float(one.get("x", "")), float(one.get("width", "")), str(one.get("fill"))) for one in found]


def test_every_part_is_measured_written_and_promised() -> None:
    assert set(performance.PARTS) == set(SECTIONS) == set(OF_PART) == set(FIGURES)


def test_the_page_says_what_was_measured_where_and_when() -> None:
    text, plots = page(DOCUMENTS)
    assert "Measured on: 2 cores (A Processor), 23.5 GiB of memory, Debian 12, kernel 6.1." in text
    assert "| site | 2026-11-22 12:00 UTC | abc1234 | 0.25 | 2% | 12 |" in text
    for line in (
        "| another | 27,364 (-50.0 %) | 66,048 (+100.0 %) | 66,048 (-50.0 %) | 500 ms |",
        "| what engines logged | 54,728 | 33,024 | 132,096 |  |",
        "a third refuses: it cannot.",
        "| pruning, time beside the loop | 0.0625 | 0.125 | yes |",
        "| 8 | 320 | 20.0, 18.0 | 9.0 |",
        "| `site` with nothing to do on four nodes | 15 s | 20 s | yes |",
        "| the same on eight nodes, beside four | 1.2 | 1.4 | yes |",
        "| 70.0 | 5.6 | 64.4 | 8.0% |",
        "| ours, head | 190 | 2 |",
        "| spark1 | 1500 | 1200 | +300 |",
        "| spark2 | 800 | 810 | -10 |",
    ):
        assert line in text.splitlines(), line
    assert max(len(line) for line in text.splitlines() if not line.startswith("|")) <= 120
    assert set(re.findall(r"\(performance/([a-z-]+)\.svg\)", text)) == set(plots)
    for drawing in plots.values():
        assert ET.fromstring(drawing).tag == f"{SVG}svg"


def test_two_machines_are_both_named() -> None:
    documents = copy.deepcopy(DOCUMENTS)
    documents["ray"]["machine"] = {**MACHINE, "cores": 16}
    text, _plots = page(documents)
    assert [line.split(" (")[0] for line in text.splitlines() if line.startswith("Measured on")] == [
        "Measured on: 2 cores",
        "Measured on: 16 cores",
    ]


@pytest.mark.parametrize(
    ("part", "figures", "sentence"),
    [
        ("fit", {"cold_best_s": 0.2}, "fit, a cold process: 0.2 s, wanted at most 0.15 s"),
        ("fit", {"plan_best_s": 0.003}, "fit, one plan of GLM-5.2: 3 ms, wanted at most 2 ms"),
        ("checkpoint", {"hashing_mb_per_s": 495.0}, "hashing, time beside `sha256sum`: 2, wanted at most 1.2"),
        ("prune", {"call_s": 4.0}, "pruning, time beside the loop: 0.25, wanted at most 0.125"),
        ("start", {"starts": [start_of(10.0, 200.0), start_of(11.0, 199.0)]},
         "our part of a start, on average: 10.5 s, wanted at most 10 s"),
        ("start", {"starts": [start_of(9.0, 36.0)]},
         "our share of the starts: 0.2, wanted at most 0.1"),
        ("ray", {"idle": [{"what": "ours, head", "processes": [["a", 261.0]]}, *FIGURES["ray"]["idle"][1:]]},
         "idle Ray on the head: 261 MiB, wanted at most 260 MiB"),
    ],
)  # fmt: skip
def test_a_broken_promise_is_one_sentence(part: str, figures: dict[str, t.Any], sentence: str) -> None:
    assert broken(DOCUMENTS, list(FIGURES)) == []
    documents = changed(part, **figures)
    assert broken(documents, list(FIGURES)) == [sentence]
    assert broken(documents, [other for other in FIGURES if other != part]) == []
    assert "**no**" in "\n".join(section(part, documents[part])[0])


def test_the_quickest_run_with_nothing_to_do_is_compared() -> None:
    runs = [*FIGURES["site"]["runs"][:2], run_of(4, 160, [25.0, 20.5]), run_of(8, 320, [30.0, 41.0])]
    assert broken(changed("site", runs=runs), ["site"]) == [
        "`site` with nothing to do on four nodes: 20.5 s, wanted at most 20 s",
        "the same on eight nodes, beside four: 1.46, wanted at most 1.4",
    ]


def test_bars_are_as_long_as_their_figures() -> None:
    drawing = bars("x < y", [Bar("a", [("p", 1.0), ("q", 3.0)], "4"), Bar("b", [("q", 2.0)], "2")])
    (first, second, third), width = rectangles(drawing), RIGHT - LEFT
    assert [one[0] for one in (first, second, third)] == [LEFT, LEFT + width / 4, LEFT]
    assert [one[1] for one in (first, second, third)] == [width / 4, width * 3 / 4, width / 2]
    # A segment has one colour in all bars.
    assert second[2] == third[2] != first[2]


def test_what_is_wanted_is_marked_where_it_is() -> None:
    drawing = bars("title", [Bar("a", [("", 10.0)], "10")], wanted=20.0, wanted_words="wanted")
    assert rectangles(drawing)[0][1] == (RIGHT - LEFT) / 2
    (line,) = ET.fromstring(drawing).iter(f"{SVG}path")
    assert str(line.get("d")).startswith(f"M{RIGHT:.1f} ")


def test_roles_beyond_the_colours_are_drawn_as_one() -> None:
    roles = {f"role{number}": float(number) for number in range(10)}
    runs = [{**run, "roles_s": roles} for run in FIGURES["site"]["runs"]]
    _lines, plots = section("site", changed("site", runs=runs)["site"])
    titles = [str(one.text) for one in ET.fromstring(plots["site-cold"]).iter(f"{SVG}title")]
    assert titles[:8] == [*(f"1 node, role{number}: {number}" for number in range(9, 2, -1)), "1 node, the others: 3"]


def test_processes_of_ray_are_drawn_by_what_they_are() -> None:
    names = {
        "gcs_server --log_dir=/var/lib": "GCS",
        "raylet --raylet_socket_name=/tmp": "raylet",
        "ray::DashboardAgent": "dashboard's agent",
        "python3 /opt/ray/dashboard/dashboard.py ": "dashboard",
        "python3 -u /opt/ray/autoscaler/_private/": "autoscaler",
        "python3 -m ray.scripts.scripts start --head": "launcher",
        "sleep infinity": "launcher",
    }
    processes = [[name, 10.0] for name in names]
    idle = [{**one, "processes": processes} for one in FIGURES["ray"]["idle"]]
    _lines, plots = section("ray", changed("ray", idle=idle)["ray"])
    titles = {str(one.text).split(", ")[-1] for one in ET.fromstring(plots["ray"]).iter(f"{SVG}title")}
    assert titles == {f"{kind}: {10 * list(names.values()).count(kind)}" for kind in names.values()}


def test_bars_of_nothing_have_no_length() -> None:
    assert rectangles(bars("title", [Bar("a", [("", 0.0)], "0")]))[0][1] == 0


def test_what_tests_recorded_is_read() -> None:
    junit = (
        '<testsuites><testsuite><testcase name="a"><properties><property name="x_s" value="0.25"/></properties>'
        '</testcase><testcase name="b"><properties><property name="files" value="46"/></properties></testcase>'
        "</testsuite></testsuites>"
    )
    assert properties(junit) == {"x_s": 0.25, "files": 46.0}


def test_the_machine_is_read_without_its_name() -> None:
    cpuinfo = "processor\t: 0\nmodel name\t: AMD EPYC\nprocessor\t: 1\nmodel name\t: AMD EPYC\n"
    meminfo = "MemTotal:       24641536 kB\nMemFree: 1 kB\n"
    release = 'NAME="Debian"\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n'
    assert described(cpuinfo, meminfo, release, 2, "6.1.0") == Machine(
        2, "AMD EPYC", 23.5, "Debian GNU/Linux 12 (bookworm), kernel 6.1.0"
    )


def test_busy_is_what_is_neither_idle_nor_waiting() -> None:
    before = "cpu  100 0 100 1000 50 0 0 0 0 0\ncpu0 1 1 1 1\n"
    after = "cpu  130 5 110 1040 60 2 3 0 0 0\ncpu0 1 1 1 1\n"
    assert busy_share(before, after) == pytest.approx(0.5)
    assert busy_share(before, before) == 1


def test_the_inventory_counts_the_addresses_of_the_first_node_up() -> None:
    pattern = {"sparks": {"hosts": {"a": {"ansible_host": "10.0.0.11", "fabric_addresses": {"r": "10.0.1.11/24"}}}}}
    made = inventory_of(pattern, 8)["sparks"]
    assert list(made["hosts"]) == [f"spark{number}" for number in range(1, 9)]
    assert made["hosts"]["spark8"] == {"ansible_host": "10.0.0.18", "fabric_addresses": {"r": "10.0.1.18/24"}}
    assert made["vars"]["serving_overrides"] == {"tensor_parallel_size": 8}
    limits = {"lab_memory_limit_bytes": 1, "lab_shm_bytes": 1}
    hostvars = {name: {**values, **limits} for name, values in made["hosts"].items()}
    listed = {"_meta": {"hostvars": hostvars}, "sparks": {"hosts": list(hostvars)}}
    assert [node.management_ip for node in nodes_of(listed)][::7] == ["10.0.0.11", "10.0.0.18"]


@pytest.fixture
def measuring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The command without a lab: every part has the figures from above, and the page is in a folder of its own."""

    class NoLab:
        def remove(self) -> None:
            (tmp_path / "removed").touch()

    monkeypatch.setattr(performance, "BenchLab", NoLab)
    monkeypatch.setattr(performance, "BUILD", tmp_path / "build")
    monkeypatch.setattr(performance, "PROJECT", tmp_path)
    monkeypatch.setattr(performance, "PAGE", tmp_path / "performance.md")
    monkeypatch.setattr(performance, "surroundings", lambda: MACHINE)
    monkeypatch.setattr(performance, "PARTS", {part: lambda lab, part=part: FIGURES[part] for part in FIGURES})
    monkeypatch.setattr("sys.argv", ["performance"])
    return tmp_path


def test_the_command_writes_the_page_and_removes_old_plots(measuring: Path) -> None:
    (measuring / "performance").mkdir()
    (measuring / "performance" / "old.svg").touch()
    performance.main()
    assert (measuring / "removed").exists()
    assert json.loads((measuring / "build" / "ray.json").read_text(encoding="utf-8"))["figures"] == FIGURES["ray"]
    text = (measuring / "performance.md").read_text(encoding="utf-8")
    drawn = {path.stem for path in (measuring / "performance").iterdir()}
    assert drawn == set(re.findall(r"\(performance/([a-z-]+)\.svg\)", text)) and "old" not in drawn


def test_a_part_that_fails_keeps_nobody_else_from_being_measured(
    measuring: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(lab: t.Any) -> dict[str, t.Any]:
        raise LabError("no node came up")

    monkeypatch.setitem(performance.PARTS, "prune", fail)
    with pytest.raises(LabError, match=r"^prune could not be measured: no node came up$"):
        performance.main()
    assert {path.stem for path in (measuring / "build").iterdir()} == set(FIGURES) - {"prune"}
    # A page without one of its parts would take figures away from a reader.
    assert not (measuring / "performance.md").exists()
    assert (measuring / "removed").exists()


def test_parts_may_be_measured_alone(measuring: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["performance", "ray", "fit"])
    performance.main()
    assert {path.stem for path in (measuring / "build").iterdir()} == {"fit", "ray"}
    monkeypatch.setattr("sys.argv", ["performance", "rain"])
    with pytest.raises(LabError, match=r"^there is no part rain; parts are fit, checkpoint, "):
        performance.main()


def test_the_committed_page_has_every_part_and_all_its_plots() -> None:
    text = (PROJECT / "docs" / "performance.md").read_text(encoding="utf-8")
    assert [line[3:] for line in text.splitlines() if line.startswith("## ")] == [
        title for title, _ in SECTIONS.values()
    ]
    plots = {path.stem: path.read_text(encoding="utf-8") for path in (PROJECT / "docs" / "performance").iterdir()}
    assert set(plots) == set(re.findall(r"\(performance/([a-z-]+)\.svg\)", text))
    assert all(len(rectangles(drawing)) >= 1 for drawing in plots.values())
