# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`docs/performance.md` and its plots, from the figures of all parts."""

from __future__ import annotations

import textwrap
import typing as t
from collections.abc import Mapping, Sequence

from tests.bench.machine import Machine
from tests.bench.plots import Bar, bars
from tests.bench.promises import OF_PART, START_S, WARM_S, Figures, idle_mib, warm_by_nodes
from tests.bench.question import BUDGET, TRUTH

# There are eight colours, and one of them is for the others.
SHOWN_ROLES = 7
# By what their command lines have; everything else is what starts and holds these.
PROCESSES = {
    "RuntimeEnvAgent": "environments' agent",
    "gcs_server": "GCS",
    "raylet --": "raylet",
    "DashboardAgent": "dashboard's agent",
    "dashboard.py": "dashboard",
    "util.client.server": "client server",
    "autoscaler": "autoscaler",
}
# What one part shows: its lines, and its plots by name.
Section = tuple[list[str], dict[str, str]]


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table, an empty line after it."""
    lines = [heads, ["---"] * len(heads), *rows]
    return [*(f"| {' | '.join(line)} |" for line in lines), ""]


def paragraph(text: str) -> list[str]:
    """Sentences in lines of the page's width, an empty line after them."""
    return [*textwrap.wrap(" ".join(text.split()), 118, break_long_words=False, break_on_hyphens=False), ""]


def plot(name: str, words: str) -> list[str]:
    """A plot of the page."""
    return [f"![{words}](performance/{name}.svg)", ""]


def fit(figures: Figures) -> Section:
    """The fitter beside the public calculators."""

    def cell(answer: Mapping[str, t.Any], key: str) -> str:
        value = answer[key]
        return "-" if value is None else f"{value:,.0f} ({100 * value / TRUTH[key] - 100:+.1f} %)"

    answers = figures["calculators"]
    rows = [[a["name"], *(cell(a, key) for key in TRUTH), f"{1000 * a['seconds']:,.0f} ms"] for a in answers]
    rows.append(["what engines logged", *(f"{value:,}" for value in TRUTH.values()), ""])
    errors = [
        Bar(
            a["name"],
            [("", abs(100 * a["bytes_per_token"] / TRUTH["bytes_per_token"] - 100))],
            f"{100 * a['bytes_per_token'] / TRUTH['bytes_per_token'] - 100:+.1f} %",
        )
        for a in answers
        if a["bytes_per_token"] is not None
    ]
    speed = [Bar(a["name"], [("", 1000 * a["seconds"])], f"{1000 * a['seconds']:,.0f} ms") for a in answers]
    refusals = [f"{a['name']} refuses: {a['refusal'].rstrip('.')}." for a in answers if a["refusal"]]
    lines = [
        *paragraph(f"""
            GLM-5.2 at TP4 with {BUDGET:,} B of KV cache on each rank: bytes for a token, and the tokens that fit
            without and with decode context parallelism (DCP). Where a calculator cannot be asked for tokens, the
            budget is divided by its bytes for a token. One answer is a new process with one question.
        """),
        *table(["", "bytes a token", "tokens at DCP1", "tokens at DCP4", "one answer"], rows),
        *(line for refusal in refusals for line in paragraph(refusal)),
        *plot("fit-error", "Error of the bytes for a token, by calculator"),
        *plot("fit-speed", "Milliseconds for one answer, by calculator"),
        *paragraph(f"""
            Over more rounds, a cold process answers in {1000 * figures["cold_best_s"]:.0f} ms (median
            {1000 * figures["cold_median_s"]:.0f} ms); in a process that runs, one plan takes
            {1000 * figures["plan_best_s"]:.2f} ms and a search of {figures["search_combinations"]:,.0f} combinations
            {figures["search_best_s"]:.2f} s.
        """),
    ]
    plots = {
        "fit-error": bars("Error of the bytes for a token, %", errors),
        "fit-speed": bars("One answer of a new process, ms", speed),
    }
    return lines, plots


def checkpoint(figures: Figures) -> Section:
    """Reading, hashing and spreading."""
    rates = {
        "our hashing": figures["hashing_mb_per_s"],
        "sha256sum": figures["sha256sum_mb_per_s"],
        "copy to one node": figures["spread_to_1_mb_per_s"],
        "copies to three": figures["spread_to_3_mb_per_s"],
    }
    lines = [
        *paragraph(f"""
            The headers of GLM-5.2 at full size, {figures["tensors"]:,.0f} tensors in {figures["files"]:.0f} files,
            are read and checked in {figures["headers_s"]:.2f} s of processor time. Hashing is beside `sha256sum`
            over the same files, one process for each core. Spreading goes around the nodes, and each hashes what it
            gets; here all of them are folders of one machine and share its cores, so that three copies are three
            times the work.
        """),
        *table(["", "MB/s in all"], [[name, f"{rate:,.0f}"] for name, rate in rates.items()]),
        *plot("checkpoint", "Hashing and spreading in MB/s"),
    ]
    drawn = [Bar(name, [("", rate)], f"{rate:,.0f} MB/s") for name, rate in rates.items()]
    return lines, {"checkpoint": bars("Half a gigabyte in eight files, MB/s", drawn)}


def prune(figures: Figures) -> Section:
    """One call beside the loop."""
    call, loop = figures["call_s"], figures["loop_s"]
    lines = [
        *paragraph(f"""
            {figures["units"]} units of a node with a desktop, all of them pruned already: one call of `unit_prune`
            takes {call:.2f} s, a loop of `ansible.builtin.systemd_service` over the same units {loop:.2f} s,
            {loop / call:.1f} times as long.
        """),
        *plot("prune", "Seconds of one call and of the loop"),
    ]
    drawn = [Bar("one unit_prune", [("", call)], f"{call:.2f} s"), Bar("the loop", [("", loop)], f"{loop:.2f} s")]
    return lines, {"prune": bars("Nothing to do, seconds", drawn)}


def _parts(seconds: Mapping[str, float], largest: Sequence[str]) -> list[tuple[str, float]]:
    """The seconds of these roles, and of all others together."""
    others = sum(value for role, value in seconds.items() if role not in largest)
    return [*((role, seconds.get(role, 0.0)) for role in largest), ("the others", round(others, 1))]


def site(figures: Figures) -> Section:
    """`site` cold and warm by number of nodes."""
    runs, warm = figures["runs"], warm_by_nodes(figures)
    rows = [
        [
            str(run["nodes"]),
            f"{run['cold_s']:.0f}",
            ", ".join(f"{seconds:.1f}" for seconds in run["warm_s"]),
            f"{min(run['controller_processor_s']):.1f}",
        ]
        for run in runs
    ]
    spent = max(runs, key=lambda run: run["nodes"])["roles_s"]
    largest = sorted(spent, key=lambda role: -spent[role])[:SHOWN_ROLES]
    cold = [
        Bar(
            f"{run['nodes']} {'node' if run['nodes'] == 1 else 'nodes'}",
            _parts(run["roles_s"], largest),
            f"{run['cold_s']:.0f} s",
        )
        for run in runs
    ]
    again = [
        Bar(f"{nodes} {'node' if nodes == 1 else 'nodes'}", [("", seconds)], f"{seconds:.1f} s")
        for nodes, seconds in warm.items()
    ]
    lines = [
        *paragraph(f"""
            From bare nodes to a proven completion (cold), and again with nothing to do (warm, every run). The nodes
            are containers that share the {figures["cores"]} cores of this machine, with one rank of the lab's model
            on each (tensor parallelism over all of them; the model has eight attention heads here, so that eight
            ranks have one each). What machines of their own do side by side is done here by the same cores; the
            last column is what the controller itself has to do. The node image and the runtime's archive were built
            before.
        """),
        *table(["nodes", "cold s", "warm s", "the controller's processor time, warm s"], rows),
        *plot("site-cold", "Seconds of a cold site by role and number of nodes"),
        *plot("site-warm", "Seconds of a site that has nothing to do, by number of nodes"),
    ]
    plots = {
        "site-cold": bars("A cold site, seconds by role", cold),
        "site-warm": bars("A site with nothing to do, seconds", again, WARM_S, f"wanted on 4: {WARM_S:g} s"),
    }
    return lines, plots


def start(figures: Figures) -> Section:
    """Our share of a start."""
    rows = [
        [
            f"{one['whole_s']:.1f}",
            f"{one['ours_s']:.1f}",
            f"{one['engine_s']:.1f}",
            f"{one['ours_s'] / one['whole_s']:.1%}",
        ]
        for one in figures["starts"]
    ]
    lines = [
        *paragraph(f"""
            From `systemctl start` of all units on {figures["nodes"]} nodes to the first token of a completion. Ours
            is everything until systemd runs vLLM's own command: Ray on every node, and the checks before the start.
            The rest is the engine's. The files are in the page cache.
        """),
        *table(["whole s", "ours s", "the engine's s", "our share"], rows),
        *plot("start", "Seconds of a start, ours and the engine's"),
    ]
    drawn = [
        Bar(
            f"start {number}",
            [("ours", one["ours_s"]), ("the engine's", one["engine_s"])],
            f"{one['whole_s']:.1f} s",
        )
        for number, one in enumerate(figures["starts"], 1)
    ]
    return lines, {"start": bars("To the first token, seconds", drawn, START_S, f"wanted for ours: {START_S:g} s")}


def _process(name: str) -> str:
    """What a process of Ray is, of its command line."""
    return next((kind for part, kind in PROCESSES.items() if part in name), "launcher")


def ray(figures: Figures) -> Section:
    """Ray's memory: ours, the seed's, and none."""
    held = idle_mib(figures)
    rows = [[one["what"], f"{held[one['what']]:.0f}", str(len(one["processes"]))] for one in figures["idle"]]
    drawn = []
    for one in figures["idle"]:
        kinds: dict[str, float] = {}
        for name, mib in one["processes"]:
            kinds[_process(name)] = kinds.get(_process(name), 0.0) + mib
        drawn.append(Bar(one["what"], list(kinds.items()), f"{held[one['what']]:.0f} MiB"))
    with_ray, without = figures["serving_mib"]["ray"], figures["serving_mib"]["mp"]
    given = [
        [node, f"{with_ray[node]:.0f}", f"{without[node]:.0f}", f"{with_ray[node] - without[node]:+.0f}"]
        for node in with_ray
    ]
    lines = [
        *paragraph(f"""
            Ray {figures["version"]} that waits, in MiB of PSS, on nodes that share no file: our unit beside
            `ray[default]` with the flags that this project began with (the seed's).
        """),
        *table(["", "MiB", "processes"], rows),
        *plot("ray", "MiB of an idle Ray by process"),
        *paragraph("""
            No Ray at all: everything that the rig holds on a node while it serves, with Ray and with vLLM's own
            executor (`distributed_executor_backend: mp`).
        """),
        *table(["", "with Ray, MiB", "with mp, MiB", "given back"], given),
    ]
    return lines, {"ray": bars("An idle Ray, MiB", drawn)}


SECTIONS: dict[str, tuple[str, t.Callable[[Figures], Section]]] = {
    "fit": ("The fit beside the public calculators", fit),
    "checkpoint": ("A checkpoint: reading, hashing, spreading", checkpoint),
    "prune": ("Pruning beside the loop", prune),
    "site": ("`site` cold, warm, and by number of nodes", site),
    "start": ("Our share of a start", start),
    "ray": ("Ray, the seed's Ray, and no Ray", ray),
}


def machine_of(document: Mapping[str, t.Any]) -> Machine:
    """The machine that a part was measured on."""
    return Machine(**{key: document["machine"][key] for key in ("cores", "processor", "memory_gib", "system")})


def section(part: str, document: Mapping[str, t.Any]) -> Section:
    """One part with its heading and what it has to be."""
    title, write = SECTIONS[part]
    lines, plots = write(document["figures"] | {"cores": document["machine"]["cores"]})
    rows = [promise.cells() for promise in OF_PART[part](document["figures"])]
    wanted = table(["wanted", "measured", "at most", "kept"], rows)
    return [f"## {title}", "", *lines, *wanted], plots


def page(documents: Mapping[str, Mapping[str, t.Any]]) -> tuple[str, dict[str, str]]:
    """The whole page and its plots, when every part was measured."""
    machines = dict.fromkeys(machine_of(documents[part]).sentence() for part in SECTIONS)
    lines = [
        "# Performance",
        "",
        "Everything on this page was measured by one command, which also wrote it:",
        "",
        "<!-- run: clone -->",
        "```sh",
        "make bench",
        "```",
        "",
        *paragraph("""
            It makes a lab of its own beside every other one and removes it again; `make bench PART="fit ray"`
            measures only these parts anew. What stands side by side was measured in one run, on one machine that
            plays all nodes at once: the ratios are what carries over to machines of their own. No GPU was involved.
        """),
        *(line for sentence in machines for line in paragraph(f"Measured on: {sentence}.")),
    ]
    rows = []
    for part in SECTIONS:
        one = documents[part]
        busy = f"{one['machine']['busy_share']:.0%}"
        rows.append(
            [part, one["when"], one["revision"], f"{one['machine']['load_average']:.2f}", busy, f"{one['seconds']:.0f}"]
        )
    lines += table(["part", "measured", "revision", "load average", "cores busy before", "took s"], rows)
    plots: dict[str, str] = {}
    for part in SECTIONS:
        more, drawn = section(part, documents[part])
        lines += more
        plots |= drawn
    return "\n".join(lines).rstrip() + "\n", plots
