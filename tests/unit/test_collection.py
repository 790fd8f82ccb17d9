# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What holds for the collection as a whole."""

from __future__ import annotations

import re
import subprocess
import sys
import typing as t
from collections import Counter
from pathlib import Path

import pytest
import yaml

from tests.gates.artefact import check_contents, install

PROJECT = Path(__file__).parents[2]
ROLES = sorted(path.name for path in (PROJECT / "roles").iterdir())
TEXT_TYPES = ("str", "path", "raw")
PLAYBOOKS = sorted((PROJECT / "playbooks").glob("*.yml"))


def load(path: Path) -> dict[str, t.Any]:
    return t.cast("dict[str, t.Any]", yaml.safe_load(path.read_text(encoding="utf-8")) or {})


@pytest.mark.parametrize("role", ROLES)
def test_argument_specs_and_defaults_are_the_same(role: str) -> None:
    folder = PROJECT / "roles" / role
    defaults = load(folder / "defaults" / "main.yml")
    options = load(folder / "meta" / "argument_specs.yml")["argument_specs"]["main"]["options"]
    optional = {name: option for name, option in options.items() if not option.get("required")}
    # A specification holds values of the option's type. A template is text until it is used, so for another type it
    # stands in defaults/main.yml alone, from where the reference takes it.
    computed = {
        name
        for name, default in defaults.items()
        if isinstance(default, str) and "{{" in default and optional[name].get("type", "str") not in TEXT_TYPES
    }
    assert [name for name in computed if "default" in optional[name]] == []
    assert {name: option.get("default") for name, option in optional.items() if name not in computed} == {
        name: default for name, default in defaults.items() if name not in computed
    }


@pytest.mark.parametrize("role", ROLES)
def test_every_variable_of_a_role_has_its_name(role: str) -> None:
    defaults = load(PROJECT / "roles" / role / "defaults" / "main.yml")
    assert [name for name in defaults if not name.startswith(f"{role}_")] == []


@pytest.mark.parametrize("role", ROLES)
def test_the_readme_of_a_role_names_its_entry_points_and_variables(role: str) -> None:
    specs = load(PROJECT / "roles" / role / "meta" / "argument_specs.yml")["argument_specs"]
    files = {path.stem for path in (PROJECT / "roles" / role / "tasks").glob("*.yml")}
    assert set(specs) <= files
    text = (PROJECT / "roles" / role / "README.md").read_text(encoding="utf-8")
    assert text.startswith(f"# Role `sparkrig.serving.{role}`\n")
    assert [entry for entry in specs if entry != "main" and f"`{entry}`" not in text] == []
    # Variables that only measure may stand together, as `fabric_bandwidth_*`.
    groups = tuple(re.findall(r"`(\w+_)\*`", text)) or ("*",)
    variables = {name for spec in specs.values() for name in spec.get("options", {})}
    assert sorted(name for name in variables if f"`{name}`" not in text and not name.startswith(groups)) == []
    rows = " ".join(line.split(" | ")[0] for line in text.splitlines() if line.startswith(f"| `{role}_"))
    assert sorted(set(re.findall(r"`(\w+)`", rows)) - variables) == []


def test_no_role_names_a_variable_of_another_role() -> None:
    for role in ROLES:
        others = [name for name in ROLES if name != role]
        for path in sorted((PROJECT / "roles" / role / "tasks").glob("*.yml")):
            text = path.read_text(encoding="utf-8")
            named = [other for other in others if f"__{other}_" in text]
            assert named == [], path


@pytest.mark.parametrize("role", ROLES)
def test_no_variable_of_a_role_is_dead(role: str) -> None:
    """A default is read by the role; what a task registers, sets or is given is read somewhere else than there."""
    folder = PROJECT / "roles" / role
    sources = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.parent.name != "meta"]
    counted: Counter[str] = Counter()
    for path in sources:
        if path.suffix in (".j2", ".yml"):
            # A comment of a playbook reads nothing; in a template it is part of what is written.
            comment = "^ *#.*$" if path.suffix == ".yml" else "{#.*?#}"
            text = re.sub(comment, "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
            counted.update(re.findall(r"\w+", text))
    internal = {name for name in counted if name.startswith(f"__{role}_")}
    defaults = set(load(folder / "defaults" / "main.yml"))
    assert sorted(name for name in defaults | internal if counted[name] < 2) == []


def test_the_changelog_has_the_version_and_every_plugin_of_it() -> None:
    """`antsibull-changelog release --reload-plugins` writes this; nothing else would say that it was forgotten."""
    version = str(load(PROJECT / "galaxy.yml")["version"])
    releases = load(PROJECT / "changelogs" / "changelog.yaml")["releases"]
    assert version in releases
    listed = {
        (kind, entry["name"])
        for release in releases.values()
        for kind, entries in {"modules": release.get("modules", []), **release.get("plugins", {})}.items()
        for entry in entries
    }
    present = {
        (folder, path.stem)
        for folder in ("modules", "filter", "lookup")
        for pattern in ("*.py", "*.yml")
        for path in (PROJECT / "plugins" / folder).glob(pattern)
        if "\nDOCUMENTATION" in path.read_text(encoding="utf-8")
    }
    assert listed == present


def test_a_file_of_several_filters_documents_none_of_them() -> None:
    """Ansible takes the DOCUMENTATION of a file of filters for all in it; the sidecars are for one filter each."""
    for path in sorted((PROJECT / "plugins" / "filter").glob("*.py")):
        text = path.read_text(encoding="utf-8")
        names = re.findall(r"^name: (\w+)$", text, re.MULTILINE)
        assert names in ([], [path.stem]), path.name
        assert not names or re.search(rf'return \{{"{path.stem}": \w+\}}', text), path.name


Installed = tuple[Path, Path]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The artefact as `ansible-galaxy` builds it, and the collection as it installs it."""
    return install(tmp_path_factory.mktemp("galaxy"))


@pytest.mark.slow
def test_the_artefact_holds_the_collection_and_nothing_else(installed: Installed) -> None:
    check_contents(installed[0])


@pytest.mark.slow
def test_the_installed_collection_works_by_itself(installed: Installed, tmp_path: Path) -> None:
    """Every playbook parses, with its roles, modules and filters, where only the installed collection is."""
    bin_folder = Path(sys.executable).parent
    environment = {
        "PATH": f"{bin_folder}:/usr/bin:/bin",
        "HOME": str(tmp_path),
        "ANSIBLE_COLLECTIONS_PATH": str(installed[1].parents[2]),
        "LC_ALL": "C.UTF-8",
    }
    names = [f"sparkrig.serving.{path.stem}" for path in PLAYBOOKS]
    check = [str(bin_folder / "ansible-playbook"), "--syntax-check", "-i", "spark1,", *names]
    result = subprocess.run(check, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
    assert result.returncode == 0, result.stderr
