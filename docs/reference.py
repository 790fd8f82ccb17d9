# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Write the reference of roles, modules and filters from their own documentation.

``python docs/reference.py FOLDER`` writes ``roles.md``, ``modules.md`` and ``filters.md`` there. ``ansible-doc`` reads
argument specs and DOCUMENTATION blocks; this only lays them out.
"""

from __future__ import annotations

import html
import json
import re
import subprocess
import sys
import typing as t
from pathlib import Path

import yaml
from antsibull_docs_parser.md import to_md
from antsibull_docs_parser.parser import Context, parse

PROJECT = Path(__file__).resolve().parent.parent
COLLECTION = "sparkrig.serving"
HEAD = "<!-- Written by `make reference`. Changes are overwritten. -->\n"


def ansible_doc(kind: str) -> dict[str, t.Any]:
    """What ``ansible-doc`` knows of every plugin or role of *kind*, by its short name, sorted."""
    command = [str(Path(sys.executable).parent / "ansible-doc"), "--type", kind, "--json"]
    listed = subprocess.run([*command, "--list", COLLECTION], cwd=PROJECT, capture_output=True, check=True, text=True)
    names = sorted(json.loads(listed.stdout))
    shown = subprocess.run([*command, *names], cwd=PROJECT, capture_output=True, check=True, text=True)
    return {name.rpartition(".")[2]: document for name, document in sorted(json.loads(shown.stdout).items())}


def prose(text: str | list[str] | None) -> str:
    """Ansible's markup as Markdown, on one line."""
    if not text:
        return ""
    line = " ".join(to_md(parse(text, Context()), par_sep=" ").replace("<br>", " ").split())
    # The library escapes every sign that could mean something somewhere; in a sentence these mean nothing.
    line = re.sub(r"\\([^\w\s|<*`\[\]\\])", r"\1", line)
    return re.sub(r"<code>(.*?)</code>", lambda match: "`" + re.sub(r"\\|</?strong>", "", match[1]) + "`", line)


def value(thing: object) -> str:
    """A default or a choice as code; nothing for a missing one."""
    if thing is None:
        return ""
    word = " ".join((thing if isinstance(thing, str) else json.dumps(thing)).split())
    if "|" in word:
        # In a table's code GitHub wants this sign escaped, and mkdocs shows the escape; both know its number.
        return f"<code>{html.escape(word, quote=False).replace('|', '&#124;')}</code>"
    return f"`{word}`"


def rows(options: dict[str, t.Any], prefix: str = "") -> list[tuple[str, str, str, str]]:
    """Name, type, default and description of each option; those of nested ones follow it, with a dotted name."""
    found = []
    for name, option in options.items():
        kind = option.get("type", "str")
        if option.get("elements"):
            kind += f" of {option['elements']}"
        default = "**required**" if option.get("required") else value(option.get("default"))
        text = prose(option.get("description"))
        if option.get("choices"):
            text += " One of " + ", ".join(value(choice) for choice in option["choices"]) + "."
        found.append((f"`{prefix}{name}`", kind, default, text.replace("|", "\\|")))
        nested = option.get("options") or option.get("suboptions") or option.get("contains") or {}
        found += rows(nested, f"{prefix}{name}.")
    return found


def table(title: str, options: dict[str, t.Any] | None) -> list[str]:
    """A table of options under *title*; nothing when there are none."""
    if not options:
        return []
    lines = [f"\n{title}\n", "| name | type | default | |", "| --- | --- | --- | --- |"]
    return lines + [f"| {' | '.join(row)} |" for row in rows(options)]


def returns(values: dict[str, t.Any] | None) -> list[str]:
    """A table of what a module or filter returns; nothing when it is not documented."""
    if not values:
        return []
    lines = ["\nReturns\n", "| name | type | |", "| --- | --- | --- |"]
    return lines + [f"| {name} | {kind} | {text} |" for name, kind, _default, text in rows(values)]


def roles() -> str:
    """The reference of every role: its entry points and their variables."""
    lines = [HEAD, "# Roles\n"]
    for name, document in ansible_doc("role").items():
        text = (PROJECT / "roles" / name / "defaults" / "main.yml").read_text(encoding="utf-8")
        defaults = yaml.safe_load(text) or {}
        lines.append(f"## {name}\n")
        for entry, body in document["entry_points"].items():
            if len(document["entry_points"]) > 1:
                lines.append(f"\n### {name}: {entry}\n")
            lines.append(prose(body.get("description")) or prose(body.get("short_description")))
            # A default that is a template of another type than text stands in the role's defaults only.
            options = {
                option: {"default": defaults.get(option), **body_option}
                for option, body_option in body.get("options", {}).items()
            }
            lines += table("Variables", options)
            lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def plugins(kind: str, title: str) -> str:
    """The reference of every module or filter."""
    lines = [HEAD, f"# {title}\n"]
    for name, document in ansible_doc(kind).items():
        doc = document["doc"]
        lines += [f"## {name}\n", prose(doc["short_description"]) + ".\n", prose(doc["description"])]
        lines += table("Options", doc.get("options"))
        lines += returns(document.get("return"))
        if document.get("examples"):
            lines += ["\n```yaml", document["examples"].strip(), "```"]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def write(folder: Path) -> None:
    """Write the three pages into *folder*."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "roles.md").write_text(roles(), encoding="utf-8")
    (folder / "modules.md").write_text(plugins("module", "Modules"), encoding="utf-8")
    (folder / "filters.md").write_text(plugins("filter", "Filters"), encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
