# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the README and the pages under ``docs/`` say is true: commands, links, figures and references."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from ansible_collections.sparkrig.serving.plugins.module_utils._kv_node import fit
from docs.commands import (
    CLONE,
    CLONE_FAILS,
    PAGES,
    PROJECT,
    SPARKS,
    UNIT,
    Change,
    Command,
    commands,
    execute,
    make_rules,
    make_workplace,
    marked,
    of_ci,
    said_only,
    walk,
)
from tests.commands.outcomes import outcome_of
from tests.fixtures.glm52 import question

PLAYBOOKS = {path.stem for path in (PROJECT / "playbooks").glob("*.yml")}
SCENARIOS = {path.parent.name for path in (PROJECT / "molecule").glob("*/molecule.yml")}
MAKE_TARGETS = set(make_rules())
# Files of tests that run playbooks on nodes, or build a runtime.
ON_NODES = [*(PROJECT / "molecule").glob("*/tests/test_*.py"), *(PROJECT / "lab").glob("*.py")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT)))
def test_every_command_exists_and_somebody_runs_it(page: Path) -> None:
    for command in commands(page):
        words = command.words
        if words[0] == "make":
            assert set(words[1:]) <= MAKE_TARGETS, command
        elif words[0] == "ansible-playbook":
            assert command.playbook in PLAYBOOKS, command
            inventories = [words[number + 1] for number, word in enumerate(words) if word == "-i"]
            assert all((PROJECT / inventory).is_dir() for inventory in inventories), command
        elif words[0] == "pytest":
            paths = [word for word in words[1:] if "/" in word]
            assert paths and all((PROJECT / path).exists() for path in paths), command
        else:
            assert words[0] in {"curl", "ansible", "ansible-galaxy", "lab/beside.sh", "source", "case"}, command
        assert command.mark in {UNIT, CLONE, CLONE_FAILS, SPARKS, *(f"run: {name}" for name in SCENARIOS)}, command


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT)))
def test_what_a_sentence_names_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert set(re.findall(r"`make ([a-z-]+)[ `]", text)) <= MAKE_TARGETS
    plugins = {path.stem for path in (PROJECT / "plugins").glob("*/*.*")}
    roles = {path.name for path in (PROJECT / "roles").iterdir()}
    assert set(re.findall(r"\bsparkrig\.serving\.(\w+)", text)) <= PLAYBOOKS | plugins | roles


def test_a_scenario_runs_the_commands_that_are_marked_with_its_name() -> None:
    for name in SCENARIOS:
        if marked(f"run: {name}"):
            text = (PROJECT / "molecule" / name / "tests" / "test_commands.py").read_text(encoding="utf-8")
            assert f'marked("run: {name}")' in text


def test_make_commands_types_what_is_marked_for_a_clone() -> None:
    """All that is marked so, but what CI types by itself, and each with what has to come out of it."""
    typed = [step for page in PAGES for step in walk(page) if isinstance(step, Command)]
    assert {step.text for step in typed} | {of_ci()} == {each.text for each in marked(CLONE) + marked(CLONE_FAILS)}
    for step in typed:
        assert step.mark == CLONE_FAILS or outcome_of(step.text) is not None, step
    for target in said_only():
        assert outcome_of(f"make {target}") is not None
    assert "pytest -v -s tests/commands" in make_rules()["commands"]
    text = (PROJECT / "tests" / "commands" / "test_clone.py").read_text(encoding="utf-8")
    assert "walk(page) for page in PAGES" in text and "in said_only()" in text


def test_the_changes_that_a_page_tells_to_make_can_be_made() -> None:
    for change in (step for page in PAGES for step in walk(page) if isinstance(step, Change)):
        look = ["git", "apply", "--check", "-"]
        done = subprocess.run(look, input=change.text, cwd=PROJECT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{change.page.name}:{change.line}: {done.stderr}"


def test_a_playbook_that_a_sentence_names_runs_on_nodes_or_without() -> None:
    run = {"site", *(command.playbook for command in marked(UNIT))}
    for path in ON_NODES:
        run |= set(re.findall(r'"(?:sparkrig\.serving\.)?(\w+)(?:\.yml)?"', path.read_text(encoding="utf-8")))
    for page in PAGES:
        said = re.findall(r"`ansible-playbook (?:sparkrig\.serving\.)?(\w+)", page.read_text(encoding="utf-8"))
        assert set(said) <= run & PLAYBOOKS, page


def test_what_needs_sparks_runs_on_the_lab_as_well() -> None:
    """The same playbook, with the inventory of the lab."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in ON_NODES)
    run = set(re.findall(r'"sparkrig\.serving\.(\w+)"', text))
    assert {command.playbook for command in marked(SPARKS) if command.playbook} <= run


def test_a_workplace_is_made_while_others_write_in_the_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout, workplace = tmp_path / "checkout", tmp_path / "serving"
    for name in ("README.md", "gone.svg", "new.md", "fit/fit.html", "tests/test_x.py", ".ci/run"):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text(name, encoding="utf-8")
    (checkout / ".gitignore").write_text("/fit/\n", encoding="utf-8")
    for words in (["init", "--quiet"], ["add", "--", "README.md", "gone.svg", "tests", ".ci", ".gitignore"]):
        subprocess.run(["git", *words], cwd=checkout, check=True)
    (checkout / "gone.svg").unlink()
    monkeypatch.setattr("docs.commands.PROJECT", checkout)
    make_workplace(workplace)
    assert sorted(path.name for path in workplace.rglob("*") if path.is_file()) == ["README.md", "new.md"]


@pytest.mark.slow
def test_what_needs_sparks_is_parsed(tmp_path: Path) -> None:
    workplace = tmp_path / "serving"
    make_workplace(workplace)
    for command in marked(SPARKS):
        if not command.playbook:
            continue
        done = execute(replace(command, text=f"{command.text} --syntax-check"), workplace)
        assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_what_needs_nothing_runs(tmp_path: Path) -> None:
    """All in one copy, in the order of the pages: a later one may need what an earlier one made."""
    workplace = tmp_path / "serving"
    make_workplace(workplace)
    for command in marked(UNIT):
        done = execute(command, workplace)
        assert done.returncode == 0, f"{command.text}\n{done.stdout}"
    for made in ("fit/fit.html", "monitoring/prometheus.yml", "installed/ansible_collections/sparkrig/serving/roles"):
        assert (workplace / made).exists()


def test_the_readme_names_all_that_there_is() -> None:
    text = (PROJECT / "README.md").read_text(encoding="utf-8")
    names = re.findall(r"`(\w+)`", text)
    modules = {path.stem for path in (PROJECT / "plugins" / "modules").glob("*.py")}
    roles = {path.name for path in (PROJECT / "roles").iterdir()}
    assert sorted((modules | roles) - set(names)) == []
    assert sorted(PLAYBOOKS - set(re.findall(r"`sparkrig\.serving\.(\w+)`", text))) == []
    profiles = {path.stem for path in (PROJECT / "roles" / "profile" / "vars").glob("*.yml")} - {"main"}
    assert sorted(name for name in profiles if name not in text and f"`_{name.rpartition('_')[2]}`" not in text) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT)))
def test_every_link_inside_the_project_leads_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_the_fit_page_gives_the_planners_numbers() -> None:
    kernel = {"compute_capability": "12.1", "attention_backend": "B12X_MLA_SPARSE"}
    text = (PROJECT / "docs" / "fit.md").read_text(encoding="utf-8")
    for dcp, context in ((1, 32768), (4, 131072)):
        plan = fit(question(decode_context_parallel_size=dcp, max_model_len=context, **kernel))
        for name in ("bytes_per_block", "num_blocks", "kv_cache_tokens"):
            assert f"{plan[name]:,}" in text
        assert f"{plan['bytes_per_token']:,} B a token" in text
    profile = yaml.safe_load((PROJECT / "roles/profile/vars/glm52_128k_dcp4_mtp1.yml").read_text(encoding="utf-8"))
    fitted = profile["profile_content"]["fit"]
    parts = [fitted["weights_bytes"], 1_810_000_000, fitted["overhead_bytes"], fitted["reserve_bytes"]]
    sum_of_parts = " + ".join(f"{part / 2**30:.2f}" for part in parts)
    assert f"{sum_of_parts} = {sum(parts) / 2**30:.2f} GiB" in text


def test_no_profile_logs_what_users_write() -> None:
    for path in (PROJECT / "roles" / "profile" / "vars").glob("*.yml"):
        assert "enable_log_" not in path.read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_reference_is_what_the_collection_says(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(PROJECT / "docs" / "reference.py"), str(tmp_path)], cwd=PROJECT, check=True)
    stale = [
        page.name
        for page in sorted(tmp_path.iterdir())
        if page.read_text(encoding="utf-8") != (PROJECT / "docs" / "reference" / page.name).read_text(encoding="utf-8")
    ]
    assert stale == [], "run `make reference`"


class Loads(HTMLParser):
    """What a browser fetches by itself to show a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """A link that is only followed when somebody asks for it is not fetched."""
        given = {name: value or "" for name, value in attrs}
        names = ["src", "srcset", "data", "poster"] + (["href"] if tag == "link" else [])
        self.found += [given[name] for name in names if name in given]
        # The theme's own script asks GitHub about the project, and fetches what draws a diagram.
        if given.get("data-md-component") == "source" or "mermaid" in given.get("class", "").split():
            self.found.append(f"https: by the script of the theme, for <{tag} class={given.get('class', '')!r}>")


@pytest.mark.slow
def test_the_site_builds_without_a_broken_link_and_is_read_without_a_network(tmp_path: Path) -> None:
    # In strict mode a page that is missing or a link that leads nowhere is an error.
    site = tmp_path / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(site)]
    built = subprocess.run(command, cwd=PROJECT, capture_output=True, check=False, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    assert {path.suffix for path in site.rglob("*") if path.is_file()} & {".py", ".pyc"} == set()
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > len(list((PROJECT / "docs").glob("*.md")))
    # The README is one of them, and no Markdown of it or of another is left as it was written.
    texts = {page.name: re.sub("<[^>]*>", "", page.read_text(encoding="utf-8")) for page in pages}
    assert "Four Sparks: the first run" in texts["readme.html"]
    assert [name for name, text in texts.items() if re.search(r"```|\n\| --- ", text)] == []
    for page in pages:
        loads = Loads()
        loads.feed(page.read_text(encoding="utf-8"))
        local = [target for target in loads.found if not re.match("(https?:)?//|https:", target)]
        assert loads.found == local, page
        # 404.html is for a web server, and names its parts from the root of that.
        assert page.name == "404.html" or [one for one in local if not (page.parent / one).exists()] == [], page
    for sheet in site.rglob("*.css"):
        named = re.findall(r"""(?:url\(|@import)\s*["']?([^"')]+)""", sheet.read_text(encoding="utf-8"))
        assert [target for target in named if re.match("(https?:)?//", target)] == [], sheet
